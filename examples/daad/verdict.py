"""The verdict on a picture: how far its errors lie beyond those of normal pictures, and how rare that is.

score: the highest value of a picture's standardised map. The map is `evened_errors`, less its mean over
normal pictures, over its deviation over them, at each pixel. Normal pictures were learned from.
p: the share of normal pictures, the judged one among them, that score as high. These normal
pictures were held out from training where there are enough.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from daad.config import Config
from daad.io import UserError
from daad.network import Networks
from daad.pictures import Normals
from daad.scoring import Scale, peaks, score_batches

# Of the average deviation, added to each: where normal pictures hardly differ, a small error is none.
FLOOR = 0.1
FEW = 20  # normal pictures to judge by, below which the smallest possible p says little
NORMAL, ANOMALOUS = "normal", "anomalous"


class Threshold(NamedTuple):
    """A score above `value` is anomalous. Of normal pictures at most the share `rate` is.

    asked: the rate that was asked for; `rate` is higher where there are too few normal pictures.
    """

    value: float
    rate: float
    asked: float

    def verdict(self, score: float) -> str:
        """Say "anomalous" or "normal"."""
        return ANOMALOUS if score > self.value else NORMAL


class Reference(NamedTuple):
    """What a run knows of normal pictures.

    mean, deviation: of their `evened_errors` at each pixel, (S, S) float32.
    scores: of the `source` pictures, "held-out" or "train" (those learned from); ascending, (n,) float64.
    scale: the ranges of Eq. 7 over all of them.
    """

    mean: Tensor
    deviation: Tensor
    scores: Tensor
    scale: Scale
    source: str

    @classmethod
    def of(cls, networks: Networks, normals: Normals, config: Config) -> "Reference":
        """Measure normal pictures: deviations by those learned from, scores of those held out, if any.

        UserError where fewer than two are learned from, or all have the same errors.
        """
        size = config.image_size
        total, squares = torch.zeros(2, size, size, dtype=torch.float64)
        raws = []
        for raw in score_batches(networks, normals.learned, config):
            maps = raw.evened_maps.double()
            total += maps.sum(0)
            squares += maps.square().sum(0)
            raws.append(raw.without_pictures())
        count = len(normals.learned)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
        if count < 2 or deviation.mean() <= torch.finfo(torch.float32).eps * mean.mean():
            raise UserError(
                f"{count} normal picture(s) to learn from, and no two of them differ: scores tell how "
                f"far a picture lies beyond what normal ones vary by; give more normal pictures"
            )
        deviation += FLOOR * deviation.mean()
        made = cls(mean.float(), deviation.float(), torch.empty(0), Scale.of(raws), normals.source)
        assert normals.measured is not None, "no normal pictures to score"
        scores = []
        for raw in score_batches(networks, normals.measured, config):
            scores.append(made.score(raw.evened_maps))
            raws.append(raw.without_pictures())
        ascending = torch.cat(scores).sort().values
        return made._replace(scores=ascending, scale=Scale.of(raws))

    def standardise(self, evened_maps: Tensor) -> Tensor:
        """Count the deviations by which errors (n, S, S) lie above their mean, at each pixel."""
        return (evened_maps - self.mean) / self.deviation

    def score(self, evened_maps: Tensor) -> Tensor:
        """Score pictures by their `evened_errors` (n, S, S): (n,) float64."""
        return peaks(self.standardise(evened_maps))

    def p_values(self, scores: Tensor) -> Tensor:
        """Compute (1 + normal pictures at least as high) / (n + 1) for scores (k,): (k,) float64."""
        as_high = (self.scores >= scores.double()[:, None]).sum(1)
        return (1 + as_high).double() / (len(self.scores) + 1)

    def threshold(self, asked: float) -> Threshold:
        """Find the score above which p is at most the false-alarm rate `asked`, or the smallest possible."""
        count = len(self.scores)
        # The rounding of 0.05 * 20 must not cost a picture.
        allowed = max(1, math.floor(asked * (count + 1) * (1 + 1e-9)))
        rate = allowed / (count + 1)
        value = self.scores[-min(allowed, count)].item()
        return Threshold(value, rate if rate > asked else asked, asked)

    def words(self, threshold: Threshold) -> str:
        """Say by how many normal pictures verdicts are made, and what that limits."""
        count = len(self.scores)
        which = {
            "held-out": "held out from training",
            "train": "that were trained on: unseen normal ones score higher, and more are flagged",
        }[self.source]
        said = f"Verdicts go by {count} normal picture(s) {which}."
        if threshold.rate > threshold.asked:
            said += (
                f" A false-alarm rate of {threshold.asked:.2g} would need "
                f"{math.ceil(1 / threshold.asked - 1e-9) - 1} of them; {threshold.rate:.2g} is used."
            )
        elif count < FEW:
            said += " They are few: the true rate may be far from it."
        return said

    def to_state(self) -> dict[str, Any]:
        """Give tensors and plain values for a checkpoint."""
        return self._asdict() | {"scale": self.scale._asdict()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None, path: object, size: int) -> "Reference":
        """Read back what `to_state` gave; UserError, with `path`, where there is none or it is damaged."""
        if state is None:
            raise UserError(
                f"{path}: knows no normal pictures to compare with, since its training is not "
                f"finished; add --resume to the command that trained it"
            )
        try:
            made = cls(**{**state, "scale": Scale(**state["scale"])})
            maps = (made.mean, made.deviation)
            whole = all(
                one.shape == (size, size) and bool(torch.isfinite(one).all()) for one in maps
            )
            ranges = [limits for limits in made.scale if limits is not None]
            whole &= bool((made.deviation > 0).all()) and made.source in ("held-out", "train")
            whole &= made.scores.ndim == 1 and len(made.scores) > 0
            whole &= bool(torch.isfinite(made.scores).all())
            whole &= all(math.isfinite(low) and math.isfinite(high) for low, high in ranges)
        except (AttributeError, KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise UserError(
                f"{path}: what it knows of normal pictures is damaged; restore it from a copy, or "
                f"train again"
            )
        return made
