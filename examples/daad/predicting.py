"""A trained run put to use on any pictures: found, scored as they come, and judged one by one."""

import csv
import glob
import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from PIL import Image
from torch import Tensor

from daad.form import Form
from daad.io import UserError, csv_cell, printable
from daad.machine import count_cores
from daad.network import load_networks
from daad.overlay import overlay, write_scale
from daad.pictures import (
    TYPES,
    EvenLight,
    StoredPictures,
    is_picture,
    kind_of,
    natural_order,
    read_rgb,
)
from daad.run import stored_reference
from daad.scoring import fuse, score_pictures
from daad.verdict import Threshold

TABLE, LINES, SKIPPED = "predictions.csv", "predictions.jsonl", "skipped.csv"
HEATMAPS = "heatmaps"
COLUMNS = ("path", "score", "eq7", "p", "verdict")
LONGEST = 230  # bytes of a name, of the 255 that file systems allow
TOGETHER = 8  # pictures at a time, which are in memory at their own size


class Prediction(NamedTuple):
    """What is said of one picture: a row of predictions.csv."""

    path: str
    score: float
    eq7: float
    p: float
    verdict: str


class Picture(NamedTuple):
    """A picture to judge, and the name that results call it by."""

    path: Path
    name: str


@dataclass
class Found:
    """Pictures in order; what cannot be read, with the reason; other files by their suffix."""

    pictures: list[Picture] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


@dataclass
class Summary:
    """What a call came to: how many of each verdict, the highest scores, and what was skipped."""

    threshold: Threshold
    words: str
    counts: Counter[str] = field(default_factory=Counter)
    highest: list[Prediction] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def find_pictures(given: Sequence[str], out: Path) -> Found:
    """Find what `given` names: files, folders with all below them, and patterns such as `*/new?.png`.

    What this program wrote is passed over: the folder `out`, and heat maps of other calls. UserError
    where a name fits nothing, or there is no picture at all.
    """
    found = Found()
    roots: list[Path] = []
    for one in given:
        matches = [one] if os.path.lexists(one) else sorted(glob.glob(one, recursive=True))
        if not matches:
            raise UserError(f"{one}: no such file or folder; give pictures, folders of them, or *")
        roots += map(Path, matches)
    paths: list[Path] = []
    for root in roots:
        paths += _walk(root, out.resolve(), found) if root.is_dir() else [root]
    if not paths:
        raise UserError(f"{' '.join(given)}: no pictures in it or below; expected {TYPES}")
    # Names are relative to what was given, so that no two of them are alike.
    tops = {os.path.abspath(root if root.is_dir() else root.parent) for root in roots}
    top = os.path.commonpath(tops)
    whole = dict.fromkeys(os.path.abspath(path) for path in paths)
    found.pictures = [Picture(Path(one), Path(one).relative_to(top).as_posix()) for one in whole]
    return found


def _walk(folder: Path, out: Path, found: Found) -> list[Path]:
    """List the pictures in a folder and below; what else there is goes into `found`."""
    paths: list[Path] = []

    def refused(error: OSError) -> None:
        found.unreadable.append((str(error.filename), error.strerror or str(error)))

    for where, folders, files in os.walk(folder, onerror=refused):
        here = Path(where)
        folders[:] = sorted(
            (name for name in folders if not _ours(here / name, out)), key=natural_order
        )
        for name in sorted(files, key=natural_order):
            if is_picture(here / name):
                paths.append(here / name)
            elif not name.startswith("."):
                found.passed_over[kind_of(name)] += 1
    return paths


def _ours(folder: Path, out: Path) -> bool:
    if folder.name.startswith(".") or folder.resolve() == out:
        return True
    return folder.name == HEATMAPS and (folder.parent / TABLE).exists()


class Judge:
    """A trained run, ready to say of pictures what it finds."""

    def __init__(
        self,
        run: Path,
        device: torch.device,
        *,
        false_alarms: float | None = None,
        even_light: bool = False,
    ) -> None:
        """Read the run's checkpoint; UserError where it cannot judge pictures one by one."""
        self.config, self.networks, state = load_networks(run, device)
        if self.config.batch_norm == "batch":
            raise UserError(
                f"{run}: was trained with --batch-norm batch, by which a picture's score depends on "
                f"its neighbours; train with --batch-norm eval for verdicts"
            )
        self.reference = stored_reference(run, state, self.config, even_light=even_light)
        asked = self.config.false_alarms if false_alarms is None else false_alarms
        self.threshold = self.reference.threshold(asked)
        self.brightness: float | None = state["brightness"] if even_light else None

    def __call__(self, names: Sequence[str], pixels: Tensor) -> tuple[list[Prediction], Tensor]:
        """Judge pictures, uint8 (n, 3, S, S); give also their standardised maps (n, S, S)."""
        pictures: StoredPictures | EvenLight = StoredPictures(pixels)
        if self.brightness is not None:
            pictures = EvenLight(pictures, self.brightness)
        raw = score_pictures(self.networks, pictures, self.config)
        scores = self.reference.score(raw.evened_maps)
        columns = (
            scores.tolist(),
            fuse(raw, self.reference.scale, self.config.gamma).tolist(),
            self.reference.p_values(scores).tolist(),
            map(self.threshold.verdict, scores.tolist()),
        )
        rows = [Prediction(*row) for row in zip(names, *columns, strict=True)]
        return rows, self.reference.standardise(raw.evened_maps)


def predict(
    judge: Judge,
    found: Found,
    out: Path,
    *,
    heatmaps: bool = True,
    top: int = 10,
    step: Callable[[int], object] = lambda count: None,
) -> Summary:
    """Judge all pictures that were found, a few at a time, and write what is said of each at once.

    Into `out` go predictions.csv and predictions.jsonl (a row or line a picture), heatmaps/NAME.heat.png
    and, where something could not be read, skipped.csv.
    top: how many of the highest scores the summary has. step: is told how many pictures are done.
    """
    if (out / TABLE).exists():
        raise UserError(f"{out}: holds the results of another call; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    if heatmaps:
        write_scale(out / HEATMAPS / "scale.png", judge.threshold.value)
    summary = Summary(judge.threshold, judge.reference.words(judge.threshold))
    summary.skipped += found.unreadable
    with ExitStack() as stack:
        table, lines = (
            stack.enter_context((out / name).open("w", encoding="utf-8", newline=""))
            for name in (TABLE, LINES)
        )
        csv.writer(table, lineterminator="\n").writerow(COLUMNS)
        workers = stack.enter_context(ThreadPoolExecutor(count_cores()))
        for first in range(0, len(found.pictures), TOGETHER):
            some = found.pictures[first : first + TOGETHER]
            shown = _decode(some, judge.config.form, workers, summary.skipped)
            if shown:
                rows = _judge_some(judge, shown, out / HEATMAPS if heatmaps else None, workers)
                _write(rows, table, lines)
                summary.counts.update(row.verdict for row in rows)
                summary.highest += rows
                summary.highest = heapq.nlargest(top, summary.highest, key=lambda row: row.score)
            step(len(some))
    if summary.skipped:
        with (out / SKIPPED).open("w", encoding="utf-8", newline="") as file:
            rows_skipped = [map(csv_cell, row) for row in summary.skipped]
            csv.writer(file, lineterminator="\n").writerows([("path", "reason"), *rows_skipped])
    return summary


Decoded = tuple[str, Image.Image, Tensor]  # name, RGB at its own size, uint8 (3, S, S)


def _decode(
    some: Sequence[Picture],
    form: Form,
    workers: ThreadPoolExecutor,
    skipped: list[tuple[str, str]],
) -> list[Decoded]:
    """Read pictures; what cannot be read is added to `skipped`."""

    def read(picture: Picture) -> Decoded | UserError:
        try:
            image = read_rgb(picture.path, form)
            pixels = torch.from_numpy(form.square(image)).permute(2, 0, 1)
        except UserError as error:
            return error
        return picture.name, image, pixels

    shown = []
    for picture, result in zip(some, workers.map(read, some), strict=True):
        if isinstance(result, UserError):
            skipped.append((picture.name, str(result)))
        else:
            shown.append(result)
    return shown


def _judge_some(
    judge: Judge, shown: Sequence[Decoded], heatmaps: Path | None, workers: ThreadPoolExecutor
) -> list[Prediction]:
    names, images, pixels = zip(*shown, strict=True)
    rows, maps = judge([printable(name) for name in names], torch.stack(pixels))
    if heatmaps is not None:
        value, fit = judge.threshold.value, judge.config.fit
        tasks = [
            workers.submit(overlay, heatmaps / heat_name(name), image, one, value, fit)
            for name, image, one in zip(names, images, maps, strict=True)
        ]
        for task in tasks:
            task.result()
    return rows


def heat_name(name: str) -> str:
    """Name a picture's heat map: NAME.heat.png, a long name cut and told apart by its digest.

    The whole name with its suffix, since a.jpg and a.png may lie in one folder.
    """
    folder, _, last = name.rpartition("/")
    encoded = os.fsencode(last)
    if len(encoded) > LONGEST:
        digest = hashlib.blake2b(encoded, digest_size=4).hexdigest()
        last = f"{os.fsdecode(encoded[:LONGEST])}-{digest}"
    return f"{folder}/{last}.heat.png" if folder else f"{last}.heat.png"


def _write(rows: Sequence[Prediction], table: TextIO, lines: TextIO) -> None:
    writer = csv.writer(table, lineterminator="\n")
    for row in rows:
        writer.writerow([csv_cell(cell) for cell in row])
        lines.write(json.dumps(row._asdict()) + "\n")
    table.flush()
    lines.flush()
