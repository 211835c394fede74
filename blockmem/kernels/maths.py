"""What kernels of both regimes compute alike: tiles of blocks, norms, shrinkage, gradients."""

import triton
import triton.language as tl

from blockmem.kernels.maps import block_offsets, number_offsets


@triton.jit
def block_pointers(x, rows, numbers, grid_sizes, strides, BLOCK: tl.constexpr, RUNS: tl.constexpr):
    """`(R, K)`: where the given numbers of the given blocks are in a map."""
    starts = block_offsets(rows, grid_sizes, strides[0], RUNS[0])
    return x + starts[:, None] + number_offsets(numbers, BLOCK, strides[1], RUNS[1])[None, :]


@triton.jit
def load_blocks(x, rows, count, numbers, grid_sizes, strides, BLOCK: tl.constexpr, RUNS: tl.constexpr):
    """`(R, K)`, zeros beyond the number of blocks and beyond D."""
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    pointers = block_pointers(x, rows, numbers, grid_sizes, strides, BLOCK, RUNS)
    return tl.load(pointers, mask=(rows < count)[:, None] & (numbers < D)[None, :], other=0.0)


@triton.jit
def store_blocks(
    x, tile, rows, count, numbers, grid_sizes, strides, BLOCK: tl.constexpr, RUNS: tl.constexpr
):
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    pointers = block_pointers(x, rows, numbers, grid_sizes, strides, BLOCK, RUNS)
    tl.store(pointers, tile, mask=(rows < count)[:, None] & (numbers < D)[None, :])


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
    """1/|row|, and 0 for a row of zeros."""
    return tl.where(squares == 0, 0.0, 1 / tl.sqrt(squares))


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
