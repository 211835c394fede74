"""How kernels find blocks in a map: extents, strides, and what lies next to what.

A map `(B, C, *S)` is a grid of blocks, numbered as `divide` numbers them, and a block a grid of D
elements. Kernels number those in the order in which the map lies in memory, so that neighbours in a
tile are neighbours there: `(*s, c)` for a channels_last map, `(c, *s)` for a contiguous one. Where
that is not `(*s, c)`, the order of the memory's rows, a copy of the memory in that order is used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from blockmem.division import grid_views

AXES = 4  # three spatial ones and channels, of the grid and of a block
LARGEST_RUN = 16  # neighbours a load can use: 16 bytes are at most 8 elements of 2 bytes


class Strides(NamedTuple):
    """Of a map: from block to block (batch first), within a block, and runs.

    Runs of blocks and of the elements of a block: how many offsets follow one another, and what
    divides the first of them.
    """

    grid: tuple[int, ...]
    block: tuple[int, ...]
    runs: tuple[int, int, int, int]


@dataclass(frozen=True)
class Blocks:
    """The blocks of maps of one shape, and the order in which kernels go through a block."""

    grid: tuple[int, ...]  # batch, then blocks along each axis, space first and channels last
    block: tuple[int, ...]  # (*s, c)
    order: tuple[int, ...]  # axes of the block, outermost first

    @classmethod
    def of(cls, x: Tensor, block_shape: Sequence[int]) -> "Blocks":
        """Those of a map; `x` is dense, and its strides give the order."""
        (view,) = grid_views(block_shape, x)
        axes = len(block_shape)
        strides = view.stride()[-axes:]
        block = tuple(view.shape[-axes:])
        # Axes of one element come first, where they change nothing
        order = sorted(range(axes), key=lambda axis: (block[axis] > 1, -strides[axis]))
        return cls(tuple(view.shape[:-axes]), block, tuple(order))

    @property
    def count(self) -> int:
        """Blocks of the whole batch."""
        return math.prod(self.grid)

    @property
    def size(self) -> int:
        """D, the elements of a block."""
        return math.prod(self.block)

    @cached_property
    def reordered(self) -> bool:
        """Whether kernels go through a block in another order than `(*s, c)`."""
        used = [axis for axis in self.order if self.block[axis] > 1]
        return used != sorted(used)

    def arrange(self, memory: Tensor) -> Tensor:
        """Items `(N, D)`, contiguous, in the kernels' order."""
        if not self.reordered:
            return memory.contiguous()
        items = memory.view(-1, *self.block)
        return items.permute(0, *(axis + 1 for axis in self.order)).reshape(memory.shape)

    def restore(self, memory: Tensor) -> Tensor:
        """Items `(N, D)` from the kernels' order to `(*s, c)`: the inverse of `arrange`."""
        if not self.reordered:
            return memory
        items = memory.view(-1, *(self.block[axis] for axis in self.order))
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return items.permute(0, *(axis + 1 for axis in back)).reshape(memory.shape)

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Extents of grid (batch aside) and of block, as kernels want them: four of each."""
        missing = AXES - len(self.block)
        grid = (*(1 for _ in range(missing)), *self.grid[1:])
        block = (*(1 for _ in range(missing)), *(self.block[axis] for axis in self.order))
        return grid, block

    def strides(self, x: Tensor, block_shape: Sequence[int]) -> "Strides":
        """Those of one map of this shape."""
        (view,) = grid_views(block_shape, x)
        axes, missing = len(self.block), AXES - len(self.block)
        grid, block = view.stride()[:-axes], view.stride()[-axes:]
        elements = tuple(block[axis] for axis in self.order)
        return Strides(
            (grid[0], *(0 for _ in range(missing)), *grid[1:]),
            (*(0 for _ in range(missing)), *elements),
            (*_run(self.grid, grid), *_run([self.block[axis] for axis in self.order], elements)),
        )


def _run(sizes: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """How many neighbours along these axes, the last one fastest, are neighbours in the map; and
    what divides the place of the first of each such row."""
    length = 1
    others: list[int] = []
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size > 1:
            if stride == length and not others:
                length *= size
            else:
                others.append(stride)
    used = math.gcd(length, LARGEST_RUN)
    return used, math.gcd(LARGEST_RUN, *others, *([length] if length > 1 else []))
