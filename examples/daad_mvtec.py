"""DAAD on photographs: train on good ones, and say of others whether they are normal or anomalous.

python examples/daad_mvtec.py                  a small DAAD on pictures that it draws itself
python examples/daad_mvtec.py train --good FOLDER [--bad FOLDER]
python examples/daad_mvtec.py train --root ROOT --category bottle --variant daad+   (MVTec AD layout)
python examples/daad_mvtec.py predict --run runs/daad/NAME --pictures FOLDER
python examples/daad_mvtec.py export --run runs/daad/NAME
python examples/daad_mvtec.py evaluate --run runs/daad+/bottle
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import Progress
from tyro.conf import OmitArgPrefixes, UseAppendAction, arg
from tyro.extras import SubcommandApp

from daad import command, predicting
from daad.command import Preset
from daad.config import Config
from daad.export import SUFFIXES, Format, export
from daad.folder import Hardware, claim_folders, read_settings
from daad.io import UserError, printable
from daad.machine import is_first_process, pick_device
from daad.mvtec import (
    Category,
    list_categories,
    load_again,
    load_category,
    load_folders,
    split_normals,
    write_summary,
)
from daad.predicting import find_pictures, predict
from daad.run import evaluate as evaluate_run
from daad.run import run
from daad.terminal import console, introduce, show_passed_over, show_predictions, show_results

# What fits two minutes on two cores: twice the steps of `--preset try`
DEMO = Config(
    image_size=128,
    width=8,
    num_items=62,
    memory_init="blocks",
    epochs=62,
    batch_size=4,
    lr=1e-3,
    schedule="cosine",
    held_out=0.2,
    scaling="normals",
    false_alarms=0.06,
)

DEFAULTS, HERE = Config.of("photographs"), Hardware()

app = SubcommandApp()


@app.command
def demo(
    out: Annotated[Path, arg(help="Folder to make.")] = Path("runs/demo"),
    epochs: Annotated[int, arg(help="Passes over the training pictures.")] = DEMO.epochs,
) -> None:
    """Draw a small data set, train a small DAAD on it, and show what it finds."""
    from daad.drawn import make_dataset  # the one command that draws

    out = _new_folder(out)
    console.print(f"Drawing pictures of cloth, at any angle, into {out / 'data'}")
    (name,) = make_dataset(
        out / "data",
        image_size=DEMO.image_size,
        test_good=24,
        test_per_defect=12,
        categories=["cloth"],
    )
    config = dataclasses.replace(DEMO, epochs=epochs)
    _train_all(config, [load_category(out / "data", name)], out, Hardware("cpu"), resume=False)
    console.print(f"With your own pictures: python {sys.argv[0]} train --good FOLDER")


@app.command
def train(
    config: OmitArgPrefixes[Config] = DEFAULTS,
    *,
    good: Annotated[Path | None, arg(help="Folder of normal pictures, and all below it.")] = None,
    bad: Annotated[
        Path | None, arg(help="Folder of anomalous ones to test with, and all below it.")
    ] = None,
    root: Annotated[Path | None, arg(help="Folder of categories in MVTec layout.")] = None,
    category: Annotated[
        UseAppendAction[tuple[str, ...]], arg(help="A category in ROOT; repeat it, or all.")
    ] = (),
    out: Annotated[
        Path | None, arg(help="A run folder for each category goes here; runs/VARIANT.")
    ] = None,
    preset: Annotated[Preset | None, arg(help=command.PRESET)] = None,
    steps: Annotated[
        int | None, arg(help="Train for about this many batches, in place of --epochs.")
    ] = None,
    hardware: OmitArgPrefixes[Hardware] = HERE,
    tensorboard: command.TensorBoard = False,
    resume: Annotated[bool, arg(help="Go on with the runs that are in OUT.")] = False,
    settings: command.Settings = None,
) -> None:
    """Train on good pictures, and evaluate where there are anomalous ones too."""
    if (good is None) == (root is None):
        raise UserError("give --good FOLDER of normal pictures, or --root ROOT --category NAME")
    if (root is None and category) or (good is None and bad is not None):
        raise UserError("--bad goes with --good, and --category with --root")
    if good is not None:
        categories = [load_folders(good, bad)]
    elif root is not None:
        names = list_categories(root) if "all" in category else list(dict.fromkeys(category))
        if not names:
            raise UserError(f"--category: give one of {', '.join(list_categories(root))}, or all")
        categories = [load_category(root, name) for name in names]
    processes = max(hardware.devices * hardware.num_nodes, int(os.environ.get("WORLD_SIZE", "1")))
    if processes > 1 and len(categories) > 1:
        raise UserError(
            f"several devices train one category at a time; {len(categories)} were given"
        )
    config = config.resolve()
    out = out or Path("runs", config.variant)
    _train_all(
        config, categories, out, hardware, steps=steps, resume=resume, tensorboard=tensorboard
    )


@app.command
def evaluate(
    run: command.Run,
    root: command.Moved = None,
    gamma: command.Gamma = None,
    scaling: command.Scaling = None,
    batch_norm: command.BatchNorm = None,
    false_alarms: command.FalseAlarms = None,
    even_light: command.EvenLight = False,
    maps: Annotated[
        Path | None, arg(help="Folder for the maps, as .tiff for MVTec's own evaluation.")
    ] = None,
    device: command.Device = "auto",
) -> None:
    """Score the test set with a trained run again; writes over its scores, metrics and figures."""
    choices = command.given(
        gamma=gamma, scaling=scaling, batch_norm=batch_norm, false_alarms=false_alarms
    )
    task = load_again(read_settings(run, "category")["data"], root)
    metrics = evaluate_run(
        run, task, pick_device(device), even_light=even_light, maps=maps, **choices
    )
    show_results([metrics], [run])


@app.command(name="predict")
def predict_pictures(
    run: command.Run,
    pictures: Annotated[
        tuple[str, ...], arg(help="Pictures, folders of them with all below, or patterns with *.")
    ],
    out: Annotated[
        Path | None, arg(help="New folder for predictions.csv and heat maps; predictions.")
    ] = None,
    false_alarms: command.FalseAlarms = None,
    even_light: command.EvenLight = False,
    heatmaps: Annotated[bool, arg(help="Whether to write a heat map a picture.")] = True,
    top: Annotated[int, arg(help="How many of the highest scores to show.")] = 10,
    device: command.Device = "auto",
) -> None:
    """Say of pictures whether they are normal or anomalous. Exit code 1: some could not be read."""
    judge = predicting.Judge(
        run, pick_device(device), false_alarms=false_alarms, even_light=even_light
    )
    out = out or _new_folder(Path("predictions"))
    found = find_pictures(pictures, out)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("pictures", total=len(found.pictures))
        summary = predict(
            judge,
            found,
            out,
            heatmaps=heatmaps,
            top=top,
            step=lambda count: progress.advance(task, count),
        )
    show_predictions(summary, out, heatmaps=heatmaps)
    show_passed_over(found.passed_over)
    if summary.skipped:
        for name, reason in summary.skipped[:10]:
            print(f"skipped {printable(name)}: {printable(reason)}", file=sys.stderr)
        print(f"{len(summary.skipped)} skipped; all are in {out / 'skipped.csv'}", file=sys.stderr)
        sys.exit(1)


@app.command(name="export")
def export_run(
    run: command.Run,
    out: Annotated[
        Path | None, arg(help="File to write; RUN/model.onnx, or RUN/model.pt2.")
    ] = None,
    form: Annotated[
        Format, arg(name="format", help="onnx for ONNX Runtime, torch for torch.export.load.")
    ] = "onnx",
    false_alarms: command.FalseAlarms = None,
    even_light: command.EvenLight = False,
) -> None:
    """Write a run as one file that judges pictures without this program; see run_onnx.py."""
    judge = predicting.Judge(
        run, pick_device("cpu"), false_alarms=false_alarms, even_light=even_light
    )
    path = out or run / f"model.{SUFFIXES[form]}"
    name = read_settings(run, "category")["data"]["category"]
    difference = export(judge, name, path, form)
    console.print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB; its scores differ from the run's by "
        f"{difference:.0e} of their size",
        soft_wrap=True,
    )


def _train_all(
    config: Config,
    categories: Sequence[Category],
    out: Path,
    hardware: Hardware,
    *,
    steps: int | None = None,
    resume: bool,
    tensorboard: bool = False,
) -> None:
    """Train one run for each category, in OUT/NAME; with several, write OUT/summary.csv."""
    folders = [out / category.name for category in categories]
    if is_first_process():  # all folders are looked at before hours go into the first
        claim_folders(folders, resume=resume)
    results = []
    for category, folder in zip(categories, folders, strict=True):
        learned, held_out = split_normals(category.train, config.held_out)
        chosen = category.completed(config)
        if is_first_process():
            introduce(category, chosen, len(learned), len(held_out))
        if steps is not None:
            epochs = command.epochs_of(steps, len(learned), config)
            chosen = dataclasses.replace(chosen, epochs=epochs)
        found = run(
            chosen,
            category,
            folder,
            hardware,
            resume=resume,
            tensorboard=tensorboard,
            advice=command.QUICKER,
        )
        results.append(found)
        if len(categories) > 1:
            write_summary(out / "summary.csv", results)
    show_results(results, folders)


def _new_folder(path: Path) -> Path:
    """Give `path`, or the first of path-2, path-3 ... that is not there: nothing is written over."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(folder for folder in itertools.chain([path], numbered) if not folder.exists())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script on `arguments`, as `command.run_app` says; without any: demo."""
    command.run_app(app, __doc__, arguments, default="demo", presets=["train"])


if __name__ == "__main__":
    main()
