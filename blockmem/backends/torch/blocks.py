"""Blocks of maps, copied a chunk at a time, and put back."""

import math
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from blockmem._dtypes import compute_dtype
from blockmem.backends import common
from blockmem.division import chunks

CHUNK_ELEMENTS = 2**21  # elements of queries held at once: 8 MB in float32
SHARE = 256  # of a GPU's memory one table of weights may take
FAR = 2**20  # bytes: a core's nearer cache
LEAST_RUN = 8  # numbers side by side, from which on two copies are faster than one
LEAST_ROWS = 64  # a product of fewer rows is slow, however long they are

Index = tuple[int | slice, ...]


def copied(grids: Sequence[Tensor], memory: Tensor) -> Iterator[tuple[Index, slice, Tensor]]:
    """Yield of each chunk its index into the `grid_views`, its rows, and the blocks of each map.

    The blocks `(maps, rows, D)` are a copy. The copies of all chunks share their storage.
    """
    items, size = memory.shape
    shape = grids[0].shape
    count = grids[0].numel() // size
    sides = (len(shape) - 1) // 2  # of a block
    times = _times(memory.device)
    most = times * common.CHUNK_WEIGHTS // items, times * CHUNK_ELEMENTS // size
    rows = max(1, min(most[0], max(LEAST_ROWS, most[1])))
    dtype = compute_dtype(memory.dtype)
    if count <= rows:
        copies = memory.new_empty((len(grids), *shape), dtype=dtype)
        for copy, blocks in zip(copies, grids, strict=True):
            _copy(copy, blocks, sides)
        yield (), slice(count), copies.view(len(grids), count, size)
        return
    workspace = memory.new_empty(len(grids) * rows * size, dtype=dtype)
    start = 0
    for index in chunks(shape[: (len(shape) + 1) // 2], rows):  # the axes of the grid
        shape = grids[0][index].shape
        count = math.prod(shape) // size
        copies = workspace[: len(grids) * count * size].view(len(grids), count, size)
        for copy, blocks in zip(copies, grids, strict=True):
            _copy(copy.view(shape), blocks[index], sides)
        yield index, slice(start, start + count), copies
        start += count


def _copy(copy: Tensor, blocks: Tensor, sides: int) -> None:
    """Copy `blocks` `(*grid, *s, c)` to contiguous memory."""
    if far(blocks):
        blocks = blocks.movedim(-1, -sides).contiguous().movedim(-sides, -1)
    copy.copy_(blocks)


def far(blocks: Tensor) -> bool:
    """Whether the channels of `blocks` `(*grid, *s, c)` lie far apart in the map.

    Each would be a cache line of its own. So they are brought together in the order in which the
    map has them, and turned over there.
    """
    apart = blocks.stride(-1) * blocks.shape[-1] * blocks.itemsize
    return apart > FAR and blocks.stride(-2) == 1 and blocks.shape[-2] >= LEAST_RUN


@cache
def _times(device: torch.device) -> int:
    """Return how many chunks of a CPU's size a device takes at once.

    A CPU's fit its caches. Elsewhere each has its launches to pay for, so there are few of them: a
    table of weights takes up to 1/256 of the memory. The memory as a whole, since to ask for what
    is free costs time in each call.
    """
    if device.type in ("cuda", "xpu"):
        total = getattr(torch, device.type).get_device_properties(device).total_memory
    elif device.type == "mps":
        total = torch.mps.recommended_max_memory()
    else:
        return 1
    return max(1, int(total) // (SHARE * 4 * common.CHUNK_WEIGHTS))


def put(rows: Tensor, grid: Tensor, index: Index, room: Tensor) -> None:
    """Copy `rows` `(R, D)` to where they lie in a map. `room`, as large, may be written over."""
    target = grid[index] if index else grid
    blocks = rows.view(target.shape)
    if far(target):
        sides = (grid.dim() - 1) // 2
        blocks, target = blocks.movedim(-1, -sides), target.movedim(-1, -sides)
        blocks = room.view(blocks.shape).copy_(blocks)
    target.copy_(blocks)
