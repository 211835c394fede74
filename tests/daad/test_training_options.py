"""Ways to train that change how it is done, and not what is learned."""

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from daad.io import UserError, load_checkpoint
from daad.network import CHECKPOINT
from daad.training import train
from tests.helpers.training_runs import FakePictures, config, read_history


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own code
def test_a_compiled_network_learns_the_same(tmp_path: Path) -> None:
    c = config(variant="daad+", epochs=2, width=2)
    for name, compiled in (("plain", False), ("compiled", True)):
        train(c, FakePictures(4), tmp_path / name, device="cpu", compile=compiled)
    plain, compiled = (
        load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("plain", "compiled")
    )
    assert plain["generator"].keys() == compiled["generator"].keys()
    rows = [[float(row["reconstruction"]) for row in read_history(tmp_path / name)]
            for name in ("plain", "compiled")]  # fmt: skip
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)


def test_tensorboard_gets_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the package, which is a large one, a writer that notes what it is given."""
    seen = []

    class Writer:
        def __init__(self, log_dir: str, **_: Any) -> None:
            self.log_dir = log_dir

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append((step, name, value))

        def flush(self) -> None:
            pass

        close = flush

    logger = "lightning_fabric.loggers.tensorboard"
    monkeypatch.setattr(f"{logger}._TENSORBOARD_AVAILABLE", True)
    writer = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    train(config(), FakePictures(), tmp_path, device="cpu", tensorboard=True)
    losses = [value for _, name, value in seen if name == "reconstruction"]
    written = [float(row["reconstruction"]) for row in read_history(tmp_path)]
    assert losses == pytest.approx(written, rel=1e-5)
    assert {step for step, _, _ in seen} == {1, 2}


def test_tensorboard_is_asked_for_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = "lightning_fabric.loggers.tensorboard"
    monkeypatch.setattr(f"{logger}._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(f"{logger}._TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(UserError, match="pip install tensorboard"):
        train(config(), FakePictures(), tmp_path, device="cpu", tensorboard=True)


STOPPED = """
import os, signal
from pathlib import Path
from daad import learner, training
from tests.helpers.training_runs import FakePictures, config

step, count = learner.Learner.step, 0

def signalled(self, x):
    global count
    count += 1
    if self.fabric.global_rank == 1 and count == 2:
        signal.raise_signal(signal.SIGTERM)
    return step(self, x)

learner.Learner.step = signalled
try:
    training.train(config(epochs=1000), FakePictures(7), Path({out!r}), device="cpu", devices=2)
except KeyboardInterrupt as error:
    print("stopped", error.number, flush=True)
"""


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_of_them(tmp_path: Path) -> None:
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED.format(out=str(tmp_path / "run")))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stopped 15" in done.stdout
    state = load_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert (state["epoch"], state["step"]) == (2, 0)  # at the end of an epoch, as all agree on it
