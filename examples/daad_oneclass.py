"""DAAD on MNIST and CIFAR-10, one class normal, the other nine anomalous: train, evaluate.

python examples/daad_oneclass.py train --root ROOT --dataset mnist
python examples/daad_oneclass.py train --root ROOT --dataset cifar10 --variant daad+ --classes 0,3
python examples/daad_oneclass.py evaluate --run runs/mnist/daad/8
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from daad.batches import FLIPS
from daad.config import NETWORK, TRAINING, Config, items_at_paper_ratio, parse_division
from daad.devices import pick_device
from daad.errors import UserError
from daad.evaluation import evaluate as evaluate_category
from daad.labelled import LabelledSet, load_labelled
from daad.oneclass import (
    IMAGE_SIZE,
    OWN_DIVISION,
    OWN_FLIPS,
    TABLE_2,
    class_of_run,
    collect,
    mean_auroc,
    one_class,
    parse_classes,
    write_results,
)
from daad.options import (
    BatchNorm,
    Device,
    Gamma,
    Moved,
    Run,
    Scaling,
    auroc_text,
    config_options,
    given,
    make_app,
    run_app,
)
from daad.runs import Hardware, claim_folders, finished, require_resumable, run_category

# 40 epochs of 5000 to 6000 pictures are about as many steps as the paper's 1000 of bottle's 209.
DEFAULTS = {"epochs": 40, "checkpoint_every": 5}

app = make_app(__doc__, no_args_is_help=True)
console = Console()


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
    device: Device = "auto",
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


@app.command()
def evaluate(
    run: Run,
    root: Moved = None,
    gamma: Gamma = None,
    scaling: Scaling = None,
    batch_norm: BatchNorm = None,
    device: Device = "auto",
) -> None:
    """Score the test split with the trained run of a class again; writes its results anew."""
    choices = given(gamma=gamma, scaling=scaling, batch_norm=batch_norm)
    category, config = class_of_run(run, root)
    metrics = evaluate_category(run, category, pick_device(device), **choices)
    _show({category.normal: metrics}, config, category.dataset.name)
    console.print(f"Report: {run / 'report.html'}", soft_wrap=True)


def _decide(
    config: Config, dataset: str, division: str | None, num_items: int | None, flips: str | None
) -> Config:
    """`config` resolved, with what was not given chosen for pictures of 32x32; see the constants."""
    memae = config.variant.startswith("memae")  # by pixels if nothing else is asked for
    own = None if memae else OWN_DIVISION
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
    for name, run in zip(names, runs, strict=True):
        require_resumable(run, config, "dataset", one_class(data, name).source)
    for name, run in zip(names, runs, strict=True):
        if finished(run, config, "dataset") is not None:
            console.print(f"[bold]{data.name} {name}[/bold]: finished before, kept")
            continue
        category = one_class(data, name)
        console.print(f"[bold]{category.name}[/bold]: {len(category.train)} normal pictures")
        run_category(config, category, run, hardware, resume=resume)
        write_results(out / "results.csv", collect(out, data.classes, config))
    results = collect(out, data.classes, config)
    write_results(out / "results.csv", results)
    _show(results, config, data.name)
    console.print(f"Table: {out / 'results.csv'}    Reports: {out}/*/report.html", soft_wrap=True)


def _show(results: Mapping[str, Mapping[str, Any]], config: Config, dataset: str) -> None:
    table = Table(title=_title(config, dataset), caption=_paper(dataset))
    table.add_column("normal class")
    for heading in ("good", "anomalous", "epoch", "image AUROC"):
        table.add_column(heading, justify="right")
    table.add_column("lowest against")
    for name, metrics in results.items():
        areas = {other: m["image_auroc"] for other, m in metrics["defects"].items()}
        lowest = min(areas, key=areas.__getitem__)
        counts = (metrics["counts"]["good"], metrics["counts"]["anomalous"], metrics["epoch"])
        area = auroc_text(metrics["image_auroc"])
        table.add_row(name, *map(str, counts), area, f"{lowest} ({auroc_text(areas[lowest])})")
    table.add_section()
    table.add_row(f"mean of {len(results)}", "", "", "", auroc_text(mean_auroc(results)), "")
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
    """The script on `arguments`, as `run_app` says."""
    run_app(app, arguments)


if __name__ == "__main__":
    run()
