"""DAAD on video, frame by frame (UCSD Ped2, CUHK Avenue): train, evaluate.

python examples/daad_video.py train --root ped2
python examples/daad_video.py train --root avenue --labels frame_labels_avenue.npy --variant ae
python examples/daad_video.py evaluate --run runs/daad/ped2

ROOT holds training/frames/CLIP and testing/frames/CLIP, and the labels of the test frames:
frame_labels.npz, frame_labels.npy or UCSD's masks in testing/frames/CLIP_gt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from daad.config import Config
from daad.devices import is_first_process
from daad.options import (
    BatchNorm,
    Device,
    Devices,
    Gamma,
    Machines,
    Moved,
    Run,
    auroc_text,
    config_options,
    given,
    make_app,
    run_app,
)
from daad.runs import Hardware
from daad.video import load_video
from daad.video_runs import VIDEO, evaluate_video_run, resolve, run_video

app = make_app(__doc__, no_args_is_help=True)
console = Console()

Labels = Annotated[
    Path | None,
    typer.Option(
        help="A .npz by clip, MNAD's .npy, or a folder of CLIP_gt masks; looked for in ROOT."
    ),
]


@app.command()
# Scores are scaled over the test frames, as MNAD does; nothing is held out for another scale.
@config_options("scaling", "held_out", defaults=VIDEO)
def train(
    config: Config,
    root: Annotated[Path, typer.Option(help="Folder of training/frames and testing/frames.")],
    labels: Labels = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder to make; runs/VARIANT/ROOT's name.")
    ] = None,
    device: Device = "auto",
    devices: Devices = 1,
    num_nodes: Machines = 1,
    resume: Annotated[bool, typer.Option(help="Go on with the run that is in OUT.")] = False,
) -> None:
    """Train on the clips in ROOT/training/frames and evaluate on those in ROOT/testing/frames."""
    config = resolve(config)
    video = load_video(root, labels)
    run = out or Path("runs") / config.variant / video.name
    if is_first_process():
        frames = sum(len(clip.frames) for clip in video.train)
        console.print(f"[bold]{video.name}[/bold]: {len(video.train)} clips, {frames} frames")
    hardware = Hardware(device, devices, num_nodes)
    _show(run_video(config, video, run, hardware, resume=resume), run)


@app.command()
def evaluate(
    run: Run,
    root: Moved = None,
    labels: Labels = None,
    gamma: Gamma = None,
    batch_norm: BatchNorm = None,
    device: Device = "auto",
) -> None:
    """Score the test clips with a trained run again; writes scores, metrics and curves anew."""
    choices = given(gamma=gamma, batch_norm=batch_norm)
    _show(evaluate_video_run(run, device, root, labels, **choices), run)


def _show(metrics: dict[str, Any], run: Path) -> None:
    """AUROC over all test frames by what their scores are scaled over, and within each clip."""
    table = Table(title=f"Frame AUROC of {metrics['variant']} on {metrics['video']}")
    table.add_column("clip")
    for heading in ("frames", "abnormal", "AUROC"):
        table.add_column(heading, justify="right")
    for name, clip in metrics["clips"].items():
        counts = [str(clip[name]) for name in ("frames", "abnormal")]
        table.add_row(name, *counts, auroc_text(clip["frame_auroc"]))
    table.add_section()
    counts = [str(metrics["counts"][name]) for name in ("frames", "abnormal")]
    for kind, what in (("frame_auroc", "PSNR"), ("fused_frame_auroc", "PSNR and L")):
        for over, words in (("clip", "each clip"), ("global", "all clips")):
            if kind in metrics:
                table.add_row(f"all, {what} over {words}", *counts, auroc_text(metrics[kind][over]))
    console.print(table)
    console.print(
        f"Curves: {run / 'figures' / 'curves'}    Scores: {run / 'scores.csv'}", soft_wrap=True
    )


def run(arguments: Sequence[str] | None = None) -> None:
    """The script on `arguments`, as `run_app` says."""
    run_app(app, arguments)


if __name__ == "__main__":
    run()
