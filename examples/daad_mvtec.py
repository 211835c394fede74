"""DAAD on photographs in the MVTec AD folder layout: train, evaluate, predict.

python examples/daad_mvtec.py                  a small DAAD on pictures that it draws itself
python examples/daad_mvtec.py train --root ROOT --category bottle --variant daad+
python examples/daad_mvtec.py evaluate --run runs/daad+/bottle
python examples/daad_mvtec.py predict --run runs/daad+/bottle --pictures FOLDER
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import OmitArgPrefixes, UseAppendAction, arg
from tyro.extras import SubcommandApp

from daad import command
from daad.config import Config
from daad.io import UserError
from daad.machine import is_first_process, pick_device
from daad.mvtec import list_categories, load_category, write_summary
from daad.run import Hardware, claim_folders, predict, read_settings, run
from daad.run import evaluate as evaluate_run

# What fits two minutes on two cores. D/N is as in the paper: see docs/guide.md.
DEMO = Config(image_size=128, width=8, num_items=16, epochs=24, lr=2e-3)

DEFAULTS = Config.of("photographs")

app = SubcommandApp()
console = Console()


@app.command
def demo(
    out: Annotated[Path, arg(help="Folder to make.")] = Path("runs/demo"),
    epochs: Annotated[int, arg(help="Passes over the training pictures.")] = DEMO.epochs,
) -> None:
    """Draw a small data set, train a small DAAD on it, and show what it finds."""
    from daad.drawn import make_dataset  # the one command that draws

    out = _new_folder(out)
    console.print(f"Drawing two categories of pictures into {out / 'data'}")
    names = make_dataset(out / "data", image_size=DEMO.image_size)
    config = dataclasses.replace(DEMO, epochs=epochs)
    _train_all(config, out / "data", names, out, Hardware("cpu"), resume=False)


@app.command
def train(
    config: OmitArgPrefixes[Config] = DEFAULTS,
    *,
    root: Annotated[Path, arg(help="Folder of categories in MVTec layout.")],
    category: Annotated[
        UseAppendAction[tuple[str, ...]], arg(help="A category in ROOT; repeat it, or all.")
    ],
    out: Annotated[
        Path | None, arg(help="A run folder for each category goes here; runs/VARIANT.")
    ] = None,
    device: command.Device = "auto",
    devices: command.Devices = 1,
    num_nodes: command.Machines = 1,
    resume: Annotated[bool, arg(help="Go on with the runs that are in OUT.")] = False,
    settings: command.Settings = None,
) -> None:
    """Train on ROOT/CATEGORY/train/good and evaluate on ROOT/CATEGORY/test."""
    names = list_categories(root) if "all" in category else list(dict.fromkeys(category))
    processes = max(devices * num_nodes, int(os.environ.get("WORLD_SIZE", "1")))
    if processes > 1 and len(names) > 1:
        raise UserError(f"several devices train one category at a time; {len(names)} were given")
    config = config.resolve()
    hardware = Hardware(device, devices, num_nodes)
    _train_all(config, root, names, out or Path("runs", config.variant), hardware, resume=resume)


@app.command
def evaluate(
    run: command.Run,
    root: command.Moved = None,
    gamma: command.Gamma = None,
    scaling: command.Scaling = None,
    batch_norm: command.BatchNorm = None,
    even_light: Annotated[
        bool, arg(help="Make each test picture as bright as those of training.")
    ] = False,
    device: command.Device = "auto",
) -> None:
    """Score the test set with a trained run again; writes its scores, metrics and figures anew."""
    choices = command.given(gamma=gamma, scaling=scaling, batch_norm=batch_norm)
    data = read_settings(run, "category")["data"]
    task = load_category(root or Path(data["root"]), data["category"])
    metrics = evaluate_run(run, task, pick_device(device), even_light=even_light, **choices)
    _show([metrics], [run])


@app.command(name="predict")
def predict_folder(
    run: command.Run,
    pictures: Annotated[Path, arg(help="Folder of pictures to score, and all below it.")],
    out: Annotated[Path, arg(help="Folder for predictions.csv and heat maps.")] = Path(
        "predictions"
    ),
    device: command.Device = "auto",
) -> None:
    """Score pictures of any folder; the highest scores first."""
    rows = predict(run, pictures, pick_device(device), out)
    table = Table("picture", "score", title=f"{len(rows)} pictures, the ten highest scores")
    for row in sorted(rows, key=lambda row: -row["score"])[:10]:
        table.add_row(row["path"], f"{row['score']:.3f}")
    console.print(table)
    console.print(f"All scores: {out / 'predictions.csv'}, where to look: {out / 'heatmaps'}")


def _train_all(
    config: Config, root: Path, names: Sequence[str], out: Path, hardware: Hardware, *, resume: bool
) -> None:
    """Train one run for each category, in OUT/NAME; with several, write OUT/summary.csv."""
    categories = [load_category(root, name) for name in names]
    folders = [out / name for name in names]
    if is_first_process():  # all folders are looked at before hours go into the first
        claim_folders(folders, resume=resume)
    results = []
    for category, folder in zip(categories, folders, strict=True):
        if is_first_process():
            console.print(f"[bold]{category.name}[/bold]: {len(category.train)} normal pictures")
        results.append(run(config, category, folder, hardware, resume=resume))
        if len(names) > 1:
            write_summary(out / "summary.csv", results)
    _show(results, folders)


def _show(results: Sequence[dict[str, Any]], folders: Sequence[Path]) -> None:
    table = Table("category", "variant", title="AUROC on the test set")
    for heading in ("image", "pixel"):
        table.add_column(heading, justify="right")
    table.add_column("by defect (image)")
    for metrics in results:
        areas = (command.auroc_text(metrics[kind]) for kind in ("image_auroc", "pixel_auroc"))
        defects = ", ".join(
            f"{name} {command.auroc_text(defect['image_auroc'])}"
            for name, defect in metrics["defects"].items()
        )
        table.add_row(metrics["category"], metrics["variant"], *areas, defects)
    console.print(table)
    for folder in folders:
        console.print(
            f"Pictures: {folder / 'figures'}    Report: {folder / 'report.html'}", soft_wrap=True
        )


def _new_folder(path: Path) -> Path:
    """Give `path`, or the first of path-2, path-3 ... that is not there: nothing is written over."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(folder for folder in itertools.chain([path], numbered) if not folder.exists())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script on `arguments`, as `command.run_app` says; without any: demo."""
    command.run_app(app, __doc__, arguments, default="demo")


if __name__ == "__main__":
    main()
