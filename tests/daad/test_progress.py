"""The display shows what it should as seldom as it should; history.csv is whole at any time."""

import csv
import io
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from daad import progress
from daad.config import Config
from daad.progress import Display, History

CONFIG = Config(epochs=3).resolve()


class CountedLosses(Mapping[str, Tensor]):
    """Two losses that count how often they are read."""

    def __init__(self) -> None:
        self.reads = 0

    def __getitem__(self, name: str) -> Tensor:
        self.reads += 1
        return torch.tensor({"reconstruction": 0.012345, "alignment": 2.5}[name])

    def __iter__(self) -> Iterator[str]:
        return iter(("reconstruction", "alignment"))

    def __len__(self) -> int:
        return 2


def show(console: Console | None, epochs_done: int = 0) -> CountedLosses:
    """Run through the epochs of `CONFIG`, 10 steps each."""
    losses = CountedLosses()
    with Display(CONFIG.epochs, 10, 10 * epochs_done, console) as display:
        for _ in range(10 * (CONFIG.epochs - epochs_done)):
            display.step(losses)
    return losses


@pytest.mark.parametrize("terminal", [True, False])
def test_losses_are_read_only_when_they_are_shown(terminal: bool) -> None:
    text = io.StringIO()
    losses = show(Console(file=text, force_terminal=terminal, width=80))
    # Two at the end and at the two steps that foretell; two more if half a second should pass
    assert losses.reads <= 8
    shown = "rec 0.0123  ali 2.5" if terminal else "reconstruction 0.0123  alignment 2.5"
    assert shown in text.getvalue()
    assert "took 0:00:00" in text.getvalue()


def test_other_processes_show_and_read_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert show(None).reads == 0
    assert capfd.readouterr() == ("", "")


def test_plain_lines_say_where_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_REFRESH", 0.0)
    text = io.StringIO()
    show(Console(file=text, width=40), epochs_done=1)
    lines = text.getvalue().splitlines()
    assert lines.pop(11) == "8 steps to go, in about 1 second(s)"
    assert len(lines) == 20  # one a step, none of them folded at 40 columns
    assert [line.split("  ")[0] for line in lines] == 10 * ["epoch 2/3"] + 10 * ["epoch 3/3"]
    assert all(re.search(r"steps/s  \d:\d\d:\d\d left  recon", line) for line in lines[:-1])


def test_bar_fits_80_columns_with_every_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    text = io.StringIO()
    losses = {name: torch.tensor(0.00123456) for name in progress.LOSSES}
    with Display(1000, 10, 9890, Console(file=text, force_terminal=True, width=80)) as display:
        for _ in range(110):
            display.step(losses)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert "…" not in shown
    assert "epoch 990/1000" in shown
    assert "rec 0.00123  adv 0.00123  ali 0.00123  dis 0.00123\n" in shown


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (0.01, "988 steps to go, in about 10 second(s)\n"),
        (0.5, "988 steps to go, in about 8 minutes\n"),
        (20.0, "988 steps to go, in about 5 hours. Take less.\n"),
        (600.0, "988 steps to go, in about 7 days. Take less.\n"),
    ],
)
def test_the_time_is_foretold_and_what_takes_less(
    step: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(progress, "PLAIN_REFRESH", 1e9)
    text = io.StringIO()
    with Display(100, 10, 0, Console(file=text, width=200), "Take less.") as display:
        for index in range(20):
            now += step if index >= 2 else 5.0  # the first ones are slow
            display.step(CountedLosses())
    assert text.getvalue() == words


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_history_is_blank_where_a_value_does_not_apply(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv", [])
    row = history.add(1, {"reconstruction": 0.1234567})
    row |= {"auroc": 0.5, "seconds": 2.346}
    history.write(always=True)
    assert read(tmp_path / "history.csv") == [
        {
            **{"epoch": "1", "reconstruction": "0.123457", "seconds": "2.346"},
            **{"adversarial": "", "alignment": "", "discriminator": "", "auroc": "0.5"},
            "held_out": "",
        }
    ]


def test_history_is_rewritten_every_few_seconds_and_when_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    path = tmp_path / "history.csv"
    history = History(path, [])
    lengths = []
    for epoch, seconds, always in [(1, 0, False), (2, 1, False), (3, 1, True), (4, 9, False)]:
        now += seconds
        history.add(epoch, {"reconstruction": 0.1})
        history.write(always=always)
        lengths.append(len(read(path)))
    assert lengths == [1, 1, 3, 4]
