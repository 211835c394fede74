"""The script stopped and started again, and several processes at once."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import daad_mvtec
from tests.helpers.mvtec_script import SMALL, TINY, make_data, script
from tests.helpers.scripts import refused, table

SCRIPT = Path(daad_mvtec.__file__)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
def test_resume_goes_on_as_if_unbroken(data, tmp_path):
    common = ["train", "--root", data, "--category", "gear", "--preset", "paper", *SMALL.split()]
    whole = script(*common, "--epochs", 3, "--out", "whole", cwd=tmp_path)
    first = script(*common, "--epochs", 2, "--out", "broken", cwd=tmp_path)
    again = script(*common, "--epochs", 3, "--out", "broken", "--resume", cwd=tmp_path)
    assert (whole.returncode, first.returncode, again.returncode) == (0, 0, 0), again.stderr
    one, other = (
        torch.load(tmp_path / out / "gear" / "checkpoint.ckpt", weights_only=True)["generator"]
        for out in ("whole", "broken")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    scores = [(tmp_path / out / "gear" / "scores.csv").read_text() for out in ("whole", "broken")]
    assert scores[0] == scores[1]


def test_two_processes_at_one_run_are_refused(data, tmp_path):
    common = ("train", "--root", data, "--category", "gear", "--out", tmp_path, *TINY.split())
    with FileLock(tmp_path / ".gear.lock"):
        refused(script(*common, cwd=tmp_path), "gear: another process is at this run")
        assert not (tmp_path / "gear").exists()
    assert script(*common, cwd=tmp_path).returncode == 0


def test_resume_says_what_it_goes_on_from(data, tmp_path):
    common = ("train", "--root", data, "--category", "gear", "--out", tmp_path / "out")
    common = (*common, "--resume", *TINY.split())
    done = script(*common, cwd=tmp_path)
    assert "no checkpoint to go on from, so training starts at the beginning" in done.stderr
    run = tmp_path / "out" / "gear"
    (run / ".77.88.ckpt").touch()
    settings = json.loads((run / "config.json").read_text())
    settings["versions"]["torch"] = "1.0"
    (run / "config.json").write_text(json.dumps(settings))
    done = script(*common, cwd=tmp_path)
    assert done.returncode == 0
    assert "began with other versions (torch 1.0, now " in done.stderr
    assert "nothing left to train" in done.stderr
    assert not (run / ".77.88.ckpt").exists()


@pytest.mark.slow
def test_a_run_that_is_told_to_end_goes_on_later(data, tmp_path):
    command = [sys.executable, str(SCRIPT), "train", "--root", str(data), "--category", "gear"]
    command += [*SMALL.split(), "--preset", "paper", "--epochs", "100000"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    run = tmp_path / "runs" / "daad" / "gear"
    while not (run / "history.csv").exists():  # it trains
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command with --resume goes on" in error
    before = torch.load(run / "checkpoint.ckpt", weights_only=True)["epoch"]
    process = subprocess.Popen([*command, "--resume"], cwd=tmp_path, stderr=subprocess.PIPE)
    while len(table(run / "history.csv")) < before + 2:
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    epochs = [int(row["epoch"]) for row in table(run / "history.csv")]
    assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.slow
def test_two_processes_make_one_run(data, tmp_path):
    command = [sys.executable, str(SCRIPT), "train", "--root", str(data), "--category", "gear"]
    command += ["--variant", "daad+", "--devices", "2", *TINY.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "daad+" / "gear" / "metrics.json").exists()
    assert done.stdout.count("The score on the test set") == 1
