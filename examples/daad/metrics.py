"""How well scores tell anomalous from normal: of pictures, and of their pixels."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from daad.form import Fit, Mask, enlarge

LIMIT = 0.3  # the false positive rate that AUPRO goes up to, as in MVTec's evaluation
BINS = 20_000  # of pixel scores, equally many pixels in each
DRAWS = 2000  # of the bootstrap
FALSE_ALARMS = (0.01, 0.05)  # rates that recall is given at


def image_auroc(scores: Tensor, labels: Tensor) -> float | None:
    """Compute the area under the ROC curve of scores for labels of one shape, 1 being anomalous.

    It is the share of pairs, one good and one anomalous, that the scores put in order; a tie is half
    a pair. None where either kind is missing.
    """
    labels = labels.flatten().bool()
    bad, good = int(labels.sum()), int((~labels).sum())
    if not bad or not good:
        return None
    # Ranks from 1, those of equal scores being their mean: half the count below and not above.
    _, place, counts = torch.unique(scores.flatten(), return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts - 1).double() / 2
    area = (ranks[place][labels].sum().item() - bad * (bad + 1) / 2) / (bad * good)
    return round(area, 6)


def auroc_interval(scores: Tensor, labels: Tensor) -> list[float] | None:
    """Bound the image AUROC by a bootstrap: its 2.5 and 97.5 % quantiles over `DRAWS` drawn sets.

    Good and anomalous pictures are drawn apart, each as many as there are. None where either kind
    is missing.
    """
    labels = labels.bool()
    bad, good = scores[labels], scores[~labels]
    if not len(bad) or not len(good):
        return None
    above = (bad[:, None] > good).double() + (bad[:, None] == good).double() / 2
    random = torch.Generator().manual_seed(0)
    drawn = [torch.randint(len(part), (DRAWS, len(part)), generator=random) for part in (bad, good)]
    times = [
        torch.zeros(DRAWS, len(part)).scatter_add_(1, index, torch.ones(index.shape)).double()
        for part, index in zip((bad, good), drawn, strict=True)
    ]
    areas = ((times[0] @ above) * times[1]).sum(1) / (len(bad) * len(good))
    bounds = torch.quantile(areas, torch.tensor([0.025, 0.975], dtype=torch.float64))
    return [round(bound, 6) for bound in bounds.tolist()]


class Points(NamedTuple):
    """What thresholds let through: counts (k,) of good and anomalous pictures, from none to all."""

    good: Tensor
    bad: Tensor

    @property
    def rates(self) -> tuple[Tensor, Tensor]:
        """The false and the true positive rate at each threshold."""
        return self.good / self.good[-1], self.bad / self.bad[-1]


def operating_points(scores: Tensor, labels: Tensor) -> Points:
    """Count what is flagged at each threshold on scores (n,), the highest first; both kinds must be there."""
    _, place = torch.unique(-scores, return_inverse=True)
    labels = labels.bool()
    counts = [
        torch.bincount(place[kind], minlength=int(place.max()) + 1).cumsum(0).double()
        for kind in (~labels, labels)
    ]
    return Points(*(torch.cat([torch.zeros(1, dtype=torch.float64), one]) for one in counts))


def average_precision(points: Points) -> float:
    """Compute the mean of precision over recall, without interpolation."""
    precision = points.bad[1:] / (points.bad + points.good)[1:]
    return round((points.rates[1].diff() * precision).sum().item(), 6)


def best_f1(points: Points) -> float:
    """Find the highest F1, the harmonic mean of precision and recall, at any threshold."""
    flagged = points.good + points.bad
    return round((2 * points.bad / (flagged + points.bad[-1])).max().item(), 6)


def recall_at(points: Points, rate: float) -> float:
    """Find the share of anomalous pictures flagged where at most the share `rate` of good ones is."""
    false, true = points.rates
    return round(true[false <= rate].max().item(), 6)


def ranking(scores: Tensor, labels: Tensor) -> dict[str, float | list[float] | None]:
    """Measure how scores (n,) rank pictures: see the functions above; empty where a kind is missing."""
    area = image_auroc(scores, labels)
    if area is None:
        return {"image_auroc": None}
    points = operating_points(scores, labels)
    return {
        "image_auroc": area,
        "image_auroc_interval": auroc_interval(scores, labels),
        "average_precision": average_precision(points),
        "best_f1": best_f1(points),
        **{f"recall_at_{100 * rate:.0f}_percent": recall_at(points, rate) for rate in FALSE_ALARMS},
    }


# Pixels


class PixelAreas(NamedTuple):
    """The areas by pixel: under the ROC curve, and under the per-region overlap (AUPRO)."""

    auroc: float | None
    aupro: float | None


def pixel_areas(maps: Tensor, masks: Iterable[Mask], fit: Fit = "squeeze") -> PixelAreas:
    """Compare score maps (n, S, S) with masks (h, w) of the pictures' own sizes, one picture at a time.

    Each map is enlarged to its mask, bilinearly. AUPRO is the mean overlap with the connected regions
    (pixels that touch at a corner too) over false positive rates up to `LIMIT`, divided by it. Scores
    are told apart in `BINS` steps. None where no pixel is anomalous, or none is normal.
    """
    edges = np.unique(np.quantile(maps.numpy(), np.linspace(0, 1, BINS)[1:-1]))
    good, bad, overlap = (np.zeros(len(edges) + 1) for _ in range(3))
    regions = 0
    for one, mask in zip(maps, masks, strict=True):
        bins = np.searchsorted(edges, enlarge(one, mask.shape, fit).numpy(), side="right")
        good += np.bincount(bins[~mask], minlength=len(good))
        bad += np.bincount(bins[mask], minlength=len(good))
        labelled, count = ndimage.label(mask, np.ones((3, 3)))
        for region in range(1, count + 1):
            inside = bins[labelled == region]
            overlap += np.bincount(inside, minlength=len(good)) / len(inside)
        regions += count
    if not regions or not good.sum():
        return PixelAreas(None, None)
    false, true, covered = (
        np.concatenate([[0], counts[::-1].cumsum() / total])
        for counts, total in ((good, good.sum()), (bad, bad.sum()), (overlap, regions))
    )
    up_to = np.append(false[false < LIMIT], LIMIT)
    aupro = np.trapezoid(np.interp(up_to, false, covered), up_to) / LIMIT
    return PixelAreas(round(float(np.trapezoid(true, false)), 6), round(float(aupro), 6))
