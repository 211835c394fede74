"""What a run shows and notes while it trains: the progress display and history.csv."""

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text
from torch import Tensor

from daad.config import Config
from daad.files import write_csv

LOSSES = ("reconstruction", "adversarial", "alignment", "discriminator")
COLUMNS = ("epoch", *LOSSES, "auroc", "seconds")

REFRESH = 0.5  # seconds between refreshes of the display on a terminal
PLAIN_REFRESH = 30.0  # and between its lines elsewhere
WRITE_INTERVAL = 5.0  # seconds at least between writings of history.csv


class History:
    """One row an epoch: mean losses, the AUROC where it was measured, seconds of training.

    `rows` are plain dicts of `COLUMNS`, None where a value does not apply; a checkpoint holds
    them, so that a run that goes on from it has the whole history.
    """

    def __init__(self, path: Path, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self._path = path
        self._written = float("-inf")

    def add(self, epoch: int, losses: Mapping[str, float], seconds: float) -> dict[str, Any]:
        """The new row, for an AUROC to be put in."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"epoch": epoch, **losses, "seconds": round(seconds, 3)}
        self.rows.append(row)
        return row

    def write(self, *, always: bool = False) -> None:
        """Rewrite history.csv, unless that was done a few seconds ago and `always` is not set."""
        now = time.monotonic()
        if always or now - self._written >= WRITE_INTERVAL:
            write_csv(
                self._path, COLUMNS, ([_cell(row[key]) for key in COLUMNS] for row in self.rows)
            )
            self._written = now


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Display:
    """Epoch, step rate, time left and latest losses: a bar on a terminal, else a line at times.

    Reading a loss makes the CPU wait for the device, so it is done only when the display is due.
    Use as a context manager; with `console=None` (every process but the first) it does nothing.
    """

    def __init__(
        self, config: Config, steps_per_epoch: int, epochs_done: int, console: Console | None
    ) -> None:
        self._epochs = config.epochs
        self._steps_per_epoch = steps_per_epoch
        self._total = config.epochs * steps_per_epoch
        self._before = self._done = epochs_done * steps_per_epoch
        self._console = console
        self._start = self._shown = time.monotonic()
        self._live: Live | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.fields[pace]}", style="dim"),
                expand=True,
            )
            self._task = self._bar.add_task(
                "",
                total=self._total,
                completed=self._done,
                epoch=f"{epochs_done + 1}/{self._epochs}",
                pace="",
            )
            # Drawn in `step`, when the losses have been read: no thread draws in between.
            self._live = Live(self._bar, console=console, auto_refresh=False)

    def __enter__(self) -> "Display":
        self._start = self._shown = time.monotonic()
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, losses: Mapping[str, Tensor]) -> None:
        """Count one step; show it, with its losses (scalars on any device), if it is time to."""
        self._done += 1
        if self._console is None:
            return
        now = time.monotonic()
        due = PLAIN_REFRESH if self._live is None else REFRESH
        if now - self._shown < due and self._done < self._total:
            return
        self._shown = now
        values = torch.stack(list(losses.values())).tolist()
        # On a terminal by the first letters, as in lambda_rec: four losses then fit one line.
        names = losses if self._live is None else [name[:3] for name in losses]
        text = "  ".join(f"{name} {value:.3g}" for name, value in zip(names, values, strict=True))
        epoch = f"{(self._done - 1) // self._steps_per_epoch + 1}/{self._epochs}"
        pace = self._pace(now)
        if self._live is not None:
            self._bar.update(self._task, completed=self._done, epoch=epoch, pace=pace)
            self._live.update(Group(self._bar, Text(text, style="cyan")), refresh=True)
        else:
            self._console.print(f"epoch {epoch}  {pace}  {text}", highlight=False, soft_wrap=True)

    def _pace(self, now: float) -> str:
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        if self._done == self._total:
            return f"{rate:.3g} steps/s  took {timedelta(seconds=round(now - self._start))}"
        left = timedelta(seconds=round((self._total - self._done) / rate))
        return f"{rate:.3g} steps/s  {left} left"
