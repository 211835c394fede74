"""Checkpoints: whole and plain, continued from exactly, refused where they are broken."""

import shutil
from pathlib import Path

import pytest
import torch

from daad import training
from daad.checkpoint import (
    CHECKPOINT,
    keep_weights,
    load_checkpoint,
    load_models,
    save_checkpoint,
)
from daad.config import Config
from daad.errors import UserError
from daad.model import Discriminator, Generator
from daad.training import train
from tests.helpers.training_runs import FakePictures, assert_same, config, read_history


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a DAAD+ run of 2 epochs."""
    run = tmp_path_factory.mktemp("run")
    train(config(variant="daad+"), FakePictures(), run, device="cpu")
    return run


def test_checkpoint_is_plain_and_whole(trained: Path) -> None:
    state = torch.load(trained / CHECKPOINT, weights_only=True)
    c = Config.from_dict(state["config"])
    assert c == config(variant="daad+")
    assert state["epoch"] == 2
    assert state["generator"].keys() == Generator(c).state_dict().keys()
    assert state["discriminator"].keys() == Discriminator(c).state_dict().keys()
    assert [f"{row['reconstruction']:.6g}" for row in state["history"]] == [
        row["reconstruction"] for row in read_history(trained)
    ]
    assert not list(trained.glob(".*"))  # no temporary file is left


def test_seed_decides_the_run(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # what came before does not
    train(config(variant="daad+"), FakePictures(), tmp_path / "again", device="cpu")
    again = load_checkpoint(tmp_path / "again" / CHECKPOINT)
    assert_same(load_checkpoint(trained / CHECKPOINT), again)
    train(config(variant="daad+", seed=1), FakePictures(), tmp_path / "other", device="cpu")
    other = load_checkpoint(tmp_path / "other" / CHECKPOINT)
    assert not torch.equal(other["random"], again["random"])
    key = "encoder.0.0.0.weight"
    assert not torch.equal(other["generator"][key], again["generator"][key])


@pytest.mark.parametrize("error", [OSError("No space left on device"), RuntimeError("a\nb")])
def test_a_full_disk_leaves_the_checkpoint_of_before(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"config": {}, "epoch": 1, "generator": {}}
    save_checkpoint(tmp_path / CHECKPOINT, state)

    def fail(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match=r"checkpoint.ckpt: cannot be written \((No space|a\))"):
        save_checkpoint(tmp_path / CHECKPOINT, state | {"epoch": 2})
    assert load_checkpoint(tmp_path / CHECKPOINT) == state
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


@pytest.mark.parametrize("variant", ["daad", "daad+"])
def test_resumed_run_is_the_unbroken_run_bit_for_bit(variant: str, tmp_path: Path) -> None:
    c = config(variant=variant, epochs=4)
    train(c, FakePictures(), tmp_path / "unbroken", device="cpu")
    train(config(variant=variant, epochs=2), FakePictures(), tmp_path / "broken", device="cpu")
    state = load_checkpoint(tmp_path / "broken" / CHECKPOINT)
    save_checkpoint(
        tmp_path / "broken" / CHECKPOINT, state | {"score_scale": {"of": "old weights"}}
    )
    torch.manual_seed(99)
    train(c, FakePictures(), tmp_path / "broken", device="cpu", resume=True)
    unbroken, broken = (
        load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("unbroken", "broken")
    )
    assert_same(unbroken, broken)
    for a, b in zip(*map(read_history, (tmp_path / "unbroken", tmp_path / "broken")), strict=True):
        assert a | {"seconds": ""} == b | {"seconds": ""}


def test_load_models_gives_the_trained_networks(trained: Path) -> None:
    c, generator, discriminator, state = load_models(trained, "cpu")
    assert c.variant == "daad+"
    assert not generator.training
    assert not discriminator.training
    assert_same(dict(generator.state_dict()), dict(state["generator"]))
    assert_same(dict(discriminator.state_dict()), dict(state["discriminator"]))


def test_load_models_without_a_discriminator(tmp_path: Path) -> None:
    train(config(variant="ae", epochs=1), FakePictures(2), tmp_path, device="cpu")
    assert load_models(tmp_path, "cpu")[2] is None


@pytest.mark.parametrize(("every", "epochs"), [(2, [2, 4, 5]), (0, [5])])
def test_checkpoints_come_when_asked_and_at_the_end(
    every: int, epochs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr(training, "save_checkpoint", lambda _, state: saved.append(state["epoch"]))
    c = config(variant="ae", epochs=5, checkpoint_every=every)
    train(c, FakePictures(2), tmp_path, device="cpu")
    assert saved == epochs


def test_weights_alone_are_judged_and_not_trained_on(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    whole = (run / CHECKPOINT).stat().st_size
    keep_weights(run / CHECKPOINT)
    assert (run / CHECKPOINT).stat().st_size < 0.4 * whole
    c = config(variant="daad+")
    for one, other in zip(load_models(run)[1:3], load_models(trained)[1:3], strict=True):
        assert_same(one.state_dict(), other.state_dict())
    train(c, FakePictures(), run, device="cpu", resume=True)  # nothing is left to train
    longer = config(variant="daad+", epochs=3)
    with pytest.raises(UserError, match="finished with 2 epochs and holds its weights alone"):
        train(longer, FakePictures(), run, device="cpu", resume=True)


def test_finished_run_has_nothing_left(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / CHECKPOINT).read_bytes()
    train(config(variant="daad+"), FakePictures(), trained, device="cpu", resume=True)
    assert "nothing left to train" in capsys.readouterr().err
    assert (trained / CHECKPOINT).read_bytes() == before


def test_resume_names_the_settings_that_differ(trained: Path) -> None:
    other = config(variant="daad+", lr=1e-3, num_items=6, checkpoint_every=7, epochs=9)
    with pytest.raises(UserError, match=r"num-items \(was 5, now 6\), lr \(was 0.002, now 0.001\)"):
        train(other, FakePictures(), trained, device="cpu", resume=True)


def test_resume_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.ckpt: no such checkpoint"):
        train(config(), FakePictures(), tmp_path, device="cpu", resume=True)


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_broken_checkpoint_is_named(content: bytes | None, trained: Path, tmp_path: Path) -> None:
    whole = (trained / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=r"checkpoint\.ckpt: not a readable checkpoint"):
        load_models(tmp_path, "cpu")


def test_checkpoint_of_another_kind_is_named(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / CHECKPOINT)


def test_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"config": {}, "epoch": 1, "generator": Path("x")}, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / CHECKPOINT)


def test_weights_that_do_not_fit_are_named(trained: Path, tmp_path: Path) -> None:
    state = load_checkpoint(trained / CHECKPOINT)
    state["generator"].pop("head.2.bias")
    save_checkpoint(tmp_path / CHECKPOINT, state)
    with pytest.raises(UserError, match="weights do not fit"):
        load_models(tmp_path, "cpu")
