"""What `daad_mvtec.py` prints."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from daad.command import auroc_text
from daad.config import Config
from daad.findings import remarks
from daad.io import printable
from daad.mvtec import Category
from daad.pictures import read_picture
from daad.predicting import Summary
from daad.verdict import ANOMALOUS

OBLONG = 1.1  # longer to shorter side, from which on it is said that proportions change

console = Console(markup=False, highlight=False)  # names may look like markup


def introduce(category: Category, config: Config, learned: int, held_out: int) -> None:
    """Say what was found, and what becomes of it."""
    bad = [sample for sample in category.test if sample.label]
    masks = sum(sample.mask is not None for sample in bad)
    console.print(
        f"{printable(category.name)}: {learned} normal pictures to learn from, {held_out} held out for "
        f"verdicts; to test with {len(category.test) - len(bad)} good and {len(bad)} anomalous ones, "
        f"{masks} with a mask"
    )
    show_passed_over(category.passed_over())
    width, height = read_picture(category.train[0].path, lambda image: image.size)
    if config.fit == "squeeze" and max(width, height) > OBLONG * min(width, height):
        console.print(
            f"Pictures of {width}x{height} are squeezed to {config.image_size}x{config.image_size}; "
            f"--fit pad keeps their proportions"
        )
    if config.white is not None:
        console.print(f"In gray pictures of 16 bits {config.white} is white")


def show_passed_over(kinds: Counter[str]) -> None:
    """Say how many files of each kind are no pictures by their names."""
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        console.print(f"No pictures by their names, and passed over: {listed}")


def show_results(results: Sequence[dict[str, Any]], folders: Sequence[Path]) -> None:
    """Print a table of what was tested, what a reader should know of each run, and how to go on."""
    shown = {
        "image AUROC": "image_auroc",
        "AP": "average_precision",
        "best F1": "best_f1",
        "recall at 5 %": "recall_at_5_percent",
        "pixel AUROC": "pixel_auroc",
        "AUPRO": "aupro",
    }
    tested = [metrics for metrics in results if metrics["defects"]]
    if tested:
        table = Table("category", "variant", title="The score on the test set")
        for heading in shown:
            table.add_column(heading, justify="right")
        for metrics in tested:
            values = (auroc_text(metrics.get(key)) for key in shown.values())
            table.add_row(printable(metrics["category"]), metrics["variant"], *values)
        console.print(table)
    for metrics, folder in zip(results, folders, strict=True):
        for line in remarks(metrics):
            console.print(f"{printable(metrics['category'])}: {line}")
        console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
        console.print(
            f"Judge pictures: python {sys.argv[0]} predict --run {folder} --pictures FOLDER",
            soft_wrap=True,
        )


def show_predictions(summary: Summary, out: Path, *, heatmaps: bool) -> None:
    """Print the highest scores, how many pictures are anomalous, and where to read more."""
    total = summary.counts.total()
    table = Table("picture", title="The highest scores")
    for heading in ("score", "p", "verdict"):
        table.add_column(heading, justify="left" if heading == "verdict" else "right")
    for row in summary.highest:
        table.add_row(row.path, f"{row.score:.2f}", f"{row.p:.3f}", row.verdict)
    console.print(table)
    threshold = summary.threshold
    console.print(
        f"{summary.counts[ANOMALOUS]} of {total} pictures are anomalous: their scores are above "
        f"{threshold.value:.2f}, which at most {100 * threshold.rate:.3g} % of normal pictures reach."
    )
    console.print(summary.words)
    where = f", where to look: {out / 'heatmaps'}" if heatmaps else ""
    console.print(f"All verdicts: {out / 'predictions.csv'}{where}", soft_wrap=True)
