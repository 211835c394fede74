"""How bright pictures are, and a test set in which all are equally bright."""

import torch
from torch import Tensor

from daad.batches import Pictures

# Finer than a step of 8 bits, and coarse enough for pictures of even light to tie.
DECIMALS = 4
BATCH = 64  # pictures, of which nothing but the mean is kept


def brightness(x: Tensor) -> Tensor:
    """The mean of each picture's values, 0 for black and 1 for white, to four decimals.

    x: (B, 3, S, S) in [-1, 1]. Returns (B,) float64 on the CPU.
    """
    return ((x.mean(dim=(1, 2, 3)).cpu().double() + 1) / 2).round(decimals=DECIMALS)


def mean_brightness(pictures: Pictures) -> float:
    """The mean of the brightness of all `pictures`, one at least."""
    batches = torch.arange(len(pictures)).split(BATCH)
    return torch.cat([brightness(pictures.batch(batch, "cpu")) for batch in batches]).mean().item()


class EvenLight:
    """`pictures`, each multiplied, black being 0, so that its brightness is `target`.

    What comes out brighter than white stays so, or the mean would not be met. A picture that is
    all black stays black.
    """

    def __init__(self, pictures: Pictures, target: float) -> None:
        self._pictures = pictures
        self._target = round(target, DECIMALS)

    def __len__(self) -> int:
        return len(self._pictures)

    def batch(self, indices: Tensor, device: torch.device | str) -> Tensor:
        """Pictures `indices` (b,) as float32 (b, 3, S, S) on `device`, -1 for black, 1 for white."""
        light = (self._pictures.batch(indices, device) + 1) / 2
        own = light.mean(dim=(1, 2, 3), keepdim=True)
        return light * torch.where(own > 0, self._target / own, 1.0) * 2 - 1
