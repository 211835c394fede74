"""Kernels for small blocks, D up to 128, such as single pixels: in the manner of FlashAttention.

A tile of queries stays on the chip while the items go by. Cosines are bounded, so exp needs no
running maximum. Shapes in comments are of tiles: R queries, N items, K the elements of a block, D
filled up to a power of two. `scales` is 1/(|m_i| temperature) of each item.
"""

import triton
import triton.language as tl

from blockmem.backends.triton.maths import (
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
def _exponentials(q, inverse, m, scales, items, count, PRECISION: tl.constexpr):
    """Logits and their exp, `(R, N)`; zeros beyond the number of items."""
    scale = tl.load(scales + items, mask=items < count, other=0.0)
    products = tl.dot(q, m.trans(), input_precision=PRECISION)
    logits = products * inverse[:, None] * scale[None, :]
    return logits, tl.where((items < count)[None, :], tl.exp(logits), 0.0), scale


@triton.jit
def read_kernel(
    x, x_strides, out, out_strides, grid_sizes, blocks, memory, scales, items, totals, cutoff,
    BLOCK: tl.constexpr, X_RUNS: tl.constexpr, OUT_RUNS: tl.constexpr, RENORMALIZE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """The new map, and each block's softmax normaliser, sum_i exp(s_i)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    elements = tl.arange(0, ELEMENTS)
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    q = load_blocks(x, rows, blocks, elements, grid_sizes, x_strides, BLOCK, X_RUNS)  # (R, K)
    inverse = inverse_norms(square_norms(q))
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, items, ITEMS):
        n = start + tl.arange(0, ITEMS)
        m = load_rows(memory, n, items, elements, D)  # (N, K)
        _, e, _ = _exponentials(q, inverse, m, scales, n, items, PRECISION)
        total += tl.sum(e, axis=1)
    total_weight = tl.zeros((ROWS,), tl.float32)
    answer = tl.zeros((ROWS, ELEMENTS), tl.float32)
    for start in range(0, items, ITEMS):
        n = start + tl.arange(0, ITEMS)
        m = load_rows(memory, n, items, elements, D)
        _, e, _ = _exponentials(q, inverse, m, scales, n, items, PRECISION)
        w = shrink(e / total[:, None], cutoff)
        total_weight += tl.sum(w, axis=1)
        answer = tl.dot(w.to(OPERAND), m.to(OPERAND), answer, input_precision=PRECISION)
    if RENORMALIZE:
        answer = answer / nonzero(total_weight)[:, None]
    tl.store(totals + rows, total, mask=rows < blocks)
    answer = answer.to(out.dtype.element_ty)
    store_blocks(out, answer, rows, blocks, elements, grid_sizes, out_strides, BLOCK, OUT_RUNS)


@triton.jit
def grad_queries_kernel(
    x, x_strides, grad, grad_strides, out, out_strides, grid_sizes, blocks, memory, scales, items,
    totals, deltas, sums, inverses, cutoff,
    BLOCK: tl.constexpr, X_RUNS: tl.constexpr, GRAD_RUNS: tl.constexpr, OUT_RUNS: tl.constexpr,
    RENORMALIZE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the map; and of each block delta = sum w dw, sum w before renormalising (or
    1), and 1/|q|, for the gradient of the items."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    elements = tl.arange(0, ELEMENTS)
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    q = load_blocks(x, rows, blocks, elements, grid_sizes, x_strides, BLOCK, X_RUNS)  # (R, K)
    g = load_blocks(grad, rows, blocks, elements, grid_sizes, grad_strides, BLOCK, GRAD_RUNS)
    inverse = inverse_norms(square_norms(q))
    total = tl.load(totals + rows, mask=rows < blocks, other=1.0)
    delta = tl.zeros((ROWS,), tl.float32)
    total_weight = tl.zeros((ROWS,), tl.float32)
    for start in range(0, items, ITEMS):
        n = start + tl.arange(0, ITEMS)
        m = load_rows(memory, n, items, elements, D)  # (N, K)
        _, e, _ = _exponentials(q, inverse, m, scales, n, items, PRECISION)
        w = shrink(e / total[:, None], cutoff)
        total_weight += tl.sum(w, axis=1)
        delta += tl.sum(w * tl.dot(g, m.trans(), input_precision=PRECISION), axis=1)
    if RENORMALIZE:
        total_weight = nonzero(total_weight)
        delta = delta / total_weight
    else:
        total_weight = tl.full((ROWS,), 1.0, tl.float32)
    along = tl.zeros((ROWS,), tl.float32)
    u = tl.zeros((ROWS, ELEMENTS), tl.float32)
    for start in range(0, items, ITEMS):
        n = start + tl.arange(0, ITEMS)
        m = load_rows(memory, n, items, elements, D)
        s, e, scale = _exponentials(q, inverse, m, scales, n, items, PRECISION)
        p = e / total[:, None]
        w = shrink(p, cutoff) / total_weight[:, None]
        dw = tl.dot(g, m.trans(), input_precision=PRECISION)
        ds = logit_gradients(p, w, dw, delta[:, None], RENORMALIZE)
        along += tl.sum(ds * s, axis=1)
        u = tl.dot((ds * scale[None, :]).to(OPERAND), m.to(OPERAND), u, input_precision=PRECISION)
    tl.store(deltas + rows, delta, mask=rows < blocks)
    tl.store(sums + rows, total_weight, mask=rows < blocks)
    tl.store(inverses + rows, inverse, mask=rows < blocks)
    # Loaded again, and after a store so that it is: held through both sweeps it costs registers
    q = load_blocks(x, rows, blocks, elements, grid_sizes, x_strides, BLOCK, X_RUNS)
    dq = inverse[:, None] * (u - (along * inverse)[:, None] * q.to(tl.float32))
    dq = dq.to(out.dtype.element_ty)
    store_blocks(out, dq, rows, blocks, elements, grid_sizes, out_strides, BLOCK, OUT_RUNS)


@triton.jit
def grad_items_kernel(
    x, x_strides, grad, grad_strides, grid_sizes, blocks, memory, scales, items,
    totals, deltas, sums, inverses, cutoff, share, partial, partial_along,
    BLOCK: tl.constexpr, X_RUNS: tl.constexpr, GRAD_RUNS: tl.constexpr,
    RENORMALIZE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Over one share of the blocks: sum (w g + ds q' scale) `(N, D)` and sum ds s `(N,)`.

    Shares are added up afterwards in their order, so that no result depends on timing.
    """
    n = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    first = tl.program_id(1) * share
    elements = tl.arange(0, ELEMENTS)
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    m = load_rows(memory, n, items, elements, D)  # (N, K)
    scale = tl.load(scales + n, mask=n < items, other=0.0)
    along = tl.zeros((ITEMS,), tl.float32)
    dm = tl.zeros((ITEMS, ELEMENTS), tl.float32)
    for start in range(first, min(first + share, blocks), ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = rows < blocks
        q = load_blocks(x, rows, blocks, elements, grid_sizes, x_strides, BLOCK, X_RUNS)  # (R, K)
        g = load_blocks(grad, rows, blocks, elements, grid_sizes, grad_strides, BLOCK, GRAD_RUNS)
        inverse = tl.load(inverses + rows, mask=inside, other=0.0)
        total = tl.load(totals + rows, mask=inside, other=1.0)
        delta = tl.load(deltas + rows, mask=inside, other=0.0)
        total_weight = tl.load(sums + rows, mask=inside, other=1.0)
        factor = scale[:, None] * inverse[None, :]  # (N, R), as all that follow
        s = tl.dot(m, q.trans(), input_precision=PRECISION) * factor
        p = tl.exp(s) / total[None, :]
        w = shrink(p, cutoff) / total_weight[None, :]
        dw = tl.dot(m, g.trans(), input_precision=PRECISION)
        ds = logit_gradients(p, w, dw, delta[None, :], RENORMALIZE)
        along += tl.sum(ds * s, axis=1)
        dm = tl.dot(w.to(OPERAND), g.to(OPERAND), dm, input_precision=PRECISION)
        dm = tl.dot((ds * factor).to(OPERAND), q.to(OPERAND), dm, input_precision=PRECISION)
    row = tl.program_id(1).to(tl.int64) * items + n
    mask = (n < items)[:, None] & (elements < D)[None, :]
    tl.store(partial + row[:, None] * D + elements[None, :], dm, mask=mask)
    tl.store(partial_along + row, along, mask=n < items)
