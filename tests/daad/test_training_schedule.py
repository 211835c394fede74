"""Training by the clock: the learning rate over its steps, and the deadline it stops at."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from daad.io import OutOfTime, UserError, load_checkpoint
from daad.learner import Learner
from daad.network import CHECKPOINT
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
