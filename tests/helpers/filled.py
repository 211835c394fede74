"""What the tests of filling share: checks of items, and maps with a bad number."""

import torch
from torch import Tensor, nn

from blockmem import BlockwiseMemory, divide


def items_are_blocks(items: Tensor, x: Tensor, block_shape: tuple[int, ...]) -> Tensor:
    blocks = divide(x, block_shape).flatten(0, 1).to(items)
    return (items[:, None] == blocks[None]).all(-1).any(1)


def no_two_equal(items: Tensor) -> bool:
    equal = (items[:, None] == items[None]).all(-1)
    return int(equal.sum()) == len(items)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_value(x: Tensor, value: float) -> Tensor:
    x[0, 1, 2, 3] = value
    return x


def autoencoder(**settings: object) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        BlockwiseMemory(20, (8, 2, 2), **settings),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.Sequential(BlockwiseMemory(10, (4, 4, 4))),
        nn.Conv2d(4, 1, 3, padding=1),
    )
