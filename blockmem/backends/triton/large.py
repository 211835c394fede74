"""Kernels for large blocks, such as DAAD's of 2048 to 16384 elements, round matrix products that the
GPU's own library multiplies.

Blocks are copied to rows `(R, D)` in the order of the memory's, `(*s, c)`, and back; between the
products one program a row makes weights of logits, `(R, N)`, and gradients of logits. Tables
`(R, N)` have rows of `width`, N filled up with zeros, for which the library has its fast products.
"""

import triton
import triton.language as tl

from blockmem.backends.triton.maths import LN_2, LOG2_E, in_runs, inverse_norms, nonzero


@triton.jit
def _places(
    count, sizes, grid_steps, inner_steps, channels,
    BLOCK: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A tile of positions and channels of a map, and where they are in rows.

    Of each position batch, place along three axes, number of its first block, and place of its
    first channel within the row; of each channel the number of its block and its place within;
    and what of the tile is in the map.
    """
    positions = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    third = positions % sizes[2]
    rest = positions // sizes[2]
    second = rest % sizes[1]
    rest = rest // sizes[1]
    first = rest % sizes[0]
    batch = rest // sizes[0]
    block = batch * grid_steps[0] + (first // BLOCK[0]) * grid_steps[1]
    block += (second // BLOCK[1]) * grid_steps[2] + (third // BLOCK[2]) * grid_steps[3]
    inner = (first % BLOCK[0]) * inner_steps[0] + (second % BLOCK[1]) * inner_steps[1]
    inner += (third % BLOCK[2]) * inner_steps[2]
    place = (batch, first, second, third)
    return place, block, inner, c // BLOCK[3], c % BLOCK[3], c, positions < count, c < channels


@triton.jit
def _in_map(place, c, strides, RUNS: tl.constexpr):
    """Offsets of a tile in a map, `(P, C)`."""
    at = place[0].to(tl.int64) * strides[0] + place[1].to(tl.int64) * strides[1]
    at += place[2].to(tl.int64) * strides[2] + place[3].to(tl.int64) * strides[3]
    at = in_runs(at, RUNS[0], RUNS[1])
    channel = in_runs(c.to(tl.int64) * strides[4], RUNS[2], RUNS[3])
    return at[:, None] + channel[None, :]


@triton.jit
def _in_rows(block, inner, group, within, D: tl.constexpr, RUNS: tl.constexpr):
    """Offsets of a tile in rows, `(P, C)`."""
    at = in_runs(block.to(tl.int64) * D + inner, RUNS[0], RUNS[1])
    channel = in_runs(group.to(tl.int64) * D + within, RUNS[2], RUNS[3])
    return at[:, None] + channel[None, :]


@triton.jit
def gather_kernel(
    x, x_strides, rows, count, sizes, grid_steps, inner_steps, channels,
    BLOCK: tl.constexpr, D: tl.constexpr, X_RUNS: tl.constexpr, ROW_RUNS: tl.constexpr,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The blocks of a map, a row each."""
    place, block, inner, group, within, c, inside, some = _places(
        count, sizes, grid_steps, inner_steps, channels, BLOCK, POSITIONS, CHANNELS
    )
    mask = inside[:, None] & some[None, :]
    tile = tl.load(x + _in_map(place, c, x_strides, X_RUNS), mask=mask)
    to = rows + _in_rows(block, inner, group, within, D, ROW_RUNS)
    tl.store(to, tile.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def scatter_kernel(
    rows, out, out_strides, x, x_strides, along, count, sizes, grid_steps, inner_steps, channels,
    BLOCK: tl.constexpr, D: tl.constexpr, X_RUNS: tl.constexpr, OUT_RUNS: tl.constexpr,
    ROW_RUNS: tl.constexpr, TANGENT: tl.constexpr, GROUPED: tl.constexpr,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Rows as the blocks of a map; with TANGENT less `along` times the blocks of x."""
    place, block, inner, group, within, c, inside, some = _places(
        count, sizes, grid_steps, inner_steps, channels, BLOCK, POSITIONS, CHANNELS
    )
    mask = inside[:, None] & some[None, :]
    at = rows + _in_rows(block, inner, group, within, D, ROW_RUNS)
    tile = tl.load(at, mask=mask).to(tl.float32)
    if TANGENT:
        if GROUPED:
            factor = tl.load(along + block[:, None] + group[None, :], mask=mask, other=0.0)
        else:
            factor = tl.load(along + block, mask=inside, other=0.0)[:, None]
        tile -= factor * tl.load(x + _in_map(place, c, x_strides, X_RUNS), mask=mask).to(tl.float32)
    to = out + _in_map(place, c, out_strides, OUT_RUNS)
    tl.store(to, tile.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _probabilities(products, inverse, item_inverses, n, count, temperature):
    """Logits times log2 e, and their softmax, of one row of x . m_i."""
    item_inverse = tl.load(item_inverses + n, mask=n < count, other=0.0)
    s = products * (inverse * (LOG2_E / temperature)) * item_inverse
    e = tl.where(n < count, tl.exp2(s), 0.0)
    return s, e * (1 / tl.sum(e, axis=0)), item_inverse


@triton.jit
def _weights(p, cutoff, RENORMALIZE: tl.constexpr):
    w = tl.where(p < cutoff, 0.0, p)  # NaN is kept
    if RENORMALIZE:
        w = w / nonzero(tl.sum(w, axis=0))
    return w


@triton.jit
def weights_kernel(
    products, rows, inverses, item_inverses, weights, count, width, temperature, cutoff,
    D: tl.constexpr, RENORMALIZE: tl.constexpr, ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """One row of weights and 1/|q|, from x . m_i."""
    row = tl.program_id(0).to(tl.int64)
    square = tl.zeros((ELEMENTS,), tl.float32)
    for start in range(0, D, ELEMENTS):
        elements = start + tl.arange(0, ELEMENTS)
        q = tl.load(rows + row * D + elements, mask=elements < D, other=0.0).to(tl.float32)
        square += q * q
    inverse = inverse_norms(tl.sum(square, axis=0))
    n = tl.arange(0, ITEMS)
    products = tl.load(products + row * width + n, mask=n < count, other=0.0)
    _, p, _ = _probabilities(products, inverse, item_inverses, n, count, temperature)
    w = _weights(p, cutoff, RENORMALIZE)
    tl.store(inverses + row, inverse)
    tl.store(weights + row * width + n, w.to(weights.dtype.element_ty), mask=n < width)


@triton.jit
def grad_logits_kernel(
    products, grad_products, inverses, item_inverses, weights, factors, row_along, item_along,
    blocks, each, count, width, temperature, cutoff,
    RENORMALIZE: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    """Of `each` rows, from x . m_i and g . m_i: w, ds/(|q| |m_i| t), and (sum ds s)/|q|^2; and of
    each item the sum of ds s over these rows."""
    n = tl.arange(0, ITEMS)
    along = tl.zeros((ITEMS,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * each
    for row in range(first, min(first + each, blocks)):
        at = row * width + n
        inverse = tl.load(inverses + row)
        product = tl.load(products + at, mask=n < count, other=0.0)
        s, p, item_inverse = _probabilities(product, inverse, item_inverses, n, count, temperature)
        w = _weights(p, cutoff, RENORMALIZE)
        dw = tl.load(grad_products + at, mask=n < count, other=0.0)
        delta = tl.sum(w * dw, axis=0)
        ds = w * (dw - delta) if RENORMALIZE else w * dw - p * delta
        factor = ds * (item_inverse * (inverse / temperature))
        tl.store(weights + at, w.to(weights.dtype.element_ty), mask=n < width)
        tl.store(factors + at, factor.to(factors.dtype.element_ty), mask=n < width)
        here = ds * s * LN_2
        tl.store(row_along + row, tl.sum(here, axis=0) * inverse * inverse)
        along += here
    tl.store(item_along + tl.program_id(0) * width + n, along, mask=n < width)
