"""Kernels for large blocks, such as DAAD's of 2048 to 16384 elements: matrix products over the map.

Logits come from a product split along D, in which norms are summed too; softmax and shrinkage from
a kernel on `(R, N)`, which is small beside `(R, D)`; answers and gradients from products whose
other side is the map itself. Shapes in comments are of tiles: R blocks, N items, K elements. A call
takes `blocks` blocks from number `first`; tables `(blocks, items)` have rows of `width`, a multiple
of 16, so that they can be read 16 bytes at a time.
"""

import triton
import triton.language as tl

from blockmem.backends.triton.maths import (
    as_operand,
    inverse_norms,
    load_blocks,
    load_rows,
    logit_gradients,
    nonzero,
    shrink,
    square_norms,
    store_blocks,
)


@triton.jit
def products_kernel(
    x, x_strides, grid_sizes, first, blocks, memory, items, width, share,
    products, squares, item_squares,
    BLOCK: tl.constexpr, X_RUNS: tl.constexpr, NORMS: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Over one share of the elements: x . m_i `(share, R, N)`, and with NORMS |x|^2 and |m_i|^2."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * ITEMS + tl.arange(0, ITEMS)
    part = tl.program_id(2)
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    square = tl.zeros((ROWS,), tl.float32)
    item_square = tl.zeros((ITEMS,), tl.float32)
    product = tl.zeros((ROWS, ITEMS), tl.float32)
    for start in range(part * share, min((part + 1) * share, D), ELEMENTS):
        elements = start + tl.arange(0, ELEMENTS)
        q = load_blocks(
            x, first + rows, first + blocks, elements, grid_sizes, x_strides, BLOCK, X_RUNS
        )
        m = load_rows(memory, n, items, elements, D)  # (N, K)
        product = tl.dot(q, m.trans(), product, input_precision=PRECISION)
        if NORMS:
            square += square_norms(q)
            item_square += square_norms(m)
    row = part.to(tl.int64) * blocks + rows
    mask = (rows < blocks)[:, None] & (n < width)[None, :]
    tl.store(products + row[:, None] * width + n[None, :], product, mask=mask)
    if NORMS:  # once for each row and column of tiles
        tl.store(squares + row, square, mask=(rows < blocks) & (tl.program_id(1) == 0))
        at = part * width + n
        tl.store(item_squares + at, item_square, mask=(n < width) & (tl.program_id(0) == 0))


@triton.jit
def _sum_parts(table, size, at, mask, parts):
    """Sums over the first axis of `(parts, size)` at given places of the second, in order."""
    total = tl.load(table + at, mask=mask, other=0.0)
    for part in range(1, parts):
        total += tl.load(table + part * size + at, mask=mask, other=0.0)
    return total


@triton.jit
def weights_kernel(
    products, squares, item_squares, parts, blocks, items, width, temperature, cutoff,
    logits, inverses, item_inverses, weights, RENORMALIZE: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    """One row of logits and of weights, and norms inverted, from the parts of a product."""
    row = tl.program_id(0)
    n = tl.arange(0, ITEMS)
    inside = n < width  # tables are filled up with zeros
    at = row.to(tl.int64) * width + n
    inverse = inverse_norms(_sum_parts(squares, blocks, row, True, parts))
    item_inverse = inverse_norms(_sum_parts(item_squares, width, n, inside, parts))
    s = _sum_parts(products, blocks * width, at, inside, parts)
    s = s * inverse * (item_inverse / temperature)
    e = tl.where(n < items, tl.exp(s), 0.0)
    w = shrink(e / tl.sum(e, axis=0), cutoff)
    if RENORMALIZE:
        w = w / nonzero(tl.sum(w, axis=0))
    tl.store(inverses + row, inverse)
    tl.store(item_inverses + n, item_inverse, mask=inside & (row == 0))
    tl.store(logits + at, s, mask=inside)
    tl.store(weights + at, w.to(weights.dtype.element_ty), mask=inside)


@triton.jit
def grad_logits_kernel(
    products, parts, blocks, items, width, temperature, cutoff, logits, inverses, item_inverses,
    weights, factors, along, row_along, RENORMALIZE: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    """One row of weights w, of ds/(|q| |m_i| t), and of ds s, and the sum of that over |q|^2.

    From logits and the parts of g . m_i.
    """
    row = tl.program_id(0)
    n = tl.arange(0, ITEMS)
    inside = n < width  # tables are filled up with zeros
    at = row.to(tl.int64) * width + n
    inverse = tl.load(inverses + row)
    item_inverse = tl.load(item_inverses + n, mask=inside, other=0.0)
    s = tl.load(logits + at, mask=inside, other=0.0)
    e = tl.where(n < items, tl.exp(s), 0.0)
    p = e / tl.sum(e, axis=0)
    w = shrink(p, cutoff)
    if RENORMALIZE:
        w = w / nonzero(tl.sum(w, axis=0))
    dw = _sum_parts(products, blocks * width, at, inside, parts)
    ds = logit_gradients(p, w, dw, tl.sum(w * dw, axis=0), RENORMALIZE)
    factor = ds * inverse * (item_inverse / temperature)
    tl.store(weights + at, w.to(weights.dtype.element_ty), mask=inside)
    tl.store(factors + at, factor.to(factors.dtype.element_ty), mask=inside)
    tl.store(along + at, ds * s, mask=inside)
    tl.store(row_along + row, tl.sum(ds * s, axis=0) * inverse * inverse)


@triton.jit
def read_kernel(
    weights, memory, items, width, out, out_strides, grid_sizes, first, blocks, x, x_strides, row_along,
    BLOCK: tl.constexpr, OUT_RUNS: tl.constexpr, X_RUNS: tl.constexpr, TANGENT: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """sum_i w_i m_i for each block, stored into the map; with TANGENT less row_along x."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    elements = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    at, end = first + rows, first + blocks
    if TANGENT:
        q = load_blocks(x, at, end, elements, grid_sizes, x_strides, BLOCK, X_RUNS)
        along = tl.load(row_along + rows, mask=rows < blocks, other=0.0)
        answer = -along[:, None] * q.to(tl.float32)
    else:
        answer = tl.zeros((ROWS, ELEMENTS), tl.float32)
    for start in range(0, items, ITEMS):
        n = start + tl.arange(0, ITEMS)
        w = load_rows(weights, rows, blocks, n, width)  # (R, N)
        m = load_rows(memory, n, items, elements, D)  # (N, K)
        answer = tl.dot(w, as_operand(m, w.dtype, PRECISION), answer, input_precision=PRECISION)
    answer = answer.to(out.dtype.element_ty)
    store_blocks(out, answer, at, end, elements, grid_sizes, out_strides, BLOCK, OUT_RUNS)


@triton.jit
def grad_items_kernel(
    weights, factors, x, x_strides, grad, grad_strides, grid_sizes, first, blocks, memory, items,
    width, item_along, out, BLOCK: tl.constexpr, X_RUNS: tl.constexpr, GRAD_RUNS: tl.constexpr,
    ADD: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """sum over blocks of w g + factor x, less item_along m `(N, D)`; with ADD onto what is there.

    Each program goes through all blocks in order, so that no result depends on timing.
    """
    n = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    elements = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    dm = tl.zeros((ITEMS, ELEMENTS), tl.float32)
    for start in range(0, blocks, ROWS):
        rows = start + tl.arange(0, ROWS)
        at, end = first + rows, first + blocks
        w = load_rows(weights, rows, blocks, n, width)  # (R, N)
        g = load_blocks(
            grad, at, end, elements, grid_sizes, grad_strides, BLOCK, GRAD_RUNS
        )  # (R, K)
        w, g = as_operand(w, w.dtype, PRECISION), as_operand(g, w.dtype, PRECISION)
        dm = tl.dot(w.trans(), g, dm, input_precision=PRECISION)
        f = load_rows(factors, rows, blocks, n, width)
        q = load_blocks(x, at, end, elements, grid_sizes, x_strides, BLOCK, X_RUNS)
        f, q = as_operand(f, f.dtype, PRECISION), as_operand(q, f.dtype, PRECISION)
        dm = tl.dot(f.trans(), q, dm, input_precision=PRECISION)
    along = tl.load(item_along + n, mask=n < items, other=0.0)
    m = load_rows(memory, n, items, elements, D)
    dm -= along[:, None] * m.to(tl.float32)
    pointers = out + n.to(tl.int64)[:, None] * D + elements[None, :]
    mask = (n < items)[:, None] & (elements < D)[None, :]
    if ADD:
        dm += tl.load(pointers, mask=mask, other=0.0)
    tl.store(pointers, dm.to(out.dtype.element_ty), mask=mask)
