"""DAAD on MNIST and CIFAR-10, one class normal, the other nine anomalous: train, evaluate.

python examples/daad_oneclass.py train --root ROOT --dataset mnist
python examples/daad_oneclass.py train --root ROOT --dataset cifar10 --variant daad+ --classes 0,3
python examples/daad_oneclass.py evaluate --run runs/mnist/daad/8
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import OmitArgPrefixes, arg
from tyro.extras import SubcommandApp

from daad import command
from daad.classes import LabelledSet, load_labelled, one_class
from daad.config import Config
from daad.folder import Hardware, claim_folders, finished, read_settings, require_resumable
from daad.io import UserError, write_means
from daad.machine import pick_device
from daad.run import evaluate as evaluate_run
from daad.run import run
from reproduction.tables import TABLE_2

COLUMNS = ("class", "test_good", "test_anomalous", "epoch", "image_auroc")
DEFAULTS = Config.of("mnist")  # those of cifar10 too

app = SubcommandApp()
console = Console()


@app.command
def train(
    config: OmitArgPrefixes[Config] = DEFAULTS,
    *,
    root: Annotated[Path, arg(help="Folder of the official files, or one above them.")],
    dataset: Annotated[Literal["mnist", "cifar10"], arg(help="Which data set.")],
    classes: Annotated[
        str, arg(help="The normal ones, each in turn: all, or such as 0,3 or cat,dog.")
    ] = "all",
    out: Annotated[
        Path | None, arg(help="A run folder for each class goes here; runs/DATASET/VARIANT.")
    ] = None,
    device: command.Device = "auto",
    resume: Annotated[
        bool, arg(help="Keep the classes finished in OUT, and go on with the others.")
    ] = False,
    settings: command.Settings = None,
) -> None:
    """Train on one class of the train split, evaluate on the whole test split; class by class."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("one process trains all classes; to use several, give each its --classes")
    data = load_labelled(dataset, root)
    config = config.resolve(dataset)
    names = parse_classes(classes, data.classes)
    out = out or Path("runs") / data.name / config.variant
    _train_classes(config, data, names, out, Hardware(device), resume=resume)


@app.command
def evaluate(
    run: command.Run,
    root: command.Moved = None,
    gamma: command.Gamma = None,
    scaling: command.Scaling = None,
    batch_norm: command.BatchNorm = None,
    device: command.Device = "auto",
) -> None:
    """Score the test split with the trained run of a class again; writes over its results."""
    choices = command.given(gamma=gamma, scaling=scaling, batch_norm=batch_norm)
    settings = read_settings(run, "class")
    data = settings["data"]
    dataset = load_labelled(data["dataset"], root or Path(data["root"]))
    task = one_class(dataset, data["class"])
    metrics = evaluate_run(run, task, pick_device(device), **choices)
    _show({task.normal: metrics}, Config.from_dict(settings["config"]), dataset.name)
    console.print(f"Report: {run / 'report.html'}", soft_wrap=True)


def _train_classes(
    config: Config,
    data: LabelledSet,
    names: Sequence[str],
    out: Path,
    hardware: Hardware,
    *,
    resume: bool,
) -> None:
    """Train one run for each class, in OUT/CLASS, and write OUT/results.csv after each."""
    tasks = {out / name: one_class(data, name) for name in names}
    claim_folders(list(tasks), resume=resume)  # all are looked at before hours go into the first
    for folder, task in tasks.items():
        require_resumable(folder, config, task)
    for folder, task in tasks.items():
        if finished(folder, config, "class") is not None:
            console.print(f"[bold]{task.name}[/bold]: finished before, kept")
            continue
        console.print(f"[bold]{task.name}[/bold]: {len(task.train)} normal pictures")
        run(config, task, folder, hardware, resume=resume)
        _write_results(out / "results.csv", _collect(out, data, config))
    results = _collect(out, data, config)
    _write_results(out / "results.csv", results)
    _show(results, config, data.name)
    console.print(f"Table: {out / 'results.csv'}    Reports: {out}/*/report.html", soft_wrap=True)


def _collect(out: Path, data: LabelledSet, config: Config) -> dict[str, dict[str, Any]]:
    """Read the metrics of each class that is finished in OUT/CLASS with the settings `config`."""
    found = {name: finished(out / name, config, "class") for name in data.classes}
    return {name: metrics for name, metrics in found.items() if metrics is not None}


def _write_results(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a row for each class's metrics, and their mean."""
    rows = []
    for name, metrics in results.items():
        counts = metrics["counts"]
        row = (name, counts["good"], counts["anomalous"], metrics["epoch"], metrics["image_auroc"])
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    write_means(path, COLUMNS, rows, ["image_auroc"])


def _show(results: Mapping[str, Mapping[str, Any]], config: Config, dataset: str) -> None:
    means = ", ".join(f"{name} {area:.3f}" for name, area in TABLE_2[dataset].items())
    caption = f"Paper, Table 2, mean of ten classes: {means} (MemAE on a part of the test set)"
    table = Table(title=_title(config, dataset), caption=caption)
    table.add_column("normal class")
    for heading in ("good", "anomalous", "epoch", "image AUROC"):
        table.add_column(heading, justify="right")
    table.add_column("lowest against")
    for name, metrics in results.items():
        areas = {other: m["image_auroc"] for other, m in metrics["defects"].items()}
        lowest = min(areas, key=areas.__getitem__)
        counts = (metrics["counts"]["good"], metrics["counts"]["anomalous"], metrics["epoch"])
        area = command.auroc_text(metrics["image_auroc"])
        against = f"{lowest} ({command.auroc_text(areas[lowest])})"
        table.add_row(name, *map(str, counts), area, against)
    table.add_section()
    mean = command.auroc_text(fmean(metrics["image_auroc"] for metrics in results.values()))
    table.add_row(f"mean of {len(results)}", "", "", "", mean, "")
    console.print(table)


def parse_classes(text: str, classes: Sequence[str]) -> list[str]:
    """Read "all", or numbers and names such as "0,3,cat", as names in the order of `classes`."""
    if text == "all":
        return list(classes)
    wanted = {part.strip() for part in text.split(",")}
    known = {str(number): name for number, name in enumerate(classes)} | {n: n for n in classes}
    unknown = sorted(wanted - set(known))
    if unknown:
        names = "" if known.keys() == set(classes) else f", or names: {', '.join(classes)}"
        raise UserError(
            f"--classes {text}: no class {', '.join(unknown) or '(empty)'}; give all, or numbers "
            f"from 0 to {len(classes) - 1} with commas between{names}"
        )
    chosen = {known[part] for part in wanted}
    return [name for name in classes if name in chosen]


def _title(config: Config, dataset: str) -> str:
    title = f"{config.variant} on {dataset}, width {config.width}"
    if not config.memory_levels:
        return title
    return f"{title}, division {command.setting_text(config.division)}, N {config.num_items}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script on `arguments`, as `command.run_app` says."""
    command.run_app(app, __doc__, arguments)


if __name__ == "__main__":
    main()
