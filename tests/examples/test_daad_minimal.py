"""DAAD in one file is the application's DAAD: same weights, same steps, same scores."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import daad_minimal
from daad.config import Config
from daad.drawn import make_dataset
from daad.form import Form
from daad.learner import Learner
from daad.machine import start_fabric
from daad.metrics import image_auroc
from daad.mvtec import load_category
from daad.network import Networks
from daad.pictures import PictureFiles
from daad.scoring import Scale, fuse, score_pictures
from daad.training import Trainer, train

SIZE, WIDTH, ITEMS, SEED = 128, 2, 5, 3


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a defect whose name begins as "good" does, as MVTec AD's grid has one."""
    root = tmp_path_factory.mktemp("data")
    make_dataset(root, image_size=SIZE, train=9, test_good=3, test_per_defect=2)
    for part in ("test", "ground_truth"):
        (root / "gear" / part / "spot").rename(root / "gear" / part / "glue")
    return root / "gear"


def configured(variant: str, epochs: int = 1) -> Config:
    """What the file does, in the application's words."""
    sizes = {"image_size": SIZE, "width": WIDTH, "num_items": ITEMS, "division": (8, 8, 1)}
    return Config(variant=variant, epochs=epochs, seed=SEED, **sizes).resolve()


def networks(variant: str) -> tuple[daad_minimal.Generator, daad_minimal.Discriminator | None]:
    torch.manual_seed(SEED)
    g = daad_minimal.Generator(SIZE, WIDTH, ITEMS)
    return g, daad_minimal.Discriminator(SIZE, WIDTH) if variant == "daad+" else None


@pytest.mark.parametrize("variant", ["daad", "daad+"])
def test_the_weights_and_three_steps_are_the_applications(variant: str, tmp_path: Path) -> None:
    config = configured(variant)
    trainer = Trainer(config, start_fabric("cpu", 1, 1, "32"), tmp_path, None)
    g, d = networks(variant)
    for own, theirs in zip((g, d), trainer.networks, strict=True):
        if own is not None:
            assert_close(own.state_dict(), theirs.state_dict(), rtol=0, atol=0)
            own.double()  # Adam's first steps follow the signs of gradients, rounding errors' too
            theirs.double()
    adams = [torch.optim.Adam(one.parameters(), config.lr) for one in (g, d) if one is not None]
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.rand(4, 3, SIZE, SIZE, generator=random, dtype=torch.float64) * 2 - 1
        own, theirs = daad_minimal.train_step(g, d, adams, x), trainer.learner.step(x)
        assert len(own) == (4 if variant == "daad+" else 1)
        assert_close(own, theirs, rtol=0, atol=1e-5, check_dtype=False)


def test_a_training_sees_the_applications_batches(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of a batch and a picture, in the same order, with the same flips."""
    config = configured("daad", epochs=2)
    seen: list[list[Tensor]] = [[], []]
    steps = daad_minimal.train_step, Learner.step
    monkeypatch.setattr(
        daad_minimal, "train_step", lambda *given: seen[0].append(given[-1]) or steps[0](*given)
    )
    monkeypatch.setattr(
        Learner, "step", lambda *given: seen[1].append(given[-1]) or steps[1](*given)
    )
    learned = PictureFiles(sorted((category / "train" / "good").iterdir()), Form(SIZE))
    train(config, learned, tmp_path, device="cpu")
    pictures = daad_minimal.load(category, "train", SIZE)
    daad_minimal.train(*networks("daad"), pictures, 2, config.lr, SEED)
    assert [len(x) for x in seen[0]] == [8, 1, 8, 1]
    assert_close(*seen, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["daad", "daad+"])
def test_scores_are_the_applications(variant: str, category: Path, tmp_path: Path) -> None:
    config = configured(variant)
    g, d = networks(variant)
    found = load_category(category.parent, category.name)
    tested = PictureFiles([sample.path for sample in found.test], Form(SIZE))
    theirs = Networks.build(config)
    for own, other in zip((g, d), theirs, strict=True):
        if own is not None:
            other.load_state_dict(own.state_dict())
    raw = score_pictures(theirs, tested, config)
    scores = fuse(raw, Scale.of([raw]), config.gamma)
    parts = [daad_minimal.load(category, "test", SIZE, good=good) for good in (True, False)]
    own = daad_minimal.anomaly_scores(g, d, torch.cat(parts))
    assert_close(own, scores, rtol=0, atol=1e-6)
    labels = torch.tensor([sample.label for sample in found.test])
    area = daad_minimal.auroc(own[labels == 0], own[labels == 1])
    assert area == pytest.approx(image_auroc(scores, labels), abs=1e-6)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    small = ("--size", SIZE, "--width", WIDTH, "--items", ITEMS, "--epochs", 2)
    command = ["daad_minimal.py", *map(str, (*arguments, *small))]
    monkeypatch.setattr("sys.argv", command)
    daad_minimal.main()


@pytest.mark.parametrize("plus", [(), ("--plus",)])
def test_the_script_prints_the_auroc(
    plus: tuple[str, ...],
    category: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(monkeypatch, category, *plus)
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1 of 2: reconstruction ")
    assert ("alignment" in second) == bool(plus)
    words = last.split()
    assert words[0] == "AUROC"
    assert 0 <= float(words[1].rstrip(":")) <= 1
    assert last.endswith("3 good and 6 anomalous pictures")


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of what a script said that ended with code 2."""
    return capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_is_refused(
    category: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path)
    assert f"{tmp_path / 'train' / 'good'}: no pictures; put " in refusal(capsys)
    (tmp_path / "train" / "good").mkdir(parents=True)
    (tmp_path / "train" / "good" / "0.png").write_bytes(b"none")
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path)
    assert "0.png" in refusal(capsys)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, category, "--lr", 1e30)
    assert "give a smaller --lr" in refusal(capsys)
    monkeypatch.setattr("sys.argv", ["daad_minimal.py", str(category), "--size", "48"])
    with pytest.raises(SystemExit, match="2"):
        daad_minimal.main()
    assert "--size 48: give a multiple of 128" in refusal(capsys)


@pytest.mark.parametrize("width", [1, 3, 5])
def test_any_width_gives_the_applications_networks(width: int) -> None:
    """Three channels too, which is what pictures have."""
    config = Config(variant="daad+", image_size=SIZE, width=width, num_items=2).resolve()
    theirs = Networks.build(config)
    assert theirs.discriminator is not None
    own = daad_minimal.Generator(SIZE, width, 2), daad_minimal.Discriminator(SIZE, width)
    for one, other in zip(own, theirs, strict=True):
        assert [p.shape for p in one.parameters()] == [p.shape for p in other.parameters()]
