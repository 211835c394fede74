"""What networks say of pictures: the parts of Eq. 7, and maps of where they err."""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from daad.config import Config
from daad.io import UserError
from daad.network import Networks, distances
from daad.pictures import Pictures, brightness, to_bytes

AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}
TINY = 1e-12  # below it a picture is black

Range = tuple[float, float]


@dataclass
class Raw:
    """What n pictures give before any scaling; all on the CPU."""

    reconstruction: Tensor  # (n,) float64, R(x) of Eq. 7
    alignment: Tensor | None  # (n,) float64, L(x) of Eq. 7; None without a discriminator
    error_maps: Tensor  # (n, S, S) float32, squared differences averaged over the channels
    evened_maps: Tensor  # (n, S, S) float32, those of `evened_errors`
    reconstructions: Tensor  # (n, 3, S, S) uint8
    brightness: Tensor  # (n,) float64, of the pictures themselves

    def without_pictures(self) -> "Raw":
        """Keep what is one number a picture, which any number of pictures has room for."""
        none = torch.empty(0)
        return dataclasses.replace(self, error_maps=none, evened_maps=none, reconstructions=none)


def score_pictures(networks: Networks, pictures: Pictures, config: Config) -> Raw:
    """Score all `pictures`, as `score_batches` does it."""
    parts = list(score_batches(networks, pictures, config))
    joined = {
        field.name: None if getattr(parts[0], field.name) is None else torch.cat(values)
        for field in dataclasses.fields(Raw)
        for values in [[getattr(part, field.name) for part in parts]]
    }
    return Raw(**joined)  # type: ignore[arg-type]


def score_batches(networks: Networks, pictures: Pictures, config: Config) -> Iterator[Raw]:
    """Compute R and L of Eq. 7 and the error maps of each picture, `config.batch_size` at a time.

    Pictures go through in their order; with `config.batch_norm` "batch" a score depends on the others
    of its batch. Both networks leave in the modes they came in. UserError where a score is not finite.
    """
    with _scoring_mode(networks, config.batch_norm):
        for indices in torch.arange(len(pictures)).split(config.batch_size):
            raw = score_batch(networks, pictures.batch(indices, networks.device), config)
            for scores in (raw.reconstruction, raw.alignment):
                if scores is not None and not torch.isfinite(scores).all():
                    raise UserError(
                        "the network gives scores that are not finite: its training has diverged; "
                        "train again with a lower --lr, or with --precision 32"
                    )
            yield raw


@torch.inference_mode()
def score_batch(networks: Networks, x: Tensor, config: Config) -> Raw:
    """Score pictures (B, 3, S, S) in [-1, 1] with networks in eval mode."""
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
    return Raw(
        distances(x, x_hat, config.distance or "squared").cpu().double(),
        alignment,
        (x - x_hat).square().mean(dim=1).cpu(),
        evened_errors(x, x_hat).cpu(),
        to_bytes(x_hat).cpu(),
        brightness(x),
    )


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


def evened_errors(x: Tensor, x_hat: Tensor) -> Tensor:
    """Compute smooth error maps (n, S, S) of pictures x and x_hat (n, 3, S, S), their light made even.

    First each x_hat, with 0 for black, is multiplied by the one number that brings it closest to x.
    So a picture that is lighter or darker as a whole has no error for that. Squared differences,
    averaged over the channels, are then smoothed; see `smooth`.
    """
    light, light_hat = (x + 1) / 2, (x_hat + 1) / 2
    overlap = (light * light_hat).sum((1, 2, 3), keepdim=True)
    gain = overlap / light_hat.square().sum((1, 2, 3), keepdim=True).clamp_min(TINY)
    return smooth((2 * (light - gain * light_hat)).square().mean(dim=1))


def smooth(maps: Tensor) -> Tensor:
    """Smooth maps (n, S, S) with a Gaussian of deviation S / 64, cut off at three of them.

    The border is mirrored.
    """
    deviation = maps.shape[-1] / 64
    radius = min(max(1, round(3 * deviation)), maps.shape[-1] - 1)
    places = torch.arange(-radius, radius + 1, device=maps.device)
    kernel = torch.exp(-places.square() / (2 * deviation**2)).to(maps.dtype)
    kernel = kernel / kernel.sum()
    smoothed = functional.pad(maps[:, None], (radius,) * 4, mode="reflect")
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        smoothed = functional.conv2d(smoothed, kernel.view(shape))
    return smoothed[:, 0]


def peaks(maps: Tensor) -> Tensor:
    """Find the highest value of each map (n, S, S): (n,) float64."""
    return maps.flatten(1).amax(1).double()


class Scale(NamedTuple):
    """The ranges that Eq. 7 maps linearly to [0, 1]."""

    reconstruction: Range
    alignment: Range | None

    @classmethod
    def of(cls, raws: Iterable[Raw]) -> "Scale":
        """Take the ranges over all of `raws`, one at least."""
        parts = [(raw.reconstruction, raw.alignment) for raw in raws]
        alignments = [alignment for _, alignment in parts if alignment is not None]
        return cls(
            _range(torch.cat([reconstruction for reconstruction, _ in parts])),
            _range(torch.cat(alignments)) if alignments else None,
        )


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
