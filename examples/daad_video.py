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

from rich.console import Console
from rich.table import Table
from tyro.conf import OmitArgPrefixes, arg
from tyro.extras import SubcommandApp

from daad import command
from daad.config import Config
from daad.folder import Hardware, read_settings
from daad.machine import is_first_process, pick_device
from daad.run import evaluate as evaluate_run
from daad.run import run
from daad.unpacking import unpack
from daad.video import load_video

app = SubcommandApp()
console = Console()

Labels = Annotated[
    Path | None,
    arg(help="A .npz by clip, MNAD's .npy, or a folder of CLIP_gt masks; looked for in ROOT."),
]
DEFAULTS, HERE = Config.of("video"), Hardware()


@app.command
def train(
    config: OmitArgPrefixes[Config] = DEFAULTS,
    *,
    root: Annotated[Path, arg(help="Folder of training/frames and testing/frames.")],
    labels: Labels = None,
    out: Annotated[
        Path | None, arg(help="The run's folder to make; runs/VARIANT/ROOT's name.")
    ] = None,
    hardware: OmitArgPrefixes[Hardware] = HERE,
    tensorboard: command.TensorBoard = False,
    resume: Annotated[bool, arg(help="Go on with the run that is in OUT.")] = False,
    settings: command.Settings = None,
) -> None:
    """Train on the clips in ROOT/training/frames and evaluate on those in ROOT/testing/frames."""
    video = load_video(root, labels)
    folder = out or Path("runs") / config.variant / video.name
    if is_first_process():
        frames = sum(len(clip.frames) for clip in video.train)
        console.print(f"[bold]{video.name}[/bold]: {len(video.train)} clips, {frames} frames")
    metrics = run(config, video, folder, hardware, resume=resume, tensorboard=tensorboard)
    _show(metrics, folder)


@app.command
def evaluate(
    run: command.Run,
    root: command.Moved = None,
    labels: Labels = None,
    gamma: command.Gamma = None,
    batch_norm: command.BatchNorm = None,
    device: command.Device = "auto",
) -> None:
    """Score the test clips with a trained run again; writes over scores, metrics and curves."""
    data = read_settings(run, "labels")["data"]
    if root is None:
        root, labels = Path(data["root"]), labels or Path(data["labels"])
    choices = command.given(gamma=gamma, batch_norm=batch_norm)
    _show(evaluate_run(run, load_video(root, labels), pick_device(device), **choices), run)


@app.command(name="unpack")
def unpack_video(
    source: Annotated[Path, arg(help="Folder of training_videos and testing_videos.")],
    out: Annotated[Path, arg(help="Folder of frames to make, which train takes as its --root.")],
) -> None:
    """Make frames and labels of CUHK Avenue's .avi and .mat files."""
    counts = unpack(source, out)
    console.print(f"{len(counts)} videos, {sum(counts.values())} frames: {out}")


def _show(metrics: dict[str, Any], folder: Path) -> None:
    """Print the AUROC over all test frames by what scores are scaled over, and within each clip."""
    table = Table(title=f"Frame AUROC of {metrics['variant']} on {metrics['video']}")
    table.add_column("clip")
    for heading in ("frames", "abnormal", "AUROC"):
        table.add_column(heading, justify="right")
    for name, clip in metrics["clips"].items():
        counts = [str(clip[name]) for name in ("frames", "abnormal")]
        table.add_row(name, *counts, command.auroc_text(clip["frame_auroc"]))
    table.add_section()
    counts = [str(metrics["counts"][name]) for name in ("frames", "abnormal")]
    for kind, what in (("frame_auroc", "PSNR"), ("fused_frame_auroc", "PSNR and L")):
        for over, words in (("clip", "each clip"), ("global", "all clips")):
            if kind in metrics:
                area = command.auroc_text(metrics[kind][over])
                table.add_row(f"all, {what} over {words}", *counts, area)
    console.print(table)
    console.print(
        f"Curves: {folder / 'figures' / 'curves'}    Scores: {folder / 'scores.csv'}",
        soft_wrap=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script on `arguments`, as `command.run_app` says."""
    command.run_app(app, __doc__, arguments)


if __name__ == "__main__":
    main()
