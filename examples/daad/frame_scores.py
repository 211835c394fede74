"""Anomaly scores of frames as MNAD evaluates them, and the areas under the ROC curve they give.

The paper names no score for video; it follows "the experimental setting in [31]" (appendix,
"Experiments on Video Datasets"). That is MNAD (Park et al., CVPR 2020), and the score here is the
part of MNAD's that comes from the frame's error: its PSNR, scaled over the frames of its clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from daad.batches import Pictures
from daad.config import Config
from daad.scoring import image_auroc, min_max, score_pictures
from daad.video import excerpts

# Rounding to 8 bits alone leaves 59 dB; a perfect reconstruction would have infinitely many.
HIGHEST_PSNR = 100.0
NORMALISATIONS = ("clip", "global")  # what a score is scaled over: its clip's frames, or all


@dataclass(frozen=True)
class FrameScores:
    """What n frames of clips of `lengths` frames give, one clip after the other; float64 (n,).

    error: mean squared difference of frame and reconstruction, in [-1, 1].
    psnr: the same in dB, at most `HIGHEST_PSNR`.
    alignment: L(x) of Eq. 7; None without a discriminator.
    score: by `NORMALISATIONS`, PSNR scaled so that its highest is 0 and its lowest 1.
    fused: by `NORMALISATIONS`, Eq. 7 with `score` for R and L scaled likewise; None where L is.
    """

    lengths: list[int]
    error: Tensor
    psnr: Tensor
    alignment: Tensor | None
    score: dict[str, Tensor]
    fused: dict[str, Tensor] | None

    def by_clip(self, values: Tensor) -> list[Tensor]:
        """Values (n,) cut into those of each clip."""
        return list(values.split(self.lengths))


def score_frames(
    generator: nn.Module,
    discriminator: nn.Module | None,
    frames: Pictures,
    lengths: Sequence[int],
    config: Config,
    device: torch.device,
) -> FrameScores:
    """Scores of all `frames`, which are those of clips of `lengths` frames.

    They go through clip by clip, since their error maps are large. UserError where an error is
    not finite.
    """
    errors, alignments = [], []
    for clip in excerpts(frames, lengths):
        raw = score_pictures(generator, discriminator, clip, config, device)
        # Not raw.reconstruction, which `config.distance` may have made a norm.
        errors.append(raw.error_maps.mean((1, 2), dtype=torch.float64))
        alignments.append(raw.alignment)
    alignment = None if discriminator is None else torch.cat(alignments)
    return combine(torch.cat(errors), alignment, lengths, config.gamma)


def combine(
    error: Tensor, alignment: Tensor | None, lengths: Sequence[int], gamma: float
) -> FrameScores:
    """The scores that follow from errors (n,) and, with a discriminator, from L (n,).

    The paper does not say whether its video results use the discriminator. Eq. 7 is taken to hold
    for a frame as for any picture, with the score by PSNR for the scaled R.
    """
    ratio = psnr(error)
    score = {over: scaled(-ratio, lengths, over) for over in NORMALISATIONS}
    fused = None
    if alignment is not None:
        fused = {
            over: gamma * score[over] + (1 - gamma) * scaled(alignment, lengths, over)
            for over in NORMALISATIONS
        }
    return FrameScores(list(lengths), error, ratio, alignment, score, fused)


def psnr(error: Tensor) -> Tensor:
    """10 log10(1 / MSE) in dB, of pictures in [0, 1]; `error` (n,) is their MSE in [-1, 1].

    Half the range makes a quarter of the squared error. At most `HIGHEST_PSNR`.
    """
    return (-10 * torch.log10(error / 4)).clamp(max=HIGHEST_PSNR)


def scaled(values: Tensor, lengths: Sequence[int], over: str) -> Tensor:
    """Values (n,) scaled linearly to [0, 1] over the frames of each clip ("clip") or all ("global").

    Where they are all one they become zeros: nothing stands out.
    """
    if over == "global":
        return min_max(values)
    return torch.cat([min_max(part) for part in values.split(list(lengths))])


def frame_auroc(scores: dict[str, Tensor], labels: Sequence[Tensor]) -> dict[str, float | None]:
    """Area under the ROC curve over the frames of all clips, by what the scores are scaled over.

    labels: bool (frames,) for each clip. None where the frames are all of one kind.
    """
    return {over: image_auroc(values, torch.cat(list(labels))) for over, values in scores.items()}
