"""The reproduction, stopped by its budget or from outside, and started again."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from daad import stopping
from daad.io import UserError, load_checkpoint
from daad.network import CHECKPOINT
from daad.training import OF_TRAINING, Trainer
from reproduction import jobs
from reproduction.jobs import train
from reproduction.tables import Paper
from tests.helpers import paper_data
from tests.helpers.paper_data import body, page_of, paper_of, results, section, without_time
from tests.helpers.scripts import Done
from tests.helpers.training_runs import assert_same, break_off

PED2 = "Table 6, UCSD Ped2"


# Runs of two epochs, with a checkpoint at the end alone; of video two networks alone.
_LONGER = paper_of(epochs=2)
_VIDEO = dataclasses.replace(
    _LONGER.tables["table6-ped2"], rows=_LONGER.tables["table6-ped2"].rows[:2]
)
PAPER = dataclasses.replace(_LONGER, tables={**_LONGER.tables, "table6-ped2": _VIDEO})


def script(data: Path, cwd: Path, *arguments: Any, paper: Paper = PAPER) -> Done:
    """Train both networks on Ped2."""
    arguments = ("--data", data, "--only", "table6-ped2", *arguments)
    return paper_data.script(*arguments, cwd=cwd, paper=paper, train=train)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a call that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    done = script(data, folder)
    assert done.returncode == 0, done.stderr
    return folder


def folder_of(folder: Path, setting: str) -> Path:
    return folder / "out" / "small" / setting / "ped2" / "seed-0"


def networks(folder: Path) -> list[str]:
    """The rows of the page's table."""
    return list(body(section(page_of(folder), PED2)))[1:]


def assert_as_if_unbroken(folder: Path, whole: Path) -> None:
    assert without_time(results(folder)) == without_time(results(whole))
    assert body(section(page_of(folder), PED2)) == body(section(page_of(whole), PED2))
    for setting in ("ae", "daad"):
        one, other = (folder_of(where, setting) for where in (folder, whole))
        assert (one / "scores.csv").read_bytes() == (other / "scores.csv").read_bytes()
        mine, reference = (load_checkpoint(run / CHECKPOINT) for run in (one, other))
        assert_same(mine, reference)


def count_epochs(patch: pytest.MonkeyPatch, late: int | None = None) -> list[int]:
    """Notes the epochs that are trained, counted from 1; in the one `late`, an hour passes."""
    begun: list[int] = []
    monotonic, run_epoch = time.monotonic, Trainer._run_epoch

    def counted(*arguments: Any) -> dict[str, float]:
        begun.append(len(begun) + 1)
        return run_epoch(*arguments)

    def clock() -> float:
        return monotonic() + (3600 if late is not None and len(begun) >= late else 0)

    patch.setattr(Trainer, "_run_epoch", counted)
    patch.setattr(time, "monotonic", clock)
    return begun


def test_a_budget_stops_after_the_epoch_and_nothing_is_lost(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_an_hour = ("--budget-minutes", 30)
    with monkeypatch.context() as patch:  # out of time in AE's first epoch
        begun = count_epochs(patch, late=1)
        done = script(data, tmp_path, *half_an_hour)
    assert done.returncode == 0, done.stderr
    assert begun == [1]
    said = " ".join(done.stdout.split())
    assert "ae, ped2, seed 0: stopped before its last epoch, out of time; it can go on" in said
    assert "Out of time: 1 run(s) have not begun" in said
    assert load_checkpoint(folder_of(tmp_path, "ae") / CHECKPOINT)["epoch"] == 1
    assert not folder_of(tmp_path, "daad").exists()
    assert results(tmp_path) == []
    assert "Not run." in section(page_of(tmp_path), PED2)

    with monkeypatch.context() as patch:  # and in its second, which is its last
        begun = count_epochs(patch, late=1)
        done = script(data, tmp_path, *half_an_hour)
    assert begun == [1]
    assert "stopped" not in done.stdout
    assert "Out of time: 1 run(s) have not begun" in " ".join(done.stdout.split())
    (line,) = results(tmp_path)
    assert (line["setting"], line["minutes"]) == ("ae", "120.0")  # of both calls
    assert networks(tmp_path) == ["AE"]
    assert not folder_of(tmp_path, "daad").exists()

    with monkeypatch.context() as patch:  # DAAD's first
        begun = count_epochs(patch, late=1)
        done = script(data, tmp_path, *half_an_hour)
    assert begun == [1]
    assert "Out of time" not in done.stdout  # no run is left that has not begun
    assert "daad, ped2, seed 0: stopped" in done.stdout
    assert networks(tmp_path) == ["AE"]

    begun = count_epochs(monkeypatch)
    done = script(data, tmp_path)
    assert begun == [1]
    assert "2 runs: 1 finished before, kept" in done.stdout
    assert_as_if_unbroken(tmp_path, whole)


def test_a_budget_stops_runs_of_photographs_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("--only", "figure6", "--categories", "bottle")
    with monkeypatch.context() as patch:
        begun = count_epochs(patch, late=1)
        done = script(data, tmp_path, *common, "--budget-minutes", 30)
    assert begun == [1]
    assert "daad, bottle, seed 0: stopped" in done.stdout
    run = tmp_path / "out" / "small" / "daad" / "bottle" / "seed-0"
    assert load_checkpoint(run / CHECKPOINT)["epoch"] == 1
    assert not (run / "scores.csv").exists()

    begun = count_epochs(monkeypatch)
    assert script(data, tmp_path, *common).returncode == 0
    assert begun == [1, 2, 3]
    assert [line["setting"] for line in results(tmp_path)] == ["daad", "daad+"]
    assert (tmp_path / "out" / "reproduction" / "figure6-small-bottle.png").exists()


def test_a_budget_that_suffices_changes_nothing(data: Path, whole: Path, tmp_path: Path) -> None:
    done = script(data, tmp_path, "--budget-minutes", 30)
    assert "out of time" not in done.stdout.lower()
    assert_as_if_unbroken(tmp_path, whole)


def test_without_a_budget_hours_may_pass(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = count_epochs(monkeypatch, late=1)
    assert script(data, tmp_path).returncode == 0
    assert begun == [1, 2, 3, 4]
    assert_as_if_unbroken(tmp_path, whole)


def test_without_any_budget_there_is_still_a_page(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = count_epochs(monkeypatch)
    done = script(data, tmp_path, "--budget-minutes", 0)
    assert done.returncode == 0, done.stderr
    assert "Out of time: 2 run(s) have not begun" in done.stdout
    assert not (tmp_path / "out" / "small").exists()
    assert page_of(tmp_path).count("Not run.") == 14

    for name in ("small/ae", "reproduction"):
        shutil.copytree(whole / "out" / name, tmp_path / "out" / name, dirs_exist_ok=True)
    (tmp_path / "out" / "reproduction" / "results.csv").unlink()
    script(data, tmp_path, "--budget-minutes", 0)
    assert begun == []
    assert results(tmp_path) == results(whole)[:1]
    assert networks(tmp_path) == ["AE"]


def test_a_run_that_fails_does_not_keep_the_others_from_their_turn(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_epoch = Trainer._run_epoch

    def diverging(trainer: Trainer, *arguments: Any) -> dict[str, float]:
        if trainer.config.variant == "ae":
            raise UserError("epoch 1: not finite any more")
        return run_epoch(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_epoch", diverging)
        done = script(data, tmp_path)
    assert "ae, ped2, seed 0: failed: epoch 1: not finite any more" in " ".join(done.stdout.split())
    assert done.returncode != 0
    assert "1 run(s) failed, see above: ae, ped2, seed 0" in " ".join(done.stderr.split())
    assert networks(tmp_path) == ["DAAD"]


def test_calls_side_by_side_share_the_work(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process is at AE, and finishes it while this one is at DAAD."""
    begun = count_epochs(monkeypatch)
    run = folder_of(tmp_path, "ae")
    run.parent.mkdir(parents=True)
    with FileLock(run.with_name(".seed-0.lock")):
        done = script(data, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ae, ped2, seed 0: left to another process" in " ".join(done.stdout.split())
    assert begun == [1, 2]
    assert networks(tmp_path) == ["DAAD"]

    # This one saw that AE is missing before the other was done.
    alone = jobs.alone_at

    def finish_first(run: Path) -> FileLock:
        shutil.copytree(folder_of(whole, "ae"), run)
        return alone(run)

    monkeypatch.setattr(jobs, "alone_at", finish_first)
    done = script(data, tmp_path)
    assert begun == [1, 2]
    assert_as_if_unbroken(tmp_path, whole)


def test_what_broke_off_goes_on(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AE is finished and in the page, DAAD breaks off after a checkpoint."""
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "SAVE_EVERY", 0)
        break_off(patch, epoch=4)
        assert script(data, tmp_path).returncode != 0
    assert without_time(results(tmp_path)) == without_time(results(whole)[:1])
    assert networks(tmp_path) == ["AE"]
    kept = folder_of(tmp_path, "ae") / CHECKPOINT
    before = kept.stat().st_mtime_ns

    begun = count_epochs(monkeypatch)
    done = script(data, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 runs: 1 finished before, kept" in done.stdout
    assert begun == [1]
    assert kept.stat().st_mtime_ns == before
    assert not set(OF_TRAINING) & set(load_checkpoint(kept))
    assert networks(tmp_path) == ["AE", "DAAD"]
    assert without_time(results(tmp_path)) == without_time(results(whole))
    scores = [(folder_of(where, "daad") / "scores.csv").read_bytes() for where in (tmp_path, whole)]
    assert scores[0] == scores[1]
