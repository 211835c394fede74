"""Training: one step against plain PyTorch, whole runs, bad ends, two processes."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor
from torch.nn import functional

from daad import stopping, training
from daad.io import UserError, load_checkpoint
from daad.learner import Learner
from daad.machine import start_fabric
from daad.network import CHECKPOINT, Networks, load_networks
from daad.scoring import score_pictures
from daad.training import Trainer, train
from tests.helpers.training_runs import FakePictures, assert_same, config, read_history


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"gan_loss": "minimax"},
        {"alignment_distance": "squared"},
        {"distance": "squared", "lambda_rec": 5000.0},
        {"alignment_trains_discriminator": False, "feature": "extractor"},
        {"lambda_adv": 0.0},
        {"lambda_ali": 0.0},
        {"lambda_adv": 0.0, "lambda_ali": 0.0},
        {"variant": "daad"},
    ],
    ids=str,
)
def test_step_is_eq_3_and_the_discriminators_own_loss(
    choices: dict[str, Any], tmp_path: Path
) -> None:
    c = config(**({"variant": "daad+"} | choices))
    trainer = Trainer(c, start_fabric("cpu", 1, 1, "32"), tmp_path, None)
    g, d = copy.deepcopy(trainer.networks.generator), copy.deepcopy(trainer.networks.discriminator)
    x = FakePictures(4).values
    got = trainer.learner.step(x)

    def distance(a: Tensor, b: Tensor, kind: str) -> Tensor:
        difference = (a - b).flatten(1)
        if kind == "l2":
            return difference.norm(dim=1).mean()
        return difference.pow(2).mean(1).mean()

    adam = {"lr": c.lr, "betas": (0.9, 0.999)}
    g_optimizer = torch.optim.Adam(g.parameters(), **adam)
    x_hat = g(x)
    want = {"reconstruction": distance(x, x_hat, c.distance)}
    objective = c.lambda_rec * want["reconstruction"]
    if d is not None:
        d_optimizer = torch.optim.Adam(d.parameters(), **adam)
        (real, f), (fake, f_hat) = d(x), d(x_hat.detach())
        bce = functional.binary_cross_entropy_with_logits
        loss = bce(real, torch.ones(4)) + bce(fake, torch.zeros(4))
        want["discriminator"] = loss
        if c.alignment_trains_discriminator:
            loss = loss + c.lambda_ali * distance(f, f_hat, c.alignment_distance)
        loss.backward()
        d_optimizer.step()
        if c.lambda_adv or c.lambda_ali:
            # In this order, for BatchNorm's running statistics
            fake, f_hat = d(x_hat)
            f = d(x)[1].detach() if c.lambda_ali else f_hat
            adversarial = bce(fake, torch.ones(4))
            if c.gan_loss == "minimax":
                adversarial = (1 - fake.sigmoid()).log().mean()
            alignment = distance(f, f_hat, c.alignment_distance)
            if c.lambda_adv:
                want["adversarial"] = adversarial
            if c.lambda_ali:
                want["alignment"] = alignment
            objective = objective + c.lambda_adv * adversarial + c.lambda_ali * alignment
    objective.backward()
    g_optimizer.step()

    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name].detach(), rtol=1e-4, atol=1e-6)
    # Adam's first step is lr times the gradient's sign, so rounding shows where that is about 0.
    pairs = [(trainer.networks.generator, g)] + (
        [(trainer.networks.discriminator, d)] if d is not None else []
    )
    for mine, reference in pairs:
        for name, value in mine.state_dict().items():
            other = reference.state_dict()[name]
            close = torch.isclose(value.double(), other.double(), rtol=1e-3, atol=0.1 * c.lr)
            assert close.double().mean() > 0.98, name


def test_generator_step_leaves_the_discriminator_alone(tmp_path: Path) -> None:
    trainer = Trainer(config(variant="daad+"), start_fabric("cpu", 1, 1, "32"), tmp_path, None)
    x = FakePictures(4).values
    trainer.learner._discriminator_step(x, trainer.networks.generator(x).detach())
    before = [p.grad.clone() for p in trainer.networks.discriminator.parameters()]
    losses = trainer.learner._judge(
        trainer.networks.discriminator, x, trainer.networks.generator(x)
    )
    (losses["adversarial"] + losses["alignment"]).backward()
    for parameter, grad in zip(trainer.networks.discriminator.parameters(), before, strict=True):
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, grad)
    assert all(
        p.grad is not None and p.grad.any() for p in trainer.networks.generator.head.parameters()
    )


@pytest.mark.parametrize(
    ("flips", "mirrored"),
    [("both", [(), (-1,), (-2,), (-2, -1)]), ("horizontal", [(), (-1,)]), ("none", [()])],
)
def test_pictures_are_mirrored_only_as_asked(
    flips: str, mirrored: list[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = FakePictures(40)
    seen: list[Tensor] = []
    step = Learner.step

    def note(learner: Learner, x: Tensor) -> dict[str, Tensor]:
        seen.extend(x.clone())
        return step(learner, x)

    monkeypatch.setattr(Learner, "step", note)
    choices = {"variant": "ae", "epochs": 1, "flips": flips, "statistics": "running"}
    train(config(**choices), pictures, tmp_path, device="cpu")
    order = [index for batch in pictures.asked for index in batch]
    kinds = set()
    for index, x in zip(order, seen, strict=True):
        ways = [way for way in mirrored if torch.equal(x, pictures.values[index].flip(way))]
        assert len(ways) == 1
        kinds |= set(ways)
    assert kinds == set(mirrored)  # 40 pictures: each way is all but certain to come


def test_float16_scales_each_loss_by_a_scaler_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fabric(*_: Any) -> Fabric:
        off = torch.amp.GradScaler("cpu", enabled=False)
        plugin = MixedPrecision("16-mixed", device="cpu", scaler=off)
        return Fabric(accelerator="cpu", devices=1, plugins=[plugin])

    monkeypatch.setattr(training, "start_fabric", fabric)
    choices = {"variant": "daad+", "precision": "16"}
    train(config(epochs=8, **choices), FakePictures(), tmp_path)
    state = load_checkpoint(tmp_path / CHECKPOINT)
    scales = {name: scaler["scale"] for name, scaler in state["scalers"].items()}
    # With lambda_rec in it, G's loss overflows float16 at scales that D's loss can take.
    assert scales["generator"] < scales["discriminator"]
    for name, optimizer in state["optimizers"].items():  # what overflows halves the scale
        skipped = torch.tensor(2.0**16 / scales[name]).log2()
        assert optimizer["state"][0]["step"] == 16 - skipped > 0
    assert state["history"][-1]["reconstruction"] < state["history"][0]["reconstruction"]

    train(config(epochs=9, **choices), FakePictures(), tmp_path, resume=True)
    after = load_checkpoint(tmp_path / CHECKPOINT)["scalers"]["discriminator"]
    before = state["scalers"]["discriminator"]
    assert after == before | {"_growth_tracker": before["_growth_tracker"] + 2}


@pytest.mark.parametrize("variant", ["ae", "memae-skip", "daad", "daad+"])
def test_training_lowers_the_reconstruction_loss(variant: str, tmp_path: Path) -> None:
    pictures = FakePictures()
    division = None if variant == "memae-skip" else (2, 2, 1)
    train(config(variant=variant, division=division, epochs=6), pictures, tmp_path, device="cpu")
    rows = read_history(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert float(rows[-1]["reconstruction"]) < float(rows[0]["reconstruction"])
    for name in ("adversarial", "alignment", "discriminator"):
        assert all(bool(row[name]) == (variant == "daad+") for row in rows)
    for epoch in range(6):  # every picture once, in another order; the last batch is shorter
        asked = pictures.asked[2 * epoch : 2 * epoch + 2]
        assert [len(batch) for batch in asked] == [4, 2]
        assert sorted(asked[0] + asked[1]) == list(range(6))
    assert pictures.asked[:2] != pictures.asked[2:4]


def test_scorer_is_asked_on_its_epochs_only(tmp_path: Path) -> None:
    c = config(variant="daad+", epochs=5, evaluate_every=2)

    def scorer(networks: Networks) -> float:
        score_pictures(networks, FakePictures(2), c)
        return 0.75

    train(c, FakePictures(2), tmp_path / "scored", device="cpu", scorer=scorer)
    aurocs = [row["auroc"] for row in read_history(tmp_path / "scored")]
    assert aurocs == ["", "0.75", "", "0.75", ""]
    # Looking does not change the run
    train(config(variant="daad+", epochs=5), FakePictures(2), tmp_path / "not", device="cpu")
    scored, unseen = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("scored", "not"))
    assert_same(scored["generator"], unseen["generator"])
    assert_same(scored["discriminator"], unseen["discriminator"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_training_on_a_gpu(precision: str, tmp_path: Path) -> None:
    choices = {"variant": "daad+", "precision": precision}
    train(config(epochs=20, **choices), FakePictures(), tmp_path, device="cuda")
    train(config(epochs=22, **choices), FakePictures(), tmp_path, device="cuda", resume=True)
    rows = read_history(tmp_path)
    assert len(rows) == 22
    assert float(rows[-1]["reconstruction"]) < float(rows[0]["reconstruction"])


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoilt(FakePictures):
        def batch(self, indices: Tensor, device: torch.device) -> Tensor:
            x = super().batch(indices, device)
            return x * float("nan") if len(self.asked) > 2 else x  # from epoch 3 on

    monkeypatch.setattr(stopping, "SAVE_EVERY", 0)
    c = config(epochs=5)
    with pytest.raises(UserError, match=r"epoch 3: .*reconstruction.*--lr.*last good checkpoint"):
        train(c, Spoilt(4), tmp_path, device="cpu")
    assert load_checkpoint(tmp_path / CHECKPOINT)["epoch"] == 2


def test_weights_that_are_not_finite_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Learner._update
    steps = 0

    def spoil(self: Learner, name: str, loss: Tensor) -> None:
        nonlocal steps
        update(self, name, loss)
        steps += 1
        if steps == 2:  # the one of the second epoch
            with torch.no_grad():
                self.networks.generator.head[2].bias.fill_(float("inf"))

    monkeypatch.setattr(Learner, "_update", spoil)
    monkeypatch.setattr(stopping, "SAVE_EVERY", 0)
    with pytest.raises(UserError, match=r"epoch 2: .*generator's weights"):
        train(config(), FakePictures(4), tmp_path, device="cpu")
    assert load_checkpoint(tmp_path / CHECKPOINT)["epoch"] == 1


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures"):
        train(config(), FakePictures(0), tmp_path, device="cpu")


def test_one_picture_on_a_map_of_one_pixel_is_an_error(tmp_path: Path) -> None:
    c = config(image_size=16, division=(1, 1, 1), statistics="running")
    with pytest.raises(UserError, match="BatchNorm cannot take a single picture"):
        train(c, FakePictures(1, size=16), tmp_path, device="cpu")
    pictures = FakePictures(5, size=16)
    train(c, pictures, tmp_path, device="cpu")
    assert [len(batch) for batch in pictures.asked] == [4, 4]


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from tests.helpers.training_runs import FakePictures, config
from daad import training

def keep(self, *watch):
    modules = self.learner.modules.values()
    weights = torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])
    torch.save(weights, {out!r} + f"/weights-{{self.fabric.global_rank}}.pt")
    original(self, *watch)

original, training.Trainer._keep = training.Trainer._keep, keep
c = config(variant="daad+", epochs=3, evaluate_every=1, **{choices!r})
training.train(c, FakePictures(7), Path({out!r}), device="cpu", devices=2,
               scorer=lambda networks: 0.5)
print("after training")
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_two_processes_train_one_model(precision: str, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    values = {"out": str(tmp_path)}
    choices = {"precision": precision, "memory_init": "blocks"}
    script.write_text(TWO_PROCESSES.format(choices=choices, **values))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("after training") == 1  # the other process ends with the training
    first, second = (torch.load(tmp_path / f"weights-{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    rows = read_history(tmp_path)
    assert [row["auroc"] for row in rows] == ["0.5", "0.5", "0.5"]
    losses = [float(row["reconstruction"]) for row in rows]
    assert losses[2] < losses[0]
    assert load_networks(tmp_path)[2]["epoch"] == 3
