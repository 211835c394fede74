"""Divide a map into blocks and assemble blocks into a map: exact inverses, and the grid between.

A map `(B, C, *S)` with blocks `(c, *s)` is a grid of `Q = (C/c) * prod(S/s)` blocks a sample.
Blocks are counted over space first, channels last. Each is flattened in the order `(*s, c)`,
channels fastest, as the paper writes H x W x C, so a channels_last map is read in order.
"""

import math
import operator
from collections.abc import Iterator, Sequence

from einops import rearrange
from torch import Tensor

AXES = ("x", "y", "z")  # einops names of the spatial axes, first to last
DIMENSIONS = {
    1: ("channels", "length"),
    2: ("channels", "height", "width"),
    3: ("channels", "depth", "height", "width"),
}

# From (B, C/c, c, S/s, s, ...) to (B, *S/s, C/c, *s, c)
GRID_ORDER = {2: (0, 3, 1, 4, 2), 3: (0, 3, 5, 1, 4, 6, 2), 4: (0, 3, 5, 7, 1, 4, 6, 8, 2)}


def divide(x: Tensor, block_shape: Sequence[int]) -> Tensor:
    """Return the blocks of a map as vectors: `(B, C, *S)` to `(B, Q, D)`, `D = c * prod(s)`.

    Args:
        x: map with 1, 2 or 3 spatial dimensions, any dtype and strides.
        block_shape: `(c, *s)`; `c` divides `C` and each of `s` its spatial size.

    Raises:
        ValueError: where the block shape does not fit the map; names dimension and sizes.

    Examples:
        >>> import torch
        >>> divide(torch.arange(8.0).reshape(1, 2, 4), (2, 2))  # 2 channels, length 4
        tensor([[[0., 4., 1., 5.],
                 [2., 6., 3., 7.]]])
    """
    block_shape = check_block_shape(block_shape)
    check_fits(x.shape, block_shape)
    map_side, grid, block = _patterns(len(block_shape) - 1)
    return rearrange(x, f"{map_side} -> b ({grid}) ({block})", **_block_sizes(block_shape))


def assemble(queries: Tensor, block_shape: Sequence[int], map_shape: Sequence[int]) -> Tensor:
    """Return the map made of the given blocks: `(B, Q, D)` to `map_shape`, the inverse of `divide`.

    Args:
        queries: blocks as `divide` gives them.
        block_shape: `(c, *s)`.
        map_shape: `(B, C, *S)`, such as the `x.shape` that was divided.

    Raises:
        ValueError: where the shapes do not belong together.

    Examples:
        >>> import torch
        >>> x = torch.randn(2, 8, 16, 16)
        >>> torch.equal(assemble(divide(x, (4, 8, 2)), (4, 8, 2), x.shape), x)
        True
    """
    block_shape = check_block_shape(block_shape)
    check_fits(map_shape, block_shape)
    grid_sizes = grid_shape(map_shape, block_shape)
    expected = (map_shape[0], math.prod(grid_sizes), math.prod(block_shape))
    if tuple(queries.shape) != expected:
        raise ValueError(
            f"queries of shape {tuple(queries.shape)} do not make a map {tuple(map_shape)} of blocks "
            f"{tuple(block_shape)}: expected (B, Q, D) = {expected}"
        )
    map_side, grid, block = _patterns(len(block_shape) - 1)
    sizes = _block_sizes(block_shape) | dict(zip(grid.split(), grid_sizes, strict=True))
    return rearrange(queries, f"b ({grid}) ({block}) -> {map_side}", **sizes)


def grid_views(block_shape: Sequence[int], *maps: Tensor) -> list[Tensor]:
    """Return maps of one shape seen as `(B, *grid, *s, c)`, `grid = (*S/s, C/c)`.

    These are views, nothing is copied. They are not made by einops, since every call of the layer
    comes by here, and small ones would wait for it.
    """
    batch, *sizes = maps[0].shape
    split = [batch]
    for size, part in zip(sizes, block_shape, strict=True):
        split += (size // part, part)
    order = GRID_ORDER[len(block_shape)]
    return [x.view(split).permute(order) for x in maps]


def grid_shape(map_shape: Sequence[int], block_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the blocks along each axis, space first and channels last: `(*S/s, C/c)`."""
    channels, *space = (size // part for size, part in zip(map_shape[1:], block_shape, strict=True))
    return (*space, channels)


def chunks(grid: Sequence[int], rows: int) -> Iterator[tuple[int | slice, ...]]:
    """Yield indices that cut a grid into consecutive pieces of at most `rows` blocks (at least one).

    Indexing a tensor whose first axes are `grid` with each in turn goes through all its blocks
    in order, by views: `grid` is cut along one axis, and looped over along those before it.
    """
    axis, inner = len(grid) - 1, 1
    while axis > 0 and inner * grid[axis] <= rows:
        inner *= grid[axis]
        axis -= 1
    step = max(1, rows // max(1, inner))
    for flat in range(math.prod(grid[:axis])):
        before = []
        for size in reversed(grid[:axis]):
            flat, index = divmod(flat, size)
            before.append(index)
        for start in range(0, grid[axis], step):
            yield (*reversed(before), slice(start, start + step))


def check_block_shape(block_shape: Sequence[int]) -> tuple[int, ...]:
    """Return `block_shape` as a tuple of Python's own whole numbers, which NumPy's become.

    Raises:
        ValueError: unless it is `(c, *s)` of positive whole numbers, with 1 to 3 spatial ones.
    """
    try:
        shape = tuple(n if isinstance(n, int) else operator.index(n) for n in block_shape)
    except TypeError:
        shape = ()
    if not 2 <= len(shape) <= 4 or not all(n > 0 for n in shape):
        raise ValueError(
            f"block_shape {block_shape}: expected (c, *s), the channels of a block and its 1, 2 or "
            "3 spatial sizes, each a positive whole number, such as (64, 16, 16)"
        )
    return shape


def check_fits(map_shape: Sequence[int], block_shape: Sequence[int]) -> None:
    """Raise ValueError unless blocks of `block_shape` tile a map of `map_shape`."""
    if len(map_shape) != len(block_shape) + 1:
        hint = "; vectors (B, C) are maps of length 1: pass x[..., None] and block_shape (c, 1)"
        raise ValueError(
            f"map of shape {tuple(map_shape)} and block_shape {tuple(block_shape)} do not go "
            f"together: a block (c, *s) with {len(block_shape) - 1} spatial sizes needs a map "
            f"(B, C, *S) of {len(block_shape) + 1} dimensions, got {len(map_shape)}"
            f"{hint if len(map_shape) == 2 else ''}"
        )
    names = DIMENSIONS[len(block_shape) - 1]
    for name, size, part in zip(names, map_shape[1:], block_shape, strict=True):
        if size % part:
            raise ValueError(_misfit(name, size, part, map_shape, block_shape))


def _misfit(
    name: str, size: int, part: int, map_shape: Sequence[int], block_shape: Sequence[int]
) -> str:
    multiples = [n for n in (size // part * part, (size // part + 1) * part) if n]
    below, above = nearest_divisors(size, part)
    fitting = f"{below} or {above}" if above > part else f"{below}"
    return (
        f"{name} {size} of the map {tuple(map_shape)} cannot be divided into blocks of {part} "
        f"(block_shape {tuple(block_shape)}): the nearest {name} that can is "
        f"{' or '.join(map(str, multiples))}; the nearest block that divides {size} is {fitting}"
    )


def nearest_divisors(size: int, part: int) -> tuple[int, int]:
    """Return the divisors of `size` nearest to `part` from below and above; the end one beyond the ends."""
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    return (
        max((n for n in divisors if n <= part), default=1),
        min((n for n in divisors if n >= part), default=size),
    )


def _patterns(dims: int) -> tuple[str, str, str]:
    """Return einops patterns for `dims` spatial axes: the map's side, the grid, the block.

    >>> _patterns(2)
    ('b (gc c) (gx x) (gy y)', 'gx gy gc', 'x y c')
    """
    axes = AXES[:dims]
    map_side = " ".join(["b (gc c)", *(f"(g{axis} {axis})" for axis in axes)])
    return map_side, " ".join([*(f"g{axis}" for axis in axes), "gc"]), " ".join([*axes, "c"])


def _block_sizes(block_shape: Sequence[int]) -> dict[str, int]:
    channels, *space = block_shape
    return {"c": channels} | dict(zip(AXES[: len(space)], space, strict=True))
