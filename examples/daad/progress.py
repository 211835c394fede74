"""What a run shows and notes while it trains: the progress display and history.csv."""

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text
from torch import Tensor

from daad.io import write_csv

LOSSES = ("reconstruction", "adversarial", "alignment", "discriminator")
COLUMNS = ("epoch", *LOSSES, "held_out", "auroc", "seconds")

REFRESH = 0.5  # seconds between refreshes of the display on a terminal
PLAIN_REFRESH = 30.0  # and between its lines elsewhere
WARM_UP, ESTIMATED = 2, 12  # steps that say little of the others; after which the time is foretold
LONG = 3600.0  # seconds, from which on one would like to know what takes less
WRITE_INTERVAL = 5.0  # seconds at least between writings of history.csv


class History:
    """One row an epoch: mean losses, that on held-out pictures, the AUROC where it was measured, seconds.

    `rows` are dicts of `COLUMNS`, None where a value does not apply; a checkpoint holds them.
    """

    def __init__(self, path: Path, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self._path = path
        self._written = float("-inf")

    def add(self, epoch: int, losses: Mapping[str, float]) -> dict[str, Any]:
        """Append a row and return it, for the rest to be put in."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"epoch": epoch, **losses}
        self.rows.append(row)
        return row

    def write(self, *, always: bool = False) -> None:
        """Rewrite history.csv, unless that was done a few seconds ago and `always` is not set."""
        now = time.monotonic()
        if always or now - self._written >= WRITE_INTERVAL:
            rows = [[_cell(row.get(key)) for key in COLUMNS] for row in self.rows]
            write_csv(self._path, COLUMNS, rows)
            self._written = now


def _spoken(seconds: float) -> str:
    """Say a time in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, round(seconds))} second(s)"


def _cell(value: float | int | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


class Display(Progress):
    """Epoch, step rate, time left and latest losses: a bar on a terminal, else a line at times.

    Reading a loss makes the CPU wait for the device, so it is done only when the display is due.
    `steps` are those of an epoch, `done` those of all epochs that were done before. With `console` None (every process but the first) it does nothing.
    """

    def __init__(
        self, epochs: int, steps: int, done: int, console: Console | None, advice: str = ""
    ) -> None:
        """Begin to count. advice: is said beside the time that training will take, if it is hours."""
        self._advice, self._warm = advice, 0.0
        self._losses = ""
        self._bar = console is not None and console.is_terminal
        columns = [
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[pace]}", style="dim"),
        ]
        # Drawn in `step`, when the losses have been read: no thread draws in between.
        super().__init__(
            *columns, console=console, auto_refresh=False, expand=True, disable=not self._bar
        )
        self._silent = console is None
        self._epochs, self._steps = epochs, steps
        self._before = self._done = done
        self._shown = self._begun = time.monotonic()
        first = f"{done // steps + 1}/{epochs}"
        self.add_task("", total=epochs * steps, completed=self._done, epoch=first, pace="")

    def get_renderables(self) -> Any:
        """Give the bar, and the losses in a line below it."""
        return [*super().get_renderables(), Text(self._losses, style="cyan")]

    def step(self, losses: Mapping[str, Tensor]) -> None:
        """Count one step; show it, with its losses (scalars on any device), if it is time to."""
        self._done += 1
        if self._silent:
            return
        if self._done - self._before in (WARM_UP, ESTIMATED):
            self._foretell(losses)
        now = time.monotonic()
        due = REFRESH if self._bar else PLAIN_REFRESH
        if now - self._shown < due and self._done < self._epochs * self._steps:
            return
        self._shown = now
        values = torch.stack(list(losses.values())).tolist()
        # On a terminal by the first letters, as in lambda_rec: four losses then fit one line.
        names = [name[:3] for name in losses] if self._bar else list(losses)
        texts = [f"{name} {value:.3g}" for name, value in zip(names, values, strict=True)]
        self._losses = "  ".join(texts)
        epoch = f"{(self._done - 1) // self._steps + 1}/{self._epochs}"
        pace = self._pace(now - self._begun)
        self.update(self.task_ids[0], completed=self._done, epoch=epoch, pace=pace, refresh=True)
        if not self._bar:
            text = f"epoch {epoch}  {pace}  {self._losses}"
            self.console.print(text, highlight=False, soft_wrap=True)

    def _foretell(self, losses: Mapping[str, Tensor]) -> None:
        """Say after the first steps how long the rest will take."""
        torch.stack(list(losses.values())).tolist()  # a GPU may not have done them yet
        now = time.monotonic()
        if self._done - self._before == WARM_UP:
            self._warm = now
            return
        left = self._epochs * self._steps - self._done
        seconds = left * (now - self._warm) / (ESTIMATED - WARM_UP)
        text = f"{left} steps to go, in about {_spoken(seconds)}"
        if seconds >= LONG and self._advice:
            text += f". {self._advice}"
        self.console.print(text, highlight=False, soft_wrap=True)

    def _pace(self, seconds: float) -> str:
        """Say the rate over the whole run: rich's own is that of the last few seconds."""
        rate = (self._done - self._before) / max(seconds, 1e-9)
        left = self._epochs * self._steps - self._done
        if not left:
            return f"{rate:.3g} steps/s  took {timedelta(seconds=round(seconds))}"
        return f"{rate:.3g} steps/s  {timedelta(seconds=round(left / rate))} left"
