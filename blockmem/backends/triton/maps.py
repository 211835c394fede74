"""How kernels find blocks in a map: extents, strides, and what lies next to what.

A map `(B, C, *S)` is a grid of blocks, numbered as `divide` numbers them, and a block a grid of D
elements. Kernels for small blocks number those in the order in which the map lies in memory, so that
neighbours in a tile are neighbours there: `(*s, c)` for a channels_last map, `(c, *s)` for a
contiguous one. Large blocks are copied to rows in `(*s, c)`, the order of the memory's: `Positions`
is how the copy goes through the map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
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

    @property
    def plain(self) -> bool:
        """Whether kernels go through a block in `(*s, c)`, as the memory's rows do."""
        used = [axis for axis in self.order if self.block[axis] > 1]
        return used == sorted(used)

    def steps(self, stride: int = 1) -> tuple[tuple[int, ...], tuple[int, int]]:
        """Of a row of the memory, whose order is `(*s, c)` and whose elements are `stride` apart:
        from element to element in the kernels' order, and runs."""
        natural = [math.prod(self.block[axis + 1 :]) * stride for axis in range(len(self.block))]
        ordered = tuple(natural[axis] for axis in self.order)
        missing = AXES - len(self.block)
        run = _run([self.block[axis] for axis in self.order], ordered)
        return (*(0 for _ in range(missing)), *ordered), run

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


@dataclass(frozen=True)
class Positions:
    """The places of maps of one shape, without channels, and where their blocks are in rows.

    Axes are the three spatial ones in the order in which the map lies in memory.
    """

    count: int
    sizes: tuple[int, ...]
    grid_steps: tuple[int, ...]  # numbers of blocks from batch to batch, and along each axis
    inner_steps: tuple[int, ...]  # within a row
    channels: int
    block: tuple[int, ...]  # along each axis, and channels
    axes: tuple[int, ...]  # of the map

    @classmethod
    def of(cls, x: Tensor, block_shape: Sequence[int]) -> "Positions":
        """Those of a map, whose strides give the order."""
        batch, channels, *space = x.shape
        group, *sides = block_shape
        dims = len(space)
        grid = [n // side for n, side in zip(space, sides, strict=True)] + [channels // group]
        after = [math.prod(grid[axis + 1 :]) for axis in range(dims)]
        inner = [math.prod(sides[axis + 1 :]) * group for axis in range(dims)]
        order = sorted(range(dims), key=lambda axis: (space[axis] > 1, -x.stride(axis + 2)))
        missing = AXES - 1 - dims
        ones, zeros = (1,) * missing, (0,) * missing
        return cls(
            batch * math.prod(space),
            (*ones, *(space[axis] for axis in order)),
            (math.prod(grid), *zeros, *(after[axis] for axis in order)),
            (*zeros, *(inner[axis] for axis in order)),
            channels,
            (*ones, *(sides[axis] for axis in order), group),
            tuple(axis + 2 for axis in order),
        )

    @property
    def size(self) -> int:
        """D, the elements of a block."""
        return math.prod(self.block)

    @property
    def row_runs(self) -> tuple[int, int, int, int]:
        """Runs of positions and of channels in rows."""
        sizes, steps = [self._batch], [self.grid_steps[0] * self.size]
        axes = zip(self.sizes, self.block, self.grid_steps[1:], self.inner_steps, strict=False)
        for size, side, grid_step, inner_step in axes:
            sizes += [size // side, side]
            steps += [grid_step * self.size, inner_step]
        group = self.block[-1]
        channels = _run((self.channels // group, group), (self.size, 1))
        return (*_run(sizes, steps), *channels)

    @property
    def _batch(self) -> int:
        return self.count // math.prod(self.sizes) if self.count else 0

    def strides(self, x: Tensor) -> tuple[tuple[int, ...], tuple[int, int, int, int]]:
        """Strides of one map of this shape, batch first and channels last, and runs."""
        missing = AXES - 1 - len(self.axes)
        space = (*(0 for _ in range(missing)), *(x.stride(axis) for axis in self.axes))
        positions = _run((self._batch, *self.sizes), (x.stride(0), *space))
        channels = _run((self.channels,), (x.stride(1),))
        return (x.stride(0), *space, x.stride(1)), (*positions, *channels)


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
