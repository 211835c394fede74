"""Training by the clock: the learning rate over its steps, and the deadline it stops at."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daad.io import OutOfTime, UserError, load_checkpoint
from daad.learner import Learner
from daad.network import CHECKPOINT, load_networks
from daad.training import Trainer, train
from tests.helpers.training_runs import FakePictures, assert_same, config, read_history


def test_the_learning_rate_falls_by_a_cosine_over_all_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: dict[str, list[float]] = {}
    step = Learner.step

    def note(learner: Learner, x: Tensor) -> dict[str, Tensor]:
        groups = [group for one in learner.optimizers.values() for group in one.param_groups]
        assert len({group["lr"] for group in groups}) == 1
        rates.setdefault(learner.config.schedule, []).append(groups[0]["lr"])
        return step(learner, x)

    monkeypatch.setattr(Learner, "step", note)
    for schedule in ("constant", "cosine"):
        c = config(variant="daad+", lr=1e-3, epochs=2, batch_size=3, schedule=schedule)
        train(c, FakePictures(6), tmp_path / schedule, device="cpu")
    assert rates["constant"] == [1e-3] * 4
    share = math.sqrt(2) / 2  # of the cosine of 45 degrees
    falling = [1e-3, 1e-3 * (1 + share) / 2, 5e-4, 1e-3 * (1 - share) / 2]
    assert rates["cosine"] == pytest.approx(falling, rel=1e-9)


def test_a_cosine_goes_on_only_to_the_epochs_it_was_made_for(tmp_path: Path) -> None:
    c = config(variant="ae", epochs=2, schedule="cosine")
    pictures = FakePictures()
    with pytest.raises(OutOfTime):
        train(c, pictures, tmp_path / "stopped", device="cpu", deadline=0)
    longer = dataclasses.replace(c, epochs=3)
    with pytest.raises(UserError, match=r"epochs \(was 2, now 3\)"):
        train(longer, pictures, tmp_path / "stopped", device="cpu", resume=True)
    train(c, pictures, tmp_path / "stopped", device="cpu", resume=True)
    train(c, pictures, tmp_path / "whole", device="cpu")
    stopped, whole = (
        load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("stopped", "whole")
    )
    assert_same(stopped, whole)


def test_a_deadline_ends_training_after_an_epoch_that_is_kept(tmp_path: Path) -> None:
    c = config(variant="daad+", epochs=3)
    train(c, FakePictures(), tmp_path / "whole", device="cpu")
    for epoch in (1, 2):
        with pytest.raises(OutOfTime):
            train(
                c, FakePictures(), tmp_path / "cut", device="cpu", resume=epoch > 1,
                deadline=time.monotonic(),
            )  # fmt: skip
        assert load_checkpoint(tmp_path / "cut" / CHECKPOINT)["epoch"] == epoch
        assert len(read_history(tmp_path / "cut")) == epoch
    # The last epoch is the end of it, whatever the time; and so it is when it was done before.
    for _ in range(2):
        late = {"resume": True, "deadline": time.monotonic()}
        train(c, FakePictures(), tmp_path / "cut", device="cpu", **late)
        whole, cut = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "cut"))
        assert_same(cut, whole)


def test_a_deadline_is_looked_at_after_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes in the second of three epochs, and what that was scored as is kept."""
    now = time.monotonic()
    run_epoch = Trainer._run_epoch

    def until(trainer: Trainer, *rest: Any) -> dict[str, float]:
        if trainer.epoch == 1:
            monkeypatch.setattr(time, "monotonic", lambda: now + 100)
        return run_epoch(trainer, *rest)

    monkeypatch.setattr(Trainer, "_run_epoch", until)
    c = config(epochs=3, evaluate_every=1)
    with pytest.raises(OutOfTime):
        train(
            c, FakePictures(), tmp_path, device="cpu", scorer=lambda *_: 0.5, deadline=now + 100
        )  # fmt: skip
    assert load_checkpoint(tmp_path / CHECKPOINT)["epoch"] == 2
    assert [row["auroc"] for row in read_history(tmp_path)] == ["0.5", "0.5"]


def test_the_loss_on_held_out_pictures_is_written_down(tmp_path: Path) -> None:
    c = config(variant="daad+", epochs=2, held_out=0.5, distance="l2")
    held_out = FakePictures(5)
    train(c, FakePictures(), tmp_path, device="cpu", held_out=held_out)
    rows = read_history(tmp_path)
    assert all(float(row["held_out"]) > 0 for row in rows)
    # The last row is of the weights in the checkpoint, and statistics of training.
    c = config(variant="ae", held_out=0.5, statistics="running")
    train(c, FakePictures(), tmp_path / "running", device="cpu", held_out=held_out)
    generator = load_networks(tmp_path / "running")[1].generator
    with torch.no_grad():
        loss = (held_out.values - generator(held_out.values)).square().mean()
    last = read_history(tmp_path / "running")[-1]
    assert float(last["held_out"]) == pytest.approx(loss.item(), rel=1e-4)


def test_training_stops_where_the_held_out_loss_no_longer_falls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = [0.5, 0.3, 0.4, 0.3, 0.2, 0.2, 0.25, 0.3]
    monkeypatch.setattr(
        Trainer, "_held_out_loss", lambda trainer, _: losses[len(trainer.history.rows) - 1]
    )
    c = config(variant="ae", epochs=99, patience=3, held_out=0.5)
    held = {"device": "cpu", "held_out": FakePictures(2)}
    train(c, FakePictures(), tmp_path / "whole", **held)
    assert load_checkpoint(tmp_path / "whole" / CHECKPOINT)["epoch"] == 8  # 0.2 was the fifth
    assert "Stopped after epoch 8" in capsys.readouterr().err
    train(c, FakePictures(), tmp_path / "whole", resume=True, **held)
    assert "nothing left to train" in capsys.readouterr().err
    # What breaks off stops at the same epoch; statistics are recomputed at an early end too.
    with pytest.raises(OutOfTime):
        train(c, FakePictures(), tmp_path / "cut", deadline=0, **held)
    train(c, FakePictures(), tmp_path / "cut", resume=True, **held)
    whole, cut = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "cut"))
    assert_same(cut, whole)
    longer = dataclasses.replace(c, patience=4)
    losses.append(0.1)
    with pytest.raises(OutOfTime):
        train(longer, FakePictures(), tmp_path / "cut", resume=True, deadline=0, **held)


def test_patience_needs_held_out_pictures() -> None:
    with pytest.raises(UserError, match="--held-out above 0"):
        config(patience=3)
