"""What the runs of the ablations came to: one table of all that is finished, and means over seeds."""

import csv
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from daad.ablations import ABLATIONS, SCALES, SCORES, Row
from daad.config import Config
from daad.data import list_folders, natural_order, table_place
from daad.errors import UserError
from daad.files import write_csv
from daad.runs import finished
from daad.scoring import image_auroc

COLUMNS = (
    *("table", "row", "category", "seed", "image_auroc", "pixel_auroc", "paper", "scale"),
    *("image_size", "width", "division", "num_items", "epochs", "lr", "run"),
)
SEED = "seed-"  # begins the name of a run's folder

Areas = dict[str, float | None]


@dataclass(frozen=True)
class Summary:
    """A line of a printed table: image AUROC of one category, or the mean of several.

    category: None for the mean. values: one for each seed, in their order.
    paper: the paper's figure for the same categories. paper_all: that for all fifteen.
    """

    row: Row
    category: str | None
    values: list[float]
    paper: float | None
    paper_all: float | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def run_folder(out: Path, scale: str, run: str, category: str, seed: int) -> Path:
    """OUT/SCALE/RUN/CATEGORY/seed-SEED."""
    return out / scale / run / category / f"{SEED}{seed}"


def areas_of(run: Path, config: Config) -> Areas | None:
    """Image AUROC of a finished run by each of `SCORES`, and "pixel"; None where it is not finished.

    L is None, and R + L is R, without a discriminator.
    """
    metrics = finished(run, config, "category")
    if metrics is None:
        return None
    try:
        with (run / "scores.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        labels = torch.tensor([int(row["label"]) for row in rows])
        areas: Areas = {"pixel": metrics["pixel_auroc"]}
        for score, column in SCORES.items():
            values = [float(row[column]) for row in rows if row[column]]
            scores = torch.tensor(values, dtype=torch.float64)
            areas[score] = image_auroc(scores, labels) if len(values) == len(rows) else None
    except (OSError, KeyError, ValueError):
        return None  # it is evaluated again when its turn comes
    return areas


def write_results(path: Path, out: Path) -> None:
    """Write a line for each row of each table, category and seed that is finished in `out`."""
    lines = []
    known: dict[Path, Areas | None] = {}
    for scale in SCALES:
        for table, ablation in ABLATIONS.items():
            for row in ablation.rows:
                lines += [(table, *line) for line in _lines(out, scale, row, known)]
    write_csv(path, COLUMNS, lines)


def _lines(
    out: Path, scale: str, row: Row, known: dict[Path, Areas | None]
) -> Iterator[tuple[object, ...]]:
    """`COLUMNS` but the first; `known` holds what has been read for other rows."""
    for category, seed in _begun(out / scale / row.setting.run):
        try:
            config = row.setting.config(scale, seed)
        except UserError:  # of another version of the tables, where it did fit
            return
        run = run_folder(out, scale, row.setting.run, category, seed)
        if run not in known:
            known[run] = areas_of(run, config)
        areas = known[run]
        if areas is None:
            continue
        # Pixels are ranked by the reconstruction's error, whatever the pictures are.
        found = (areas[row.score], "" if row.score == "L" else areas["pixel"])
        paper = row.by_category.get(category, "")
        division = "x".join(map(str, config.division)) if config.division != "pixel" else "pixel"
        sizes = (config.image_size, config.width, division, config.num_items, config.epochs)
        folder = run.relative_to(out).as_posix()
        yield (row.label, category, seed, *found, paper, scale, *sizes, config.lr, folder)


def _begun(folder: Path) -> list[tuple[str, int]]:
    """Categories and seeds that have a run folder, in the order of the paper's Table 1."""
    return [
        (category, int(name.removeprefix(SEED)))
        for category in sorted(list_folders(folder), key=table_place)
        for name in sorted(list_folders(folder / category), key=natural_order)
        if name.removeprefix(SEED).isdecimal()
    ]


def summarize(
    out: Path, scale: str, rows: Sequence[Row], categories: Sequence[str], seeds: Sequence[int]
) -> list[Summary]:
    """For each row a summary of each category, then of their mean; of seeds that are finished."""
    summaries = []
    for row in rows:
        by_category: dict[str, dict[int, float]] = {name: {} for name in categories}
        for name in categories:
            for seed in seeds:
                run = run_folder(out, scale, row.setting.run, name, seed)
                areas = areas_of(run, row.setting.config(scale, seed))
                area = None if areas is None else areas[row.score]
                if area is not None:
                    by_category[name][seed] = area
        for name, found in by_category.items():
            if found:
                paper = row.by_category.get(name)
                summaries.append(Summary(row, name, list(found.values()), paper, None))
        whole = [seed for seed in seeds if all(seed in found for found in by_category.values())]
        if whole:
            means = [
                statistics.fmean(found[seed] for found in by_category.values()) for seed in whole
            ]
            summaries.append(Summary(row, None, means, _paper_mean(row, categories), row.paper))
    return summaries


def _paper_mean(row: Row, categories: Sequence[str]) -> float | None:
    """The mean of the paper's figures for these very categories; None where one has none."""
    if not set(categories) <= row.by_category.keys():
        return None
    return statistics.fmean(row.by_category[name] for name in categories)
