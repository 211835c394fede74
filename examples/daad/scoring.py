"""Anomaly scores (Eq. 7) and the areas under the ROC curve that judge them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics.functional.classification import binary_auroc

from daad.batches import Pictures, to_bytes
from daad.config import Config
from daad.errors import UserError
from daad.light import brightness
from daad.losses import distances

AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}

Range = tuple[float, float]


@dataclass
class Raw:
    """What n pictures give before any scaling; all on the CPU.

    reconstruction: (n,) float64, R(x) of Eq. 7.
    alignment: (n,) float64, L(x) of Eq. 7; None without a discriminator.
    error_maps: (n, S, S) float32, squared difference averaged over the channels.
    reconstructions: (n, 3, S, S) uint8.
    brightness: (n,) float64, of the pictures themselves, see `daad.light`.
    """

    reconstruction: Tensor
    alignment: Tensor | None
    error_maps: Tensor
    reconstructions: Tensor
    brightness: Tensor


def score_pictures(
    generator: nn.Module,
    discriminator: nn.Module | None,
    pictures: Pictures,
    config: Config,
    device: torch.device,
) -> Raw:
    """R and L of Eq. 7 for every picture, and the error map of each.

    Pictures go through in their order, `config.batch_size` at a time. With `config.batch_norm`
    at "batch" a score therefore depends on the pictures that share its batch, and on the batch
    size; with "eval" it does not. Both networks leave in the modes they came in. UserError where
    a score is not finite.
    """
    parts = []
    models = [generator] if discriminator is None else [generator, discriminator]
    with torch.inference_mode(), _scoring_mode(models, config.batch_norm):
        for start in range(0, len(pictures), config.batch_size):
            stop = min(start + config.batch_size, len(pictures))
            x = pictures.batch(torch.arange(start, stop), device)
            parts.append(_score_batch(generator, discriminator, x, config))
    reconstruction, alignment, error_maps, reconstructions, bright = zip(*parts, strict=True)
    raw = Raw(
        torch.cat(reconstruction),
        None if discriminator is None else torch.cat(alignment),
        torch.cat(error_maps),
        torch.cat(reconstructions),
        torch.cat(bright),
    )
    for scores in (raw.reconstruction, raw.alignment):
        if scores is not None and not torch.isfinite(scores).all():
            raise UserError(
                "the network gives scores that are not finite: its training has diverged; "
                "train again with a lower --lr, or with --precision 32"
            )
    return raw


def _score_batch(
    generator: nn.Module, discriminator: nn.Module | None, x: Tensor, config: Config
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    dtype = AUTOCAST.get(config.precision)
    alignment = None
    with torch.autocast("cuda", dtype, enabled=x.is_cuda and dtype is not None):
        x_hat = generator(x).float()
        if discriminator is not None:
            feature, feature_hat = discriminator(x)[1], discriminator(x_hat)[1]
    # Outside autocast, whose float16 would round the small differences that matter here.
    if discriminator is not None:
        alignment = distances(feature, feature_hat, config.alignment_distance).cpu().double()
    reconstruction = distances(x, x_hat, config.distance).cpu().double()
    error_map = (x - x_hat).square().mean(dim=1)
    return reconstruction, alignment, error_map.cpu(), to_bytes(x_hat).cpu(), brightness(x)


@contextmanager
def _scoring_mode(models: Sequence[nn.Module], batch_norm: str) -> Iterator[None]:
    """Eval mode, and the modes of before on leaving.

    With "batch", BatchNorm layers normalise by the batch at hand. They do not track while they do
    so: the running statistics stay as training left them.
    """
    modules = [module for model in models for module in model.modules()]
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
    """The highest value of each error map (n, S, S) after smoothing; (n,) float64.

    Another score than R(x), and not the paper's: a defect counts by its own error, whatever its
    size, where in the mean over the picture many small errors of normal pixels may outweigh it. The
    filter is a Gaussian of deviation S / 64, cut off at three of them; the border is mirrored.
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


@dataclass(frozen=True)
class Scale:
    """The ranges that Eq. 7 maps linearly to [0, 1], and the pictures they were taken over.

    source: "test", "held-out" or "train".
    """

    reconstruction: Range
    alignment: Range | None
    source: str

    @classmethod
    def of(cls, raw: Raw, source: str) -> "Scale":
        """The ranges of `raw`."""
        alignment = None if raw.alignment is None else _range(raw.alignment)
        return cls(_range(raw.reconstruction), alignment, source)

    def to_dict(self) -> dict[str, Any]:
        """Lists of floats and a word: what a checkpoint can hold and load as weights only."""
        alignment = None if self.alignment is None else list(self.alignment)
        return {
            "reconstruction": list(self.reconstruction),
            "alignment": alignment,
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Scale":
        alignment = content["alignment"]
        return cls(
            tuple(content["reconstruction"]),
            None if alignment is None else tuple(alignment),
            content["source"],
        )


def _range(values: Tensor) -> Range:
    return values.min().item(), values.max().item()


def min_max(values: Tensor) -> Tensor:
    """Values (n,) scaled linearly to [0, 1]; zeros where they are all one."""
    return _scaled(values, _range(values))


def _scaled(values: Tensor, limits: Range) -> Tensor:
    """`limits` to [0, 1], what lies outside beyond it; zeros where the range has no width."""
    low, high = limits
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def fuse(raw: Raw, scale: Scale, gamma: float) -> Tensor:
    """A = gamma R' + (1 - gamma) L' (Eq. 7), (n,) float64; A = R' without a discriminator.

    R' and L' are R and L scaled linearly by `scale`. They are not clamped: a score beyond the
    range keeps its rank.
    """
    reconstruction = _scaled(raw.reconstruction, scale.reconstruction)
    if raw.alignment is None:
        return reconstruction
    if scale.alignment is None:
        raise ValueError("the scores have an alignment part, and the scale has no range for it")
    return gamma * reconstruction + (1 - gamma) * _scaled(raw.alignment, scale.alignment)


def image_auroc(scores: Tensor, labels: Tensor) -> float | None:
    """Area under the ROC curve of scores (n,) for labels (n,), 1 or True being anomalous.

    The share of pairs, one good and one anomalous, that the scores put in order; a tie is half a
    pair. None where either kind is missing.
    """
    labels = labels.flatten().bool()
    if labels.all() or not labels.any():
        return None
    # The arguments are right by construction; checking them would sort every pixel once more.
    area = binary_auroc(to_unit_interval(scores), labels.long(), validate_args=False)
    return round(area.item(), 6)  # it sums in float32; what follows is noise


def pixel_auroc(error_maps: Tensor, masks: Tensor) -> float | None:
    """Area under the ROC curve over all pixels of error maps (n, S, S) for masks (n, S, S)."""
    return image_auroc(error_maps.flatten(), masks.flatten())


def to_unit_interval(scores: Tensor) -> Tensor:
    """Scores (n,) mapped to [0, 1) in float64, their order and their ties exactly kept.

    torchmetrics puts a sigmoid over scores outside [0, 1], after which large ones tie; min and
    max scaling can make ties too, by rounding. Ranks cannot.
    """
    rank: Tensor = torch.unique(scores, return_inverse=True)[1]
    return rank.double() / scores.numel()
