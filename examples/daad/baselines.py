"""What needs no network: four simple scores, by which one sees whether the network is worth its time.

Each has an error map, and the score of `verdict`: smoothed, its light made even, standardised over the
normal pictures that were learned from, its peak. Pictures are shrunk to 64x64.
"""

import torch
from torch import Tensor
from torch.nn import functional

from daad.pictures import Pictures, brightness
from daad.scoring import evened_errors, peaks, smooth
from daad.verdict import FLOOR

SIDE = 64
COMPONENTS = 50
PATCH, STRIDE = 8, 4  # pixels of SIDE
LEARNED = 500  # normal pictures at most, at even distances: enough, and seconds


def baseline_scores(learned: Pictures, tested: Pictures) -> dict[str, Tensor]:
    """Score `tested` by how they differ from the normal pictures `learned`; (n,) float64 by name."""
    every = torch.arange(0, len(learned), max(1, -(-len(learned) // LEARNED)))
    normal, own = _shrunk(learned, every)
    shown, light = _shrunk(tested, torch.arange(len(tested)))
    mean = normal.mean(0, keepdim=True)
    patches = _patches(normal)
    maps = {
        "mean picture": (evened_errors(normal, mean), evened_errors(shown, mean)),
        f"PCA {COMPONENTS}": _by_components(normal, shown),
        "nearest patch": (
            _nearest(patches, patches, itself=True),
            _nearest(_patches(shown), patches),
        ),
    }
    spread = own.std(correction=0).clamp_min(1e-4)
    scores = {"brightness": ((light - own.mean()) / spread).abs()}
    return scores | {name: _standard_peaks(*pair) for name, pair in maps.items()}


def _shrunk(pictures: Pictures, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Give pictures (n, 3, SIDE, SIDE) and the brightness of each (n,)."""
    shrunk, light = [], []
    for part in indices.split(SIDE):
        x = pictures.batch(part, "cpu")
        shrunk.append(functional.adaptive_avg_pool2d(x, SIDE))
        light.append(brightness(x))
    return torch.cat(shrunk), torch.cat(light)


def _by_components(normal: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Rebuild pictures from principal components of `normal`: of half as many at most as it has."""
    mean = normal.flatten(1).mean(0)
    centred = normal.flatten(1) - mean
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    kept = components[: min(COMPONENTS, max(1, len(normal) // 2))]

    def errors(x: Tensor) -> Tensor:
        rebuilt = (x.flatten(1) - mean) @ kept.T @ kept + mean
        return evened_errors(x, rebuilt.view_as(x))

    return errors(normal), errors(shown)


def _patches(x: Tensor) -> Tensor:
    """Cut pictures into overlapping patches: (places, n, 3 * PATCH * PATCH)."""
    return functional.unfold(x, PATCH, stride=STRIDE).permute(2, 0, 1).contiguous()


def _nearest(patches: Tensor, normal: Tensor, *, itself: bool = False) -> Tensor:
    """Map, for each place, the squared distance to the nearest normal patch there: (n, SIDE, SIDE).

    itself: the pictures are the normal ones, and none is compared with itself.
    """
    nearest = []
    for first, part in enumerate(patches.split(SIDE, dim=1)):
        distances = torch.cdist(part, normal)
        if itself and normal.shape[1] > 1:
            distances.diagonal(first * SIDE, dim1=1, dim2=2).fill_(float("inf"))
        nearest.append(distances.amin(2).square())
    side = round(len(patches) ** 0.5)
    places = torch.cat(nearest, dim=1).T.reshape(-1, 1, side, side)
    return smooth(functional.interpolate(places, (SIDE, SIDE), mode="bilinear")[:, 0])


def _standard_peaks(normal: Tensor, shown: Tensor) -> Tensor:
    deviation = normal.std(0, correction=0)
    floor = FLOOR * deviation.mean() + torch.finfo(normal.dtype).eps
    return peaks((shown - normal.mean(0)) / (deviation + floor))
