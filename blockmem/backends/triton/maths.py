"""What kernels of both regimes compute alike: tiles of a map, norms, shrinkage, gradients.

`grid_sizes`, `strides`, BLOCK and RUNS are those of `blockmem.backends.triton.maps`.
"""

import triton
import triton.language as tl

SMALLEST_SQUARE = tl.constexpr(2.0**-126)


@triton.jit
def block_offsets(numbers, grid_sizes, strides, RUN: tl.constexpr, ALIGN: tl.constexpr):
    """Where blocks begin: their numbers `(R,)` to offsets `(R,)`, int64."""
    numbers = numbers.to(tl.int64)
    channel = numbers % grid_sizes[3]
    numbers = numbers // grid_sizes[3]
    z = numbers % grid_sizes[2]
    numbers = numbers // grid_sizes[2]
    y = numbers % grid_sizes[1]
    numbers = numbers // grid_sizes[1]
    x = numbers % grid_sizes[0]
    batch = numbers // grid_sizes[0]
    offsets = x * strides[1] + y * strides[2] + z * strides[3] + channel * strides[4]
    # Last a sum that no compiler folds, as it would where there is one block along an axis: what is
    # said of its result is lost with it
    offsets += batch * strides[0]
    return tl.max_contiguous(tl.multiple_of(offsets, ALIGN), RUN)


@triton.jit
def element_offsets(elements, BLOCK: tl.constexpr, strides, RUN: tl.constexpr, ALIGN: tl.constexpr):
    """Where the elements of a block are, from its beginning: `(K,)` to offsets `(K,)`, int64."""
    elements = elements.to(tl.int64)
    third = elements % BLOCK[3]
    elements = elements // BLOCK[3]
    second = elements % BLOCK[2]
    elements = elements // BLOCK[2]
    first = elements % BLOCK[1]
    offsets = (elements // BLOCK[1]) * strides[0] + first * strides[1]
    offsets += second * strides[2] + third * strides[3]
    return tl.max_contiguous(tl.multiple_of(offsets, ALIGN), RUN)


@triton.jit
def block_pointers(x, rows, elements, grid_sizes, strides, BLOCK: tl.constexpr, RUNS: tl.constexpr):
    """`(R, K)`: where the given elements of the given blocks are in a map."""
    starts = block_offsets(rows, grid_sizes, strides[0], RUNS[0], RUNS[1])
    within = element_offsets(elements, BLOCK, strides[1], RUNS[2], RUNS[3])
    return x + starts[:, None] + within[None, :]


@triton.jit
def load_blocks(
    x, rows, count, elements, grid_sizes, strides, BLOCK: tl.constexpr, RUNS: tl.constexpr
):
    """`(R, K)`, zeros beyond the number of blocks and beyond D."""
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    pointers = block_pointers(x, rows, elements, grid_sizes, strides, BLOCK, RUNS)
    return tl.load(pointers, mask=(rows < count)[:, None] & (elements < D)[None, :], other=0.0)


@triton.jit
def store_blocks(
    x, tile, rows, count, elements, grid_sizes, strides, BLOCK: tl.constexpr, RUNS: tl.constexpr
):
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    pointers = block_pointers(x, rows, elements, grid_sizes, strides, BLOCK, RUNS)
    tl.store(pointers, tile, mask=(rows < count)[:, None] & (elements < D)[None, :])


@triton.jit
def load_rows(table, rows, count, columns, width):
    """`(R, K)` of a contiguous table `(count, width)`, zeros beyond it."""
    pointers = table + rows.to(tl.int64)[:, None] * width + columns[None, :]
    return tl.load(pointers, mask=(rows < count)[:, None] & (columns < width)[None, :], other=0.0)


@triton.jit
def square_norms(tile):
    """|row|^2 `(R,)` in float32."""
    tile = tile.to(tl.float32)
    return tl.sum(tile * tile, axis=1)


@triton.jit
def inverse_norms(squares):
    """1/|row|, and 0 for a row that counts as zero, as `_dtypes.smallest_square` says."""
    empty = squares <= SMALLEST_SQUARE
    return tl.where(empty, 0.0, 1 / tl.sqrt(tl.where(empty, 1.0, squares)))


@triton.jit
def shrink(probabilities, cutoff):
    """Weights before renormalising; NaN is kept."""
    return tl.where(probabilities < cutoff, 0.0, probabilities)


@triton.jit
def nonzero(total):
    """What to divide by so that a row of zeros stays one."""
    return tl.where(total == 0, 1.0, total)


@triton.jit
def logit_gradients(probabilities, weights, grad_weights, delta, RENORMALIZE: tl.constexpr):
    """ds: w dw - p delta, or w (dw - delta) where weights were made to sum to 1."""
    if RENORMALIZE:
        return weights * (grad_weights - delta)
    else:
        return weights * grad_weights - probabilities * delta


@triton.jit
def as_operand(tile, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """A tile as it is multiplied: in a dtype, and for tf32 rounded to it.

    Tensor cores cut off what tf32 has no room for; rounding to the nearest halves that error. A
    tile that passed through registers is also loaded 16 bytes at a time where one that is turned
    over on its way to the tensor core would be loaded number by number.
    """
    tile = tile.to(dtype)
    if PRECISION == "tf32" and dtype == tl.float32:
        bits = tile.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        tile = tl.where(tile == tile, rounded, tile)  # the largest NaN would become -0
    return tile
