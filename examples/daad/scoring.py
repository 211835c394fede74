"""Anomaly scores (Eq. 7) and the areas under the ROC curve that judge them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from daad.config import Config
from daad.io import UserError
from daad.network import Networks, distances
from daad.pictures import Pictures, Sample, brightness, load_masks, to_bytes

AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}

Range = tuple[float, float]


@dataclass
class Raw:
    """What n pictures give before any scaling; all on the CPU."""

    reconstruction: Tensor  # (n,) float64, R(x) of Eq. 7
    alignment: Tensor | None  # (n,) float64, L(x) of Eq. 7; None without a discriminator
    error_maps: Tensor  # (n, S, S) float32, squared differences averaged over the channels
    reconstructions: Tensor  # (n, 3, S, S) uint8
    brightness: Tensor  # (n,) float64, of the pictures themselves


def score_pictures(networks: Networks, pictures: Pictures, config: Config) -> Raw:
    """Compute R and L of Eq. 7 for every picture, and the error map of each.

    Pictures go through in their order, `config.batch_size` at a time; with `config.batch_norm` "batch"
    a score depends on the others of its batch. Both networks leave in the modes they came in.
    UserError where a score is not finite.
    """
    with torch.inference_mode(), _scoring_mode(networks, config.batch_norm):
        parts = [
            _score_batch(networks, pictures.batch(indices, networks.device), config)
            for indices in torch.arange(len(pictures)).split(config.batch_size)
        ]
    reconstruction, alignment, *others = zip(*parts, strict=True)
    joined = None if networks.discriminator is None else torch.cat(alignment)
    raw = Raw(torch.cat(reconstruction), joined, *map(torch.cat, others))
    for scores in (raw.reconstruction, raw.alignment):
        if scores is not None and not torch.isfinite(scores).all():
            raise UserError(
                "the network gives scores that are not finite: its training has diverged; "
                "train again with a lower --lr, or with --precision 32"
            )
    return raw


def _score_batch(
    networks: Networks, x: Tensor, config: Config
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    generator, discriminator = networks
    dtype = AUTOCAST.get(config.precision)
    alignment = None
    with torch.autocast("cuda", dtype, enabled=x.is_cuda and dtype is not None):
        x_hat = generator(x).float()
        if discriminator is not None:
            feature, feature_hat = discriminator(x)[1], discriminator(x_hat)[1]
    # Outside autocast, whose float16 would round the small differences that matter here.
    if discriminator is not None:
        alignment = distances(feature, feature_hat, config.alignment_distance).cpu().double()
    reconstruction = distances(x, x_hat, config.distance or "squared").cpu().double()
    error_map = (x - x_hat).square().mean(dim=1)
    return reconstruction, alignment, error_map.cpu(), to_bytes(x_hat).cpu(), brightness(x)


@contextmanager
def _scoring_mode(networks: Networks, batch_norm: str) -> Iterator[None]:
    """Set eval mode, and the modes of before on leaving.

    With "batch", BatchNorm layers normalise by the batch at hand. They do not track while they do
    so: the running statistics stay as training left them.
    """
    modules = [module for network in networks.modules for module in network.modules()]
    modes = [(module, module.training) for module in modules]
    layers = [module for module in modules if isinstance(module, _BatchNorm)]
    tracked = [(layer, layer.track_running_stats) for layer in layers]
    for module in modules:
        module.training = False
    if batch_norm == "batch":
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
    try:
        yield
    finally:
        for layer, track in tracked:
            layer.track_running_stats = track
        for module, training in modes:
            module.training = training


def peaks(error_maps: Tensor) -> Tensor:
    """Find the highest value of each error map (n, S, S) after smoothing; (n,) float64.

    This is another score than R(x), and not the paper's: a defect counts whatever its size, where
    the mean over a picture has all small errors of normal pixels in it. The filter is a Gaussian of
    deviation S / 64, cut off at three of them; the border is mirrored.
    """
    deviation = error_maps.shape[-1] / 64
    radius = min(max(1, round(3 * deviation)), error_maps.shape[-1] - 1)
    places = torch.arange(-radius, radius + 1, device=error_maps.device)
    kernel = torch.exp(-places.square() / (2 * deviation**2)).to(error_maps.dtype)
    kernel = kernel / kernel.sum()
    smooth = functional.pad(error_maps[:, None], (radius,) * 4, mode="reflect")
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        smooth = functional.conv2d(smooth, kernel.view(shape))
    return smooth.flatten(1).amax(1).double()


class Scale(NamedTuple):
    """The ranges that Eq. 7 maps linearly to [0, 1]; "test", "held-out" or "train" made them."""

    reconstruction: Range
    alignment: Range | None
    source: str

    @classmethod
    def of(cls, raw: Raw, source: str) -> "Scale":
        """Take the ranges of `raw`."""
        alignment = None if raw.alignment is None else _range(raw.alignment)
        return cls(_range(raw.reconstruction), alignment, source)


def _range(values: Tensor) -> Range:
    return values.min().item(), values.max().item()


def min_max(values: Tensor) -> Tensor:
    """Scale values (n,) linearly to [0, 1]; zeros where they are all one."""
    return _scaled(values, _range(values))


def _scaled(values: Tensor, limits: Range) -> Tensor:
    """Scale `limits` to [0, 1], what lies outside beyond it; zeros where the range has no width."""
    low, high = limits
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def fuse(raw: Raw, scale: Scale, gamma: float) -> Tensor:
    """Compute A = gamma R' + (1 - gamma) L' (Eq. 7), (n,) float64; A = R' without a discriminator.

    R' and L' are R and L scaled by `scale`, not clamped: a score beyond the range keeps its rank.
    """
    reconstruction = _scaled(raw.reconstruction, scale.reconstruction)
    if raw.alignment is None:
        return reconstruction
    if scale.alignment is None:
        raise ValueError("the scores have an alignment part, and the scale has no range for it")
    return gamma * reconstruction + (1 - gamma) * _scaled(raw.alignment, scale.alignment)


def score_columns(raw: Raw, scores: Tensor) -> list[tuple[float, float | str, float]]:
    """Give R, L (blank without a discriminator) and A of each picture; `repr` keeps every digit."""
    parts = raw.reconstruction.tolist()
    alignment = [""] * len(parts) if raw.alignment is None else raw.alignment.tolist()
    return list(zip(parts, alignment, scores.tolist(), strict=True))


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


def roc_curve(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute false and true positive rates (k,) for each threshold on scores (n,), from 0 to 1.

    labels: (n,), 1 or True being anomalous; both kinds must be there.
    """
    _, place = torch.unique(-scores, return_inverse=True)  # the highest score first
    labels = labels.bool()
    rates = []
    for kind in (~labels, labels):
        counts = torch.bincount(place[kind], minlength=int(place.max()) + 1).cumsum(0)
        rates.append(torch.cat([torch.zeros(1), counts / counts[-1]]))
    return rates[0], rates[1]


@dataclass
class Findings:
    """A scored test set of n pictures: scores A, labels and peaks (n,); `anomaly` is "defect" or "class"."""

    samples: Sequence[Sample]
    pictures: Pictures
    raw: Raw
    scores: Tensor
    anomaly: str

    @cached_property
    def truth(self) -> tuple[Tensor, Tensor]:
        """The masks, bool (n, S, S), and whether each is known, bool (n,); see `load_masks`."""
        return load_masks(self.samples, self.raw.error_maps.shape[-1])

    @cached_property
    def labels(self) -> Tensor:
        """Whether each picture is anomalous, bool (n,)."""
        return torch.tensor([sample.label for sample in self.samples], dtype=torch.bool)

    @cached_property
    def peaks(self) -> Tensor:
        """The peak of each error map, (n,)."""
        return peaks(self.raw.error_maps)

    @property
    def auroc(self) -> float | None:
        """The area under the ROC curve of the scores."""
        return image_auroc(self.scores, self.labels)

    def metrics(self) -> dict[str, Any]:
        """Compute every AUROC over all pictures, and over each defect with the good ones."""
        defects: dict[str, Any] = {}
        for defect in dict.fromkeys(sample.defect for sample in self.samples if sample.label):
            members = torch.tensor([sample.defect == defect for sample in self.samples])
            areas = self._areas(members | ~self.labels)
            defects[defect] = {"count": int(members.sum()), **areas}
        counts = {
            "good": int((~self.labels).sum()),
            "anomalous": int(self.labels.sum()),
            "masks": int((self.truth[1] & self.labels).sum()),
        }
        areas = self._areas(torch.ones_like(self.labels))
        return {"kind": self.anomaly, **areas, "counts": counts, "defects": defects}

    def _areas(self, members: Tensor) -> dict[str, float | None]:
        """Compute the areas over the pictures `members`; by pixel over those whose mask is known."""
        masks, known = self.truth
        marked = members & known
        labels = self.labels[members]
        return {
            "image_auroc": image_auroc(self.scores[members], labels),
            "image_auroc_peak": image_auroc(self.peaks[members], labels),
            "image_auroc_brightness": image_auroc(self.raw.brightness[members], labels),
            "pixel_auroc": image_auroc(self.raw.error_maps[marked], masks[marked]),
        }
