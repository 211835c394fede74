"""DAAD on MNIST and CIFAR-10: one class is normal, the other nine are anomalous (Table 2).

python examples/daad_oneclass.py train --root ROOT --dataset mnist
python examples/daad_oneclass.py train --root ROOT --dataset cifar10 --variant daad+ --classes 0,3
"""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from daad.batches import FLIPS
from daad.config import NETWORK, TRAINING, Config, items_at_paper_ratio, parse_division
from daad.errors import UserError
from daad.labelled import LabelledSet, load_labelled
from daad.oneclass import (
    TABLE_2,
    collect,
    finished,
    mean_auroc,
    one_class,
    parse_classes,
    require_resumable,
    write_results,
)
from daad.options import config_options
from daad.runs import Hardware, claim_folders, run_category

IMAGE_SIZE = 32
# A block of the paper shows 32x32 pixels of its 256x256: here, the whole picture.
DIVISION = (1, 1, 1)
# Turned upside down and mirrored, a 6 is a 9: digits are anomalies of each other when flipped.
OWN_FLIPS = {"mnist": "none", "cifar10": "both"}
# 40 epochs of 5000 to 6000 pictures are about the paper's steps: 1000 epochs of 242 pictures, the
# mean of MVTec AD's categories.
DEFAULTS = {"epochs": 40, "checkpoint_every": 5}

app = typer.Typer(
    help=__doc__.splitlines()[0],
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()


@app.callback()
def main() -> None:
    """DAAD (ICCV 2021) on MNIST and CIFAR-10, one class normal, the others anomalous."""


@app.command()
@config_options("image_size", "division", "num_items", "flips", defaults=DEFAULTS)
def train(
    config: Config,
    root: Annotated[Path, typer.Option(help="Folder of the official files, or one above them.")],
    dataset: Annotated[str, typer.Option(help="mnist or cifar10.")],
    classes: Annotated[
        str, typer.Option(help="The normal ones, each in turn: all, or such as 0,3 or cat,dog.")
    ] = "all",
    out: Annotated[
        Path | None,
        typer.Option(help="A run folder for each class goes here; runs/DATASET/VARIANT."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, or one GPU such as cuda:1.")
    ] = "auto",
    resume: Annotated[
        bool, typer.Option(help="Keep the classes finished in OUT, and go on with the others.")
    ] = False,
    division: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=NETWORK,
            help="Blocks along height, width, channels; 1,1,1, or pixel for MemAE.",
        ),
    ] = None,
    num_items: Annotated[
        int | None,
        typer.Option(rich_help_panel=NETWORK, help="N; by the paper's D/N if not given."),
    ] = None,
    flips: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=TRAINING,
            help=f"Mirror pictures at random: {', '.join(FLIPS)}; none for mnist, else both.",
        ),
    ] = None,
) -> None:
    """Train on one class of the train split, evaluate on the whole test split; class by class."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("one process trains all classes; to use several, give each its --classes")
    data = load_labelled(dataset, root)
    config = _decide(config, data.name, division, num_items, flips)
    names = parse_classes(classes, data.classes)
    out = out or Path("runs") / data.name / config.variant
    _train_classes(config, data, names, out, Hardware(device), resume=resume)


def _decide(
    config: Config, dataset: str, division: str | None, num_items: int | None, flips: str | None
) -> Config:
    """`config` resolved, with what was not given chosen for pictures of 32x32; see the constants."""
    memae = config.variant.startswith("memae")  # by pixels if nothing else is asked for
    own = None if memae else DIVISION
    config = dataclasses.replace(
        config,
        image_size=IMAGE_SIZE,
        division=own if division is None else parse_division(division),
        flips=OWN_FLIPS[dataset] if flips is None else flips,
    ).resolve()
    items = items_at_paper_ratio(config) if num_items is None else num_items
    return dataclasses.replace(config, num_items=items).resolve()


def _train_classes(
    config: Config,
    data: LabelledSet,
    names: Sequence[str],
    out: Path,
    hardware: Hardware,
    *,
    resume: bool,
) -> None:
    """One run for each class, in OUT/CLASS, and after each a new OUT/results.csv."""
    runs = [out / name for name in names]
    claim_folders(runs, resume=resume)  # all are looked at before hours go into the first
    require_resumable(runs, config)
    for name, run in zip(names, runs, strict=True):
        if finished(run, config) is not None:
            console.print(f"[bold]{data.name} {name}[/bold]: finished before, kept")
            continue
        category = one_class(data, name)
        console.print(f"[bold]{category.name}[/bold]: {len(category.train)} normal pictures")
        run_category(config, category, run, hardware, resume=resume)
        write_results(out / "results.csv", collect(out, data.classes, config))
    results = collect(out, data.classes, config)
    write_results(out / "results.csv", results)
    _show(results, config, data)
    console.print(f"Table: {out / 'results.csv'}    Reports: {out}/*/report.html", soft_wrap=True)


def _show(results: Mapping[str, Mapping[str, Any]], config: Config, data: LabelledSet) -> None:
    table = Table(title=_title(config, data.name), caption=_paper(data.name))
    table.add_column("normal class")
    for heading in ("good", "anomalous", "epoch", "image AUROC"):
        table.add_column(heading, justify="right")
    table.add_column("lowest against")
    for name, metrics in results.items():
        areas = {other: m["image_auroc"] for other, m in metrics["defects"].items()}
        lowest = min(areas, key=areas.__getitem__)
        counts = (metrics["counts"]["good"], metrics["counts"]["anomalous"], metrics["epoch"])
        area = f"{metrics['image_auroc']:.3f}"
        table.add_row(name, *map(str, counts), area, f"{lowest} ({areas[lowest]:.3f})")
    table.add_section()
    table.add_row(f"mean of {len(results)}", "", "", "", f"{mean_auroc(results):.3f}", "")
    console.print(table)


def _title(config: Config, dataset: str) -> str:
    title = f"{config.variant} on {dataset}, width {config.width}"
    if not any(config.has_memory(level) for level in range(1, config.levels + 1)):
        return title
    division = str(config.division).strip("()").replace(" ", "")
    return f"{title}, division {division}, N {config.num_items}"


def _paper(dataset: str) -> str:
    means = ", ".join(f"{name} {area:.3f}" for name, area in TABLE_2[dataset].items())
    return f"Paper, Table 2, mean of ten classes: {means} (MemAE on a part of the test set)"


def run(arguments: Sequence[str] | None = None) -> None:
    """The script on `arguments`; ends with SystemExit, code 2 after one line for bad input."""
    try:
        app(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
