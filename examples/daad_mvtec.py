"""DAAD on photographs in the MVTec AD folder layout: train, evaluate, predict.

python examples/daad_mvtec.py                  a small DAAD on pictures that it draws itself
python examples/daad_mvtec.py train --root ROOT --category bottle --variant daad+
python examples/daad_mvtec.py evaluate --run runs/daad+/bottle
python examples/daad_mvtec.py predict --run runs/daad+/bottle --pictures FOLDER
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from daad.config import Config
from daad.data import list_categories, load_category
from daad.devices import is_first_process, pick_device
from daad.errors import UserError
from daad.evaluation import predict, write_summary
from daad.options import (
    BatchNorm,
    Device,
    Devices,
    Gamma,
    Machines,
    Moved,
    Run,
    Scaling,
    auroc_text,
    config_options,
    given,
    make_app,
    run_app,
)
from daad.runs import Hardware, claim_folders, evaluate_run, run_category
from daad.synthetic import make_dataset

# What fits two minutes on two cores. D/N is as in the paper: see docs/guide.md.
DEMO = {"image_size": 128, "width": 8, "num_items": 16, "epochs": 24, "lr": 2e-3}

app = make_app(__doc__)
console = Console()


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """DAAD (ICCV 2021) on photographs in the MVTec AD folder layout. Without a command: demo."""
    if context.invoked_subcommand is None:
        demo()


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder to make; runs/demo if not given.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training pictures.")] = DEMO[
        "epochs"
    ],
) -> None:
    """Draw a small data set, train a small DAAD on it, and show what it finds."""
    out = _new_folder(out or Path("runs/demo"))
    console.print(f"Drawing two categories of pictures into {out / 'data'}")
    names = make_dataset(out / "data", image_size=DEMO["image_size"])
    config = Config(**(DEMO | {"epochs": epochs}))
    _train_all(config, out / "data", names, out, Hardware(device="cpu"), resume=False)


@app.command()
@config_options()
def train(
    config: Config,
    root: Annotated[Path, typer.Option(help="Folder of categories in MVTec layout.")],
    category: Annotated[list[str], typer.Option(help="A category in ROOT; repeat it, or all.")],
    out: Annotated[
        Path | None, typer.Option(help="A run folder for each category goes here; runs/VARIANT.")
    ] = None,
    device: Device = "auto",
    devices: Devices = 1,
    num_nodes: Machines = 1,
    resume: Annotated[bool, typer.Option(help="Go on with the runs that are in OUT.")] = False,
) -> None:
    """Train on ROOT/CATEGORY/train/good and evaluate on ROOT/CATEGORY/test."""
    names = list_categories(root) if "all" in category else list(dict.fromkeys(category))
    processes = max(devices * num_nodes, int(os.environ.get("WORLD_SIZE", "1")))
    if processes > 1 and len(names) > 1:
        raise UserError(f"several devices train one category at a time; {len(names)} were given")
    config = config.resolve()
    hardware = Hardware(device, devices, num_nodes)
    _train_all(config, root, names, out or Path("runs") / config.variant, hardware, resume=resume)


@app.command()
def evaluate(
    run: Run,
    root: Moved = None,
    gamma: Gamma = None,
    scaling: Scaling = None,
    batch_norm: BatchNorm = None,
    even_light: Annotated[
        bool,
        typer.Option("--even-light", help="Make each test picture as bright as those of training."),
    ] = False,
    device: Device = "auto",
) -> None:
    """Score the test set with a trained run again; writes its scores, metrics and figures anew."""
    choices = given(gamma=gamma, scaling=scaling, batch_norm=batch_norm)
    _show([evaluate_run(run, device, root, even_light=even_light, **choices)], [run])


@app.command(name="predict")
def predict_folder(
    run: Run,
    pictures: Annotated[Path, typer.Option(help="Folder of pictures to score, and all below it.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions.csv and heat maps.")] = Path(
        "predictions"
    ),
    device: Device = "auto",
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
    """One run for each category, in OUT/NAME; with several, OUT/summary.csv."""
    categories = [load_category(root, name) for name in names]
    runs = [out / name for name in names]
    if is_first_process():  # all folders are looked at before hours go into the first
        claim_folders(runs, resume=resume)
    results = []
    for category, run in zip(categories, runs, strict=True):
        if is_first_process():
            console.print(f"[bold]{category.name}[/bold]: {len(category.train)} normal pictures")
        results.append(run_category(config, category, run, hardware, resume=resume))
        if len(names) > 1:
            write_summary(out / "summary.csv", results)
    _show(results, runs)


def _show(results: Sequence[dict[str, Any]], runs: Sequence[Path]) -> None:
    table = Table("category", "variant", title="AUROC on the test set")
    for heading in ("image", "pixel"):
        table.add_column(heading, justify="right")
    table.add_column("by defect (image)")
    for metrics in results:
        defects = [
            f"{name} {auroc_text(m['image_auroc'])}" for name, m in metrics["defects"].items()
        ]
        areas = (auroc_text(metrics[kind]) for kind in ("image_auroc", "pixel_auroc"))
        table.add_row(metrics["category"], metrics["variant"], *areas, ", ".join(defects))
    console.print(table)
    for run in runs:
        console.print(
            f"Pictures: {run / 'figures'}    Report: {run / 'report.html'}", soft_wrap=True
        )


def _new_folder(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 ... that is not there: nothing is written over."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(folder for folder in itertools.chain([path], numbered) if not folder.exists())


def run(arguments: Sequence[str] | None = None) -> None:
    """The script on `arguments`, as `run_app` says."""
    run_app(app, arguments)


if __name__ == "__main__":
    run()
