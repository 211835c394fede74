"""The figures of the page: which are drawn from the runs there are, and curves from the records."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from daad.folder import METRICS
from daad.io import read_json, write_atomically
from daad.mvtec import Category, table_place
from daad.network import CHECKPOINT
from daad.report import DPI, INK, PALE, calm, save_figure
from daad.task import Task
from reproduction.figures import area_figure, pick_samples, reconstruction_figure, toy_figure
from reproduction.records import Record, is_finished, run_folder
from reproduction.scales import Scale
from reproduction.summaries import matching, summarize
from reproduction.tables import Paper, Row, Table, rows_that_fit

PHOTO_DPI = 96  # dots an inch in Figures 2 and 5: many photographs make large files
SHOWN = 4  # test pictures of a category in Figures 2 and 5
CURVE = (5.4, 3.3)  # inches
# Of categories, from Paul Tol's muted scheme: blue and orange are good and anomalous everywhere.
COLOURS = ("#44AA99", "#882255", "#999933", "#332288")
# Figures drawn from what lies in the folders of runs: the rows of which table they show; all but the
# last show pictures. Figures of curves: the number at the end of a row's label, and what it is.
FROM_RUNS = {"figure2": "figure2", "figure5": "table4", "figure6": "figure6"}
RECONSTRUCTIONS = ("figure2", "figure5")
CURVES = {"table4": "division rate r", "figure7": "memory size, the paper's N"}


@dataclass(frozen=True)
class Drawer:
    """Draws figures at a scale into `folder`, from runs in `out` of one seed, the lowest they share.

    tasks: the data there is, by the names of its runs' folders.
    """

    folder: Path
    out: Path
    paper: Paper
    scale: Scale
    records: Sequence[Record]
    tasks: Mapping[str, Task[Any]]
    device: torch.device

    def draw(self, names: Sequence[str]) -> None:
        """Write those of the figures `names` for which there is something, whole or not at all."""
        for name in names:
            for path, figure in self.figures(name):
                dpi = PHOTO_DPI if name in RECONSTRUCTIONS else DPI
                values = (
                    curve_values(self.records, name, self.paper, self.scale)
                    if name in CURVES
                    else ""
                )
                save_figure(self.folder / path, figure, dpi, values)
            if name.startswith("table6-"):
                self._copy_curve(name)

    def figures(self, name: str) -> Iterator[tuple[str, Figure]]:
        """Draw what there is of the figure `name`: names of files, and what they show."""
        if name == "figure1":
            yield "figure1.png", toy_figure()
        if name in CURVES:
            series, papers = _series(self.records, name, self.paper, self.scale)
            if any(len(one.values) > 1 for one in series):
                yield f"{name}-{self.scale.name}.png", curve_figure(CURVES[name], series, papers)
        if name in FROM_RUNS:
            for category, runs in self.runs(FROM_RUNS[name]):
                path = f"{name}-{self.scale.name}-{category.name}.png"
                if name not in RECONSTRUCTIONS:
                    yield path, area_figure(category, runs)
                elif all((run / CHECKPOINT).is_file() for run in runs.values()):
                    samples = pick_samples(category, SHOWN)
                    yield path, reconstruction_figure(category, samples, runs, self.device)

    def runs(self, name: str) -> Iterator[tuple[Category, dict[str, Path]]]:
        """Find the categories with runs of all rows of a table that fit, and these runs' folders."""
        table = self.paper.tables[name]
        rows, _ = rows_that_fit(table, self.scale)
        used = matching(self.records, table, self.scale)
        for subject in sorted({record.subject for record in used}, key=table_place):
            category = self.tasks.get(subject)
            here = {row.label: self._seeds_here(table, row, subject, used) for row in rows}
            if not (isinstance(category, Category) and all(here.values())):
                continue
            shared = set.intersection(*map(set, here.values()))
            runs = {}
            for row in rows:
                seed = min(shared or here[row.label])
                runs[row.label] = self._folder(row.setting.run, subject, seed)
            yield category, runs

    def _seeds_here(
        self, table: Table, row: Row, subject: str, records: Sequence[Record]
    ) -> list[int]:
        """Find the seeds of a row's runs; a run of the records may be elsewhere, and here only begun."""
        name = row.setting.run
        return [
            record.seed
            for record in records
            if (record.setting, record.subject) == (name, subject)
            and is_finished(
                self._folder(name, subject, record.seed),
                row.setting.config(table.kind, self.scale, record.seed),
            )
        ]

    def _copy_curve(self, name: str) -> None:
        """Copy the score curve of DAAD's run on a video, of the first clip with frames of both kinds."""
        for record in matching(self.records, self.paper.tables[name], self.scale):
            run = self._folder(record.setting, record.subject, record.seed)
            try:
                clips = read_json(run / METRICS)["clips"] if record.setting == "daad" else {}
            except (OSError, KeyError, ValueError):  # the run is elsewhere, or damaged
                continue
            mixed = [clip for clip, of in clips.items() if 0 < of["abnormal"] < of["frames"]]
            source = run / "figures" / "curves" / f"{mixed[0]}.png" if mixed else run
            if source.is_file():
                target = self.folder / f"{name}-{self.scale.name}-{mixed[0]}.png"
                write_atomically(target, partial(shutil.copyfile, source))
                return

    def _folder(self, setting: str, subject: str, seed: int) -> Path:
        return run_folder(self.out, self.scale.name, setting, subject, seed)


# Figure 7 and Table 4: AUROC by a number


@dataclass(frozen=True)
class Series:
    """A curve: AUROCs by a number such as N or r, for each number those of all seeds."""

    name: str
    values: Mapping[float, Sequence[float]]


def curve_values(records: Sequence[Record], name: str, paper: Paper, scale: Scale) -> str:
    """Write what a figure of `CURVES` shows; its file says so too, by which an old one is known."""
    series, _ = _series(records, name, paper, scale)
    return json.dumps(
        {one.name: {f"{n:g}": list(v) for n, v in one.values.items()} for one in series}
    )


def _series(
    records: Sequence[Record], name: str, paper: Paper, scale: Scale
) -> tuple[list[Series], dict[float, float]]:
    """Give a curve of AUROC by the number of a row's label for each category; and the paper's means."""
    table = paper.tables[name]
    numbers = {row.label: float(row.label.split()[-1]) for row in table.rows}
    used = matching(records, table, scale)
    subjects = sorted({record.subject for record in used}, key=table_place)
    values: dict[str, dict[float, Sequence[float]]] = {subject: {} for subject in subjects}
    for summary in summarize(records, table, scale, subjects):
        if summary.subject is not None:
            values[summary.subject][numbers[summary.row.label]] = summary.values
    papers = {numbers[row.label]: row.paper for row in table.rows if row.paper is not None}
    return [Series(subject, found) for subject, found in values.items()], papers


def curve_figure(x_label: str, series: Sequence[Series], paper: Mapping[float, float]) -> Figure:
    """Draw AUROC by a number on a logarithmic axis: a line of means with a dot for each seed.

    An error bar is the seeds' standard deviation to either side.
    Where there are more series than colours, each is a thin line and their mean stands out.
    paper: the paper's means over its categories, squares on a dashed line.
    """
    figure = Figure(figsize=CURVE, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    calm(axes)
    drawn = [one for one in series if one.values]
    if len(drawn) <= len(COLOURS):
        for one, colour in zip(drawn, COLOURS, strict=False):
            _draw_values(axes, one, colour)
    else:
        for one in drawn:
            label = None if one is not drawn[0] else f"{len(drawn)} categories"
            axes.plot(*_means(one), color=PALE, linewidth=0.7, alpha=0.6, label=label)
        mean = _mean_series(drawn)
        if mean.values:
            _draw_values(axes, mean, COLOURS[0])
    if paper:
        numbers = sorted(paper)
        style: dict[str, Any] = {
            "linestyle": "--",
            "linewidth": 1.2,
            "marker": "s",
            "markersize": 4.5,
        }
        figures = [paper[place] for place in numbers]
        label = "the paper, 15 categories"
        axes.plot(numbers, figures, color=INK, mfc="white", label=label, **style)
    _log_axis(axes, [number for one in series for number in one.values] + list(paper))
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel("AUROC", fontsize=9, color=INK)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _means(series: Series) -> tuple[list[float], list[float]]:
    numbers = sorted(series.values)
    return numbers, [float(np.mean(series.values[number])) for number in numbers]


def _mean_series(several: Sequence[Series]) -> Series:
    """Average the series' means, at the numbers that all of them have."""
    common = set.intersection(*(set(one.values) for one in several))
    means = {
        number: [float(np.mean([np.mean(one.values[number]) for one in several]))]
        for number in common
    }
    return Series("their mean", means)


def _draw_values(axes: Axes, series: Series, colour: str) -> None:
    numbers, means = _means(series)
    line = len(numbers) > 1  # else the legend would show one that there is not
    if line:
        axes.plot(numbers, means, color=colour, linewidth=1.8, label=series.name)
    dots = [(number, value) for number in numbers for value in series.values[number]]
    label = None if line else series.name
    style: dict[str, Any] = {"s": 16, "color": colour, "alpha": 0.6, "linewidth": 0, "zorder": 3}
    axes.scatter(*zip(*dots, strict=True), label=label, **style)
    several = [number for number in numbers if len(series.values[number]) > 1]
    middles = np.array([np.mean(series.values[number]) for number in several])
    spreads = np.array([np.std(series.values[number], ddof=1) for number in several])
    axes.vlines(several, middles - spreads, middles + spreads, color=colour, linewidth=1)


def _log_axis(axes: Axes, numbers: Sequence[float]) -> None:
    """Name the numbers themselves at a logarithmic x axis, less those too near to one before."""
    nearest = (max(numbers) / min(numbers)) ** 0.07  # of two labels that stand clear of each other
    shown: list[float] = []
    for number in numbers:
        if all(max(number, other) / min(number, other) > nearest for other in shown):
            shown.append(number)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(shown)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
