"""Anomaly scores of frames as MNAD evaluates them, the areas under the ROC curve, and score curves.

The paper names no score for video; it follows "the experimental setting in [31]" (appendix,
"Experiments on Video Datasets"). That is MNAD (Park et al., CVPR 2020), and the score here is the
part of MNAD's that comes from the frame's error: its PSNR, scaled over the frames of its clip.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from daad.config import Config
from daad.io import write_csv
from daad.metrics import image_auroc
from daad.network import Networks
from daad.pictures import Pictures
from daad.report import BLUE, INK, ORANGE, PALE, calm, save_figure
from daad.scoring import min_max, score_pictures

# Rounding to 8 bits alone leaves 59 dB; a perfect reconstruction would have infinitely many.
HIGHEST_PSNR = 100.0
NORMALISATIONS = ("clip", "global")  # what a score is scaled over: its clip's frames, or all
SIZE = (7.2, 2.8)  # inches of a curve
COLUMNS = (
    *("clip", "frame", "error", "psnr", "score_clip", "score_global"),
    *("alignment", "fused_clip", "fused_global", "label"),
)


@dataclass(frozen=True)
class Clip:
    """The frames of one clip in their order in time."""

    name: str
    frames: list[Path]


@dataclass(frozen=True)
class FrameScores:
    """What the n frames of test clips give, one clip after the other; float64 (n,).

    clips, labels: the clips, and for each bool (frames,), True where a frame is abnormal.
    error: mean squared difference of frame and reconstruction, in [-1, 1].
    psnr: the same in dB, at most `HIGHEST_PSNR`.
    alignment: L(x) of Eq. 7; None without a discriminator.
    score: by `NORMALISATIONS`, PSNR scaled so that its highest is 0 and its lowest 1.
    fused: by `NORMALISATIONS`, Eq. 7 with `score` for R and L scaled likewise; None where L is.
    """

    clips: Sequence[Clip]
    labels: Sequence[Tensor]
    error: Tensor
    psnr: Tensor
    alignment: Tensor | None
    score: dict[str, Tensor]
    fused: dict[str, Tensor] | None

    @property
    def auroc(self) -> float | None:
        """The frame AUROC, each score scaled over its clip."""
        return self._area(self.score["clip"])

    def by_clip(self, values: Tensor) -> list[Tensor]:
        """Cut values (n,) into those of each clip."""
        return list(values.split([len(clip.frames) for clip in self.clips]))

    def metrics(self) -> dict[str, Any]:
        """Compute the AUROC over all frames, and within each clip, where scaling changes nothing."""
        clips = {
            clip.name: {
                "frames": len(clip.frames),
                "abnormal": int(abnormal.sum()),
                "frame_auroc": image_auroc(scores, abnormal),
            }
            for clip, abnormal, scores in zip(
                self.clips, self.labels, self.by_clip(-self.psnr), strict=True
            )
        }
        named = {"frame_auroc": self.score, "fused_frame_auroc": self.fused}
        areas = {
            name: {over: self._area(values) for over, values in scores.items()}
            for name, scores in named.items()
            if scores is not None
        }
        abnormal = int(torch.cat(list(self.labels)).sum())
        counts = {"clips": len(clips), "frames": len(self.error), "abnormal": abnormal}
        return {**areas, "counts": counts, "clips": clips}

    def _area(self, values: Tensor) -> float | None:
        return image_auroc(values, torch.cat(list(self.labels)))


def score_frames(
    networks: Networks,
    frames: Pictures,
    clips: Sequence[Clip],
    labels: Sequence[Tensor],
    config: Config,
) -> FrameScores:
    """Score all `frames`, which are those of the `clips`; see `FrameScores`.

    They go through clip by clip, since their error maps are large. UserError where an error is
    not finite.
    """
    errors, alignments = [], []
    for clip in excerpts(frames, [len(clip.frames) for clip in clips]):
        raw = score_pictures(networks, clip, config)
        # Not raw.reconstruction, which `config.distance` may have made a norm.
        errors.append(raw.error_maps.mean((1, 2), dtype=torch.float64))
        if raw.alignment is not None:
            alignments.append(raw.alignment)
    alignment = torch.cat(alignments) if alignments else None
    return combine(clips, labels, torch.cat(errors), alignment, config.gamma)


def combine(
    clips: Sequence[Clip],
    labels: Sequence[Tensor],
    error: Tensor,
    alignment: Tensor | None,
    gamma: float,
) -> FrameScores:
    """Compute the scores that follow from errors (n,) and, with a discriminator, from L (n,).

    The paper does not say whether its video results use the discriminator. Eq. 7 is taken to hold
    for a frame as for any picture, with the score by PSNR for the scaled R.
    """
    lengths = [len(clip.frames) for clip in clips]
    ratio = psnr(error)
    score = {over: scaled(-ratio, lengths, over) for over in NORMALISATIONS}
    fused = None
    if alignment is not None:
        fused = {
            over: gamma * score[over] + (1 - gamma) * scaled(alignment, lengths, over)
            for over in NORMALISATIONS
        }
    return FrameScores(clips, labels, error, ratio, alignment, score, fused)


def psnr(error: Tensor) -> Tensor:
    """Compute 10 log10(1 / MSE) in dB, of pictures in [0, 1]; `error` (n,) is their MSE in [-1, 1].

    Half the range makes a quarter of the squared error. At most `HIGHEST_PSNR`.
    """
    return (-10 * torch.log10(error / 4)).clamp(max=HIGHEST_PSNR)


def scaled(values: Tensor, lengths: Sequence[int], over: str) -> Tensor:
    """Scale values (n,) linearly to [0, 1] over the frames of each clip ("clip") or all ("global").

    Where they are all one they become zeros: nothing stands out.
    """
    if over == "global":
        return min_max(values)
    return torch.cat([min_max(part) for part in values.split(list(lengths))])


@dataclass
class Excerpt:
    """`length` pictures of `pictures` from `start` on: one clip of all."""

    pictures: Pictures
    start: int
    length: int

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Tensor, device: torch.device | str) -> Tensor:
        """Give pictures `indices` (b,) of the excerpt as (b, 3, S, S) in [-1, 1] on `device`."""
        return self.pictures.batch(indices + self.start, device)


def excerpts(pictures: Pictures, lengths: Sequence[int]) -> Iterator[Excerpt]:
    """Cut `pictures` into consecutive excerpts of `lengths` pictures."""
    start = 0
    for length in lengths:
        yield Excerpt(pictures, start, length)
        start += length


# What is written and drawn


def write_scores(path: Path, found: FrameScores) -> None:
    """Write a row of `COLUMNS` for each frame; what needs a discriminator is blank without one."""
    names = [(clip.name, frame.name) for clip in found.clips for frame in clip.frames]
    blank: list[Any] = [""] * len(names)

    def both(scores: dict[str, Tensor] | None) -> list[list[Any]]:
        return [blank if scores is None else scores[over].tolist() for over in NORMALISATIONS]

    values = zip(
        *(found.error.tolist(), found.psnr.tolist(), *both(found.score)),
        blank if found.alignment is None else found.alignment.tolist(),
        *both(found.fused),
        torch.cat(list(found.labels)).int().tolist(),
        strict=True,
    )
    write_csv(path, COLUMNS, [(*name, *row) for name, row in zip(names, values, strict=True)])


def draw_curves(folder: Path, found: FrameScores) -> None:
    """Write the score curve of each clip into FOLDER/CLIP.png."""
    curves = {
        "score, scaled over the clip": found.score["clip"],
        "scaled over all clips": found.score["global"],
    }
    if found.fused is not None:
        curves["with L (Eq. 7), over the clip"] = found.fused["clip"]
    cut = {name: found.by_clip(values) for name, values in curves.items()}
    for index, clip in enumerate(found.clips):
        own = {name: scores[index] for name, scores in cut.items()}
        save_figure(folder / f"{clip.name}.png", score_curve(clip.name, own, found.labels[index]))


def score_curve(clip: str, curves: dict[str, Tensor], labels: Tensor) -> Figure:
    """Draw scores (n,) of a clip's frames by the name of each curve, with abnormal frames shaded.

    The first curve is the one that counts; the others are thin. labels: bool (n,).
    """
    figure = Figure(figsize=SIZE, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    calm(axes)
    for number, (start, stop) in enumerate(intervals(labels)):
        # A frame is as wide as the step between two, so that a single one is seen too.
        label = None if number else "abnormal (true)"
        axes.axvspan(start - 0.5, stop - 0.5, color=ORANGE, alpha=0.18, linewidth=0, label=label)
    styles: list[dict[str, Any]] = [
        {"color": BLUE, "linewidth": 1.8, "zorder": 3},
        {"color": PALE, "linewidth": 1.2},
        {"color": INK, "linewidth": 1.0, "linestyle": "--"},
    ]
    marker = "o" if len(labels) == 1 else None  # a line through a single frame would not be seen
    for (name, scores), style in zip(curves.items(), styles, strict=False):
        axes.plot(range(len(labels)), scores.tolist(), label=name, marker=marker, **style)
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(-0.04, 1.04))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_title(f"clip {clip}", fontsize=10, color=INK, loc="left", parse_math=False)
    axes.set_xlabel("frame", fontsize=9, color=INK)
    axes.set_ylabel("anomaly score", fontsize=9, color=INK)
    figure.legend(
        frameon=False, fontsize=8, labelcolor=INK, loc="outside upper right", ncols=len(curves) + 1
    )
    return figure


def intervals(labels: Tensor) -> list[tuple[int, int]]:
    """Find where labels (n,) are True: the first frame of each interval, and the one after its last."""
    padded = [False, *labels.tolist(), False]
    changes = [frame for frame in range(len(labels) + 1) if padded[frame] != padded[frame + 1]]
    return list(zip(changes[::2], changes[1::2], strict=True))
