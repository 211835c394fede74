"""Checkpoints: whole and plain, continued from exactly, refused where they are broken."""

import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from daad import training
from daad.config import Config
from daad.io import Interrupted, OutOfTime, UserError, load_checkpoint, save_checkpoint
from daad.learner import Learner
from daad.network import CHECKPOINT, Discriminator, Generator, Networks, load_networks
from daad.training import keep_weights, train
from tests.helpers.picture_files import one_line
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


@settings(max_examples=4, deadline=None)
@given(
    variant=st.sampled_from(["ae", "memae", "daad", "daad+"]),
    first=st.integers(1, 2),
    then=st.integers(1, 2),
    pictures=st.integers(2, 6),
    memory_init=st.sampled_from(["uniform", "blocks"]),
)
@example(variant="daad+", first=2, then=2, pictures=6, memory_init="uniform")
def test_some_epochs_and_the_rest_are_all_of_them_bit_for_bit(
    variant: str, first: int, then: int, pictures: int, memory_init: str
) -> None:
    division = None if variant == "memae" else (2, 2, 1)
    choices = {"variant": variant, "division": division, "memory_init": memory_init}
    whole, part = (config(epochs=epochs, **choices) for epochs in (first + then, first))
    with tempfile.TemporaryDirectory() as name:
        unbroken, broken = Path(name, "unbroken"), Path(name, "broken")
        train(whole, FakePictures(pictures), unbroken, device="cpu")
        train(part, FakePictures(pictures), broken, device="cpu")
        state = load_checkpoint(broken / CHECKPOINT)
        save_checkpoint(broken / CHECKPOINT, state | {"score_scale": {"of": "old weights"}})
        torch.manual_seed(99)
        train(whole, FakePictures(pictures), broken, device="cpu", resume=True)
        assert_same(*(load_checkpoint(folder / CHECKPOINT) for folder in (unbroken, broken)))
        for a, b in zip(read_history(unbroken), read_history(broken), strict=True):
            assert a | {"seconds": ""} == b | {"seconds": ""}


def test_load_models_gives_the_trained_networks(trained: Path) -> None:
    c, (generator, discriminator), state = load_networks(trained)
    assert c.variant == "daad+"
    assert not generator.training
    assert not discriminator.training
    assert_same(dict(generator.state_dict()), dict(state["generator"]))
    assert_same(dict(discriminator.state_dict()), dict(state["discriminator"]))


def test_load_models_without_a_discriminator(tmp_path: Path) -> None:
    train(config(variant="ae", epochs=1), FakePictures(2), tmp_path, device="cpu")
    assert load_networks(tmp_path)[1].discriminator is None


def test_checkpoints_come_by_the_clock_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute a step, of which there are two an epoch."""
    saved = []
    now = 0.0
    step = Learner.step

    def minute(learner: Learner, x: Tensor) -> dict[str, Tensor]:
        nonlocal now
        now += 60
        return step(learner, x)

    def note(_: Path, state: dict[str, Any]) -> None:
        saved.append((state["epoch"], state["step"]))

    monkeypatch.setattr(Learner, "step", minute)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(training, "save_checkpoint", note)
    train(config(variant="ae", epochs=6), FakePictures(6), tmp_path, device="cpu")
    assert saved == [(2, 1), (5, 0), (6, 0)]


def step_and_signal(patch: pytest.MonkeyPatch, at: int, number: int) -> None:
    """Let a signal arrive during this step, counted from 1."""
    count = 0
    step = Learner.step

    def signalled(learner: Learner, x: Tensor) -> dict[str, Tensor]:
        nonlocal count
        count += 1
        if count == at:
            signal.raise_signal(number)
        return step(learner, x)

    patch.setattr(Learner, "step", signalled)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 2, 3])  # in the middle of an epoch, at its end, after it
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_signal_saves_the_step_at_hand_and_nothing_is_lost(
    number: int, at: int, schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = config(variant="daad+", epochs=3, schedule=schedule, memory_init="blocks")
    train(c, FakePictures(), tmp_path / "whole", device="cpu")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        step_and_signal(patch, at, number)
        with pytest.raises(Interrupted, match="--resume goes on") as caught:
            train(c, FakePictures(), tmp_path / "cut", device="cpu")
    assert caught.value.number == number
    assert signal.getsignal(number) == before
    state = load_checkpoint(tmp_path / "cut" / CHECKPOINT)
    assert 2 * state["epoch"] + state["step"] == at
    torch.manual_seed(99)
    train(c, FakePictures(), tmp_path / "cut", device="cpu", resume=True)
    whole, cut = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "cut"))
    assert_same(cut, whole)
    histories = [read_history(tmp_path / name) for name in ("whole", "cut")]
    for one, other in zip(*histories, strict=True):
        assert one | {"seconds": ""} == other | {"seconds": ""}


def test_a_second_signal_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Learner.step

    def twice(learner: Learner, x: Tensor) -> dict[str, Tensor]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return step(learner, x)

    monkeypatch.setattr(Learner, "step", twice)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(config(), FakePictures(), tmp_path, device="cpu")
    assert not isinstance(caught.value, Interrupted)
    assert not (tmp_path / CHECKPOINT).exists()


def test_weights_alone_are_judged_and_not_trained_on(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    whole = (run / CHECKPOINT).stat().st_size
    keep_weights(run / CHECKPOINT)
    assert (run / CHECKPOINT).stat().st_size < 0.4 * whole
    c = config(variant="daad+")
    for one, other in zip(load_networks(run)[1], load_networks(trained)[1], strict=True):
        assert_same(one.state_dict(), other.state_dict())
    train(c, FakePictures(), run, device="cpu", resume=True)  # nothing is left to train
    longer = config(variant="daad+", epochs=3)
    with pytest.raises(UserError, match="finished with 2 epochs and holds its weights alone"):
        train(longer, FakePictures(), run, device="cpu", resume=True)


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """It knows no steps within an epoch."""
    c = config(variant="ae", epochs=3)
    train(c, FakePictures(), tmp_path / "whole", device="cpu")
    with pytest.raises(OutOfTime):
        train(c, FakePictures(), tmp_path / "old", device="cpu", deadline=0)
    state = load_checkpoint(tmp_path / "old" / CHECKPOINT)
    for key in ("step", "totals", "seconds"):
        del state[key]
    save_checkpoint(tmp_path / "old" / CHECKPOINT, state)
    train(c, FakePictures(), tmp_path / "old", device="cpu", resume=True)
    whole, old = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "old"))
    assert_same(old, whole)


def test_finished_run_has_nothing_left(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / CHECKPOINT).read_bytes()
    train(config(variant="daad+"), FakePictures(), trained, device="cpu", resume=True)
    assert "nothing left to train" in capsys.readouterr().err
    assert (trained / CHECKPOINT).read_bytes() == before


def test_resume_names_the_settings_that_differ(trained: Path) -> None:
    other = config(variant="daad+", lr=1e-3, num_items=6, evaluate_every=7, epochs=9)
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
        load_networks(tmp_path)


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
        load_networks(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_items", 10**9), ("width", 10**9), ("num_items", 2.5), ("num_items", True)),
        *(("precision", "99"), ("variant", "vae"), ("lr", float("nan")), ("lr", "fast")),
        *(("division", (8, 8)), ("division", [8, "8", 1]), ("division", "all"), ("levels", 40)),
        *(("epochs", None), ("image_size", -32), ("renormalize", 1), ("seed", 2**70)),
    ],
)
def test_a_damaged_configuration_is_refused_before_memory_is_taken(
    name: str, value: object, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_checkpoint(trained / CHECKPOINT)
    save_checkpoint(tmp_path / CHECKPOINT, state | {"config": state["config"] | {name: value}})
    build = Networks.build

    def on_meta(c: Config) -> Networks:
        networks = build(c)
        assert networks.device.type == "meta", "memory is taken"
        return networks

    monkeypatch.setattr(Networks, "build", on_meta)
    assert "checkpoint.ckpt" in one_line(lambda: load_networks(tmp_path))


@pytest.mark.parametrize("content", [None, [], "daad", {"variant": ["daad"]}, {"colour": "red"}])
def test_what_is_no_configuration_is_refused(
    content: object, trained: Path, tmp_path: Path
) -> None:
    state = load_checkpoint(trained / CHECKPOINT)
    save_checkpoint(tmp_path / CHECKPOINT, state | {"config": content})
    assert "configuration" in one_line(lambda: load_networks(tmp_path))
