"""The figures of the page, drawn from the runs and records there are."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from daad.checkpoint import CHECKPOINT
from daad.data import Category, table_place
from daad.files import write_atomically
from daad.plotting import DPI, save_figure
from paper.figures import Series, area_figure, curve_figure, pick_samples, reconstruction_figure
from paper.jobs import Subject
from paper.records import Record, is_finished, run_folder
from paper.summaries import matching, summarize
from paper.tables import TABLES, Row, Table, rows_that_fit
from paper.toy import toy_figure

PHOTO_DPI = 96  # dots an inch in Figures 2 and 5: many photographs make large files
SHOWN = 4  # test pictures of a category in Figures 2 and 5
# Figures drawn from what lies in the folders of runs: the rows of which table they show; all but the
# last show pictures. Figures of curves: the number at the end of a row's label, and what it is.
FROM_RUNS = {"figure2": "figure2", "figure5": "table4", "figure6": "figure6"}
RECONSTRUCTIONS = ("figure2", "figure5")
CURVES = {"table4": "division rate r", "figure7": "memory size, the paper's N"}


@dataclass(frozen=True)
class Drawer:
    """Draws figures at a scale into `folder`, from runs in `out` of one seed, the lowest they share.

    subjects: the data there is, by the names of its runs.
    """

    folder: Path
    out: Path
    scale: str
    records: Sequence[Record]
    subjects: Mapping[str, Subject]
    device: torch.device

    def draw(self, names: Sequence[str]) -> None:
        """Write each of the figures `names` for which there is something, whole or not at all."""
        for name in names:
            for path, figure in self._figures(name):
                dpi = PHOTO_DPI if name in RECONSTRUCTIONS else DPI
                values = curve_values(self.records, name, self.scale) if name in CURVES else ""
                save_figure(self.folder / path, figure, dpi, values)
            if name.startswith("table6-"):
                self._copy_curve(name)

    def _figures(self, name: str) -> Iterator[tuple[str, Figure]]:
        if name == "figure1":
            yield "figure1.png", toy_figure()
        if name in CURVES:
            series, papers = _series(self.records, name, self.scale)
            if any(len(one.values) > 1 for one in series):
                yield f"{name}-{self.scale}.png", curve_figure(CURVES[name], series, papers)
        if name in FROM_RUNS:
            for category, runs in self._runs(FROM_RUNS[name]):
                path = f"{name}-{self.scale}-{category.name}.png"
                if name not in RECONSTRUCTIONS:
                    yield path, area_figure(category, runs)
                elif all((run / CHECKPOINT).is_file() for run in runs.values()):
                    samples = pick_samples(category, SHOWN)
                    yield path, reconstruction_figure(category, samples, runs, self.device)

    def _runs(self, name: str) -> Iterator[tuple[Category, dict[str, Path]]]:
        """Categories of which all rows of a table are there that fit, with their run folders."""
        table = TABLES[name]
        rows, _ = rows_that_fit(table.rows, table.kind, self.scale)
        used = matching(self.records, table, self.scale)
        for subject in sorted({record.subject for record in used}, key=table_place):
            category = self.subjects.get(subject)
            here = {row.label: self._seeds_here(table, row, subject, used) for row in rows}
            if not (isinstance(category, Category) and all(here.values())):
                continue
            shared = set.intersection(*map(set, here.values()))
            runs = {}
            for row in rows:
                seed = min(shared or here[row.label])
                runs[row.label] = run_folder(self.out, self.scale, row.setting.run, subject, seed)
            yield category, runs

    def _seeds_here(
        self, table: Table, row: Row, subject: str, records: Sequence[Record]
    ) -> list[int]:
        """Seeds of a row's runs; what is in the records may be elsewhere, and here only begun."""
        name = row.setting.run
        return [
            record.seed
            for record in records
            if (record.setting, record.subject) == (name, subject)
            and is_finished(
                run_folder(self.out, self.scale, name, subject, record.seed),
                row.setting.config(table.kind, self.scale, record.seed),
            )
        ]

    def _copy_curve(self, name: str) -> None:
        """Of DAAD's run on a video, the score curve of the first clip with frames of both kinds."""
        used = matching(self.records, TABLES[name], self.scale)
        for record in used:
            video = self.subjects.get(record.subject)
            if record.setting != "daad" or video is None or isinstance(video, Category):
                continue
            pairs = zip(video.test, video.labels, strict=True)
            mixed = (clip for clip, labels in pairs if labels.any() and not labels.all())
            clip = next(mixed, None)
            if clip is None:
                continue
            run = run_folder(self.out, self.scale, "daad", record.subject, record.seed)
            source = run / "figures" / "curves" / f"{clip.name}.png"
            if source.is_file():
                target = self.folder / f"{name}-{self.scale}-{clip.name}.png"
                write_atomically(target, lambda path, source=source: shutil.copyfile(source, path))
                return


def curve_values(records: Sequence[Record], name: str, scale: str) -> str:
    """What a figure of `CURVES` shows, which its file says too: one drawn before is known by it."""
    series, _ = _series(records, name, scale)
    return json.dumps(
        {one.name: {f"{n:g}": list(v) for n, v in one.values.items()} for one in series}
    )


def _series(
    records: Sequence[Record], name: str, scale: str
) -> tuple[list[Series], dict[float, float]]:
    """AUROC by the number of a row's label: a curve for each category; and the paper's means."""
    table = TABLES[name]
    numbers = {row.label: float(row.label.split()[-1]) for row in table.rows}
    used = matching(records, table, scale)
    subjects = sorted({record.subject for record in used}, key=table_place)
    values: dict[str, dict[float, Sequence[float]]] = {subject: {} for subject in subjects}
    for summary in summarize(records, table, scale, subjects):
        if summary.subject is not None:
            values[summary.subject][numbers[summary.row.label]] = summary.values
    papers = {numbers[row.label]: row.paper for row in table.rows if row.paper is not None}
    return [Series(subject, found) for subject, found in values.items()], papers
