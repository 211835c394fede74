"""An epoch's batches: which pictures, in what order, flipped how, on which device."""

import math
from typing import Protocol

import torch
from torch import Tensor

DEVICE_SHARE = 0.25  # of a GPU's free memory: the network's activations are still to come
# What each choice of `Config.flips` lets happen: left to right, upside down.
FLIPS = {"both": (True, True), "horizontal": (True, False), "none": (False, False)}


class Pictures(Protocol):
    """Pictures to train on or to score: how many, and any of them as a batch."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, device: torch.device | str) -> Tensor:
        """Pictures at `indices` (int64, on the CPU): `(B, 3, S, S)` in [-1, 1] on `device`."""


class StoredPictures:
    """Decoded pictures, uint8 `(n, 3, S, S)`, as batches of floats.

    They move to a GPU with the first batch that is asked for there, if there is room.
    """

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels
        self._device_tried = False

    def __len__(self) -> int:
        return len(self._pixels)

    def batch(self, indices: Tensor, device: torch.device | str) -> Tensor:
        """Pictures `indices` (b,) as float32 (b, 3, S, S) in [-1, 1] on `device`."""
        device = torch.device(device)
        if device.type == "cuda" and not self._device_tried:
            self._device_tried = True
            free, _ = torch.cuda.mem_get_info(device)
            if self._pixels.nbytes <= DEVICE_SHARE * free:
                self._pixels = self._pixels.to(device)
        return to_floats(self._pixels[indices.to(self._pixels.device, non_blocking=True)], device)


def to_floats(pixels: Tensor, device: torch.device) -> Tensor:
    """uint8 pixels of any shape as float32 in [-1, 1] on `device`, a tensor of the caller's own."""
    if device.type == "cuda" and pixels.device.type == "cpu":
        pixels = pixels.pin_memory()
    # bytes travel, floats are made on the device: a quarter of the traffic
    return pixels.to(device, non_blocking=True).to(torch.float32).div_(127.5).sub_(1)


def to_bytes(x: Tensor) -> Tensor:
    """Pixels of any shape in [-1, 1] as uint8, those beyond as black or white; back from `to_floats`."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def epoch_order(
    count: int, random: torch.Generator, rank: int = 0, world_size: int = 1
) -> tuple[Tensor, Tensor]:
    """This process's share of an epoch: indices `(n,)`, and whether to flip each `(n, 2)`.

    Every process draws the same numbers and takes every `world_size`-th. Shares are of one
    length, as a step needs all processes: a few pictures are seen twice where it must be.
    """
    order = torch.randperm(count, generator=random)
    padded = math.ceil(count / world_size) * world_size
    order = order[torch.arange(padded) % count]
    flips = torch.rand(padded, 2, generator=random) < 0.5
    return order[rank::world_size], flips[rank::world_size]


def split_batches(order: Tensor, batch_size: int, smallest: int) -> list[Tensor]:
    """Indices `(n,)` in batches, the last one shorter where it must be.

    BatchNorm in training cannot take a single number a channel, so a batch of one picture is
    left out where the network's smallest map is `smallest` = 1 pixel wide.
    """
    return [batch for batch in order.split(batch_size) if len(batch) > 1 or smallest > 1]


def flip(x: Tensor, flips: Tensor) -> Tensor:
    """Mirror pictures `(B, 3, H, W)` left to right where `flips[:, 0]`, upside down by `[:, 1]`."""
    across, down = flips[:, :, None, None, None].unbind(1)
    x = torch.where(across, x.flip(-1), x)
    return torch.where(down, x.flip(-2), x)
