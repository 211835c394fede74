"""A run on video from frames to score curves, in a folder of its own: train, score, draw."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daad.batches import Pictures
from daad.checkpoint import CHECKPOINT, checkpoint_to_resume, load_models
from daad.config import Config
from daad.curves import score_curve
from daad.data import PictureFiles
from daad.devices import is_first_process, pick_device
from daad.evaluation import METRICS, oracle
from daad.files import write_csv, write_json
from daad.frame_scores import FrameScores, frame_auroc, score_frames
from daad.model import Discriminator, Generator
from daad.plotting import save_figure
from daad.report import draw_history
from daad.runs import (
    Hardware,
    claim_folders,
    read_settings,
    require_same_data,
    write_settings,
)
from daad.scoring import image_auroc
from daad.training import Scorer, train
from daad.video import Video, all_frames, load_video

# Of the paper's appendix, "Experiments on Video Datasets", where it differs from photographs. The
# flips of Section 4.1 are not named there, and the setting that it follows (MNAD) has none. The
# last entry is ours: an epoch is long.
VIDEO = {
    **{"num_items": 2000, "epochs": 60, "batch_size": 4, "lr": 2e-4, "flips": "none"},
    "checkpoint_every": 5,
}
DIVISION = (16, 16, 1)

COLUMNS = (
    *("clip", "frame", "error", "psnr", "score_clip", "score_global"),
    *("alignment", "fused_clip", "fused_global", "label"),
)


def resolve(config: Config) -> Config:
    """`config.resolve()` with the paper's division for video, 16,16,1, in place of 8,8,1."""
    if config.division is None and not config.variant.startswith("memae"):
        config = dataclasses.replace(config, division=DIVISION)
    return config.resolve()


def run_video(
    config: Config,
    video: Video,
    run: Path,
    hardware: Hardware,
    *,
    resume: bool = False,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Train on the training clips of `video` and evaluate on its test clips; returns the metrics.

    config: resolved. The folder `run` is made: config.json, history.csv, checkpoint.ckpt,
    scores.csv, metrics.json and figures/. UserError where it exists, unless `resume` is to go on
    with it. OutOfTime where training was not done at the `deadline`; see `train`.
    """
    device = pick_device(hardware.device)
    if is_first_process():
        claim_folders([run], resume=resume)
    resume = resume and (run / CHECKPOINT).exists()
    if resume:
        checkpoint_to_resume(run / CHECKPOINT, config)
        require_same_data(run, video.source)
    learned = PictureFiles(all_frames(video.train), config.image_size)
    tested = PictureFiles(all_frames(video.test), config.image_size)
    if is_first_process():  # nothing is written before all that can be checked is
        write_settings(run, config, video.source, hardware, resume=resume)
    scorer = _scorer(config, video, tested) if config.evaluate_every else None
    train(
        config,
        learned,
        run,
        **dataclasses.asdict(hardware),
        resume=resume,
        scorer=scorer,
        deadline=deadline,
    )
    return evaluate_video(run, video, device, tested)


def evaluate_video_run(
    run: Path, device: str, root: Path | None = None, labels: Path | None = None, **choices: Any
) -> dict[str, Any]:
    """Evaluate a trained run again, on the video it was trained on.

    `root` and `labels` where its data has moved to; `choices` are fields of `Config` that matter
    at test only.
    """
    settings = read_settings(run, "labels")["data"]
    if root is None:
        root, labels = Path(settings["root"]), labels or Path(settings["labels"])
    return evaluate_video(run, load_video(root, labels), pick_device(device), **choices)


def evaluate_video(
    run: Path,
    video: Video,
    device: torch.device,
    frames: Pictures | None = None,
    **choices: Any,
) -> dict[str, Any]:
    """Score the test frames of `video` with the checkpoint in `run`, and write what was found.

    Into `run` go scores.csv (a row a frame), metrics.json, figures/curves/<clip>.png and, with a
    history, figures/history.png; the metrics are returned. `choices` are fields of `Config` that
    only matter here (gamma, batch_norm), to be other than in training. `frames` are the test
    frames where they have been decoded already.
    """
    config, generator, discriminator, checkpoint = load_models(run, device)
    config = dataclasses.replace(config, **choices).resolve()
    frames = frames or PictureFiles(all_frames(video.test), config.image_size)
    found = score_frames(generator, discriminator, frames, _lengths(video), config, device)
    history = checkpoint.get("history", [])
    metrics = {
        "variant": config.variant,
        "video": video.name,
        "epoch": checkpoint["epoch"],
        "scaling": "test",
        "gamma": config.gamma,
        "batch_norm": config.batch_norm,
        **_metrics(video, found),
        **oracle(history, "frame_auroc"),
    }
    write_csv(run / "scores.csv", COLUMNS, _rows(video, found))
    write_json(run / METRICS, metrics)
    _draw_curves(run / "figures" / "curves", video, found)
    if history:
        draw_history(run / "figures" / "history.png", history)
    return metrics


def _metrics(video: Video, found: FrameScores) -> dict[str, Any]:
    """AUROCs over all test frames, and within each clip, where scaling over it changes nothing."""
    labels = torch.cat(video.labels)
    clips = {
        clip.name: {
            "frames": len(clip.frames),
            "abnormal": int(abnormal.sum()),
            "frame_auroc": image_auroc(scores, abnormal),
        }
        for clip, abnormal, scores in zip(
            video.test, video.labels, found.by_clip(-found.psnr), strict=True
        )
    }
    metrics: dict[str, Any] = {"frame_auroc": frame_auroc(found.score, video.labels)}
    if found.fused is not None:
        metrics["fused_frame_auroc"] = frame_auroc(found.fused, video.labels)
    counts = {"clips": len(clips), "frames": len(labels), "abnormal": int(labels.sum())}
    return metrics | {"counts": counts, "clips": clips}


def _rows(video: Video, found: FrameScores) -> list[tuple[Any, ...]]:
    """A row of `COLUMNS` for each frame; what needs a discriminator is blank without one."""
    blank: list[str] = [""] * len(found.error)
    names = [(clip.name, frame.name) for clip in video.test for frame in clip.frames]
    fused = [blank, blank] if found.fused is None else _columns(found.fused)
    values = zip(
        found.error.tolist(),
        found.psnr.tolist(),
        *_columns(found.score),
        blank if found.alignment is None else found.alignment.tolist(),
        *fused,
        torch.cat(video.labels).int().tolist(),
        strict=True,
    )
    return [(*name, *row) for name, row in zip(names, values, strict=True)]


def _columns(scores: dict[str, Tensor]) -> list[list[Any]]:
    return [scores["clip"].tolist(), scores["global"].tolist()]


def _draw_curves(folder: Path, video: Video, found: FrameScores) -> None:
    curves = {
        "score, scaled over the clip": found.by_clip(found.score["clip"]),
        "scaled over all clips": found.by_clip(found.score["global"]),
    }
    if found.fused is not None:
        curves["with L (Eq. 7), over the clip"] = found.by_clip(found.fused["clip"])
    for index, clip in enumerate(video.test):
        own = {name: scores[index] for name, scores in curves.items()}
        save_figure(folder / f"{clip.name}.png", score_curve(clip.name, own, video.labels[index]))


def _lengths(video: Video) -> Sequence[int]:
    return [len(clip.frames) for clip in video.test]


def _scorer(config: Config, video: Video, frames: Pictures) -> Scorer:
    """Frame AUROC, scaled over the clip, of the networks as training has them."""

    def score(generator: Generator, discriminator: Discriminator | None) -> float:
        device = next(generator.parameters()).device
        found = score_frames(generator, discriminator, frames, _lengths(video), config, device)
        auroc = frame_auroc(found.score, video.labels)["clip"]
        assert auroc is not None  # load_video has seen frames of both kinds
        return auroc

    return score
