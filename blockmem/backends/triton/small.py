"""Kernels for small blocks, such as single pixels: in the manner of FlashAttention.

A tile of queries stays on the chip while the items go by. Cosines are bounded, so exp needs no
running maximum. Weights are used before they are divided by their sum, which is done once a row.
Shapes in comments are of tiles: R queries, N items, K the elements of a block, D filled up to a
power of two. `items` are as `prepare_kernel` leaves them, in the kernels' order and, for tf32,
rounded; `item_inverses` are 1/|m_i|.
"""

import triton
import triton.language as tl

from blockmem.backends.triton.maths import (
    LN_2,
    LOG2_E,
    as_operand,
    inverse_norms,
    load_blocks,
    load_rows,
    nonzero,
    square_norms,
    store_blocks,
)


@triton.jit
def _exponentials(q, inverse, m, item_inverses, n, count, PRECISION: tl.constexpr):
    """Logits times log2 e, and their exp, `(R, N)`; -1e30 and 0 beyond the number of items.

    `inverse` is log2 e / (|q| temperature). Beyond the items, adding is free: it is one instruction
    with the product before it.
    """
    scale = tl.load(item_inverses + n, mask=n < count, other=0.0)
    bias = tl.where(n < count, 0.0, -1e30)
    products = tl.dot(q, m.trans(), input_precision=PRECISION)
    logits = products * inverse[:, None] * scale[None, :] + bias[None, :]
    return logits, tl.exp2(logits), scale


@triton.jit
def read_kernel(
    x, x_strides, out, out_strides, grid_sizes, blocks, items, item_inverses, count, totals,
    temperature, cutoff,
    BLOCK: tl.constexpr, X_RUNS: tl.constexpr, OUT_RUNS: tl.constexpr, RENORMALIZE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """The new map, and each block's softmax normaliser, sum_i exp(s_i)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    elements = tl.arange(0, ELEMENTS)
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    q = load_blocks(x, rows, blocks, elements, grid_sizes, x_strides, BLOCK, X_RUNS)  # (R, K)
    inverse = inverse_norms(square_norms(q)) * (LOG2_E / temperature)
    q = as_operand(q, q.dtype, PRECISION)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, count, ITEMS):
        n = start + tl.arange(0, ITEMS)
        m = load_rows(items, n, count, elements, D)  # (N, K)
        _, e, _ = _exponentials(q, inverse, m, item_inverses, n, count, PRECISION)
        total += tl.sum(e, axis=1)
    least = cutoff * total
    kept = tl.zeros((ROWS,), tl.float32)
    answer = tl.zeros((ROWS, ELEMENTS), tl.float32)
    for start in range(0, count, ITEMS):
        n = start + tl.arange(0, ITEMS)
        m = load_rows(items, n, count, elements, D)
        _, e, _ = _exponentials(q, inverse, m, item_inverses, n, count, PRECISION)
        w = tl.where(e < least[:, None], 0.0, e)  # NaN is kept
        if RENORMALIZE:
            kept += tl.sum(w, axis=1)
        w = as_operand(w, OPERAND, PRECISION)
        answer = tl.dot(w, m.to(OPERAND), answer, input_precision=PRECISION)
    answer = answer * (1 / nonzero(kept))[:, None] if RENORMALIZE else answer * (1 / total)[:, None]
    tl.store(totals + rows, total, mask=rows < blocks)
    answer = answer.to(out.dtype.element_ty)
    store_blocks(out, answer, rows, blocks, elements, grid_sizes, out_strides, BLOCK, OUT_RUNS)


@triton.jit
def grad_queries_kernel(
    x, x_strides, grad, grad_strides, out, out_strides, grid_sizes, blocks,
    items, item_inverses, count, totals, deltas, norms, inverses, temperature, cutoff,
    BLOCK: tl.constexpr, X_RUNS: tl.constexpr, GRAD_RUNS: tl.constexpr, OUT_RUNS: tl.constexpr,
    RENORMALIZE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the map; and of each block delta = sum w dw, what weights are exp(s) times,
    and 1/|q|, for the gradient of the items."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    elements = tl.arange(0, ELEMENTS)
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    q = load_blocks(x, rows, blocks, elements, grid_sizes, x_strides, BLOCK, X_RUNS)  # (R, K)
    g = load_blocks(grad, rows, blocks, elements, grid_sizes, grad_strides, BLOCK, GRAD_RUNS)
    inverse_norm = inverse_norms(square_norms(q))
    inverse = inverse_norm * (LOG2_E / temperature)
    q, g = as_operand(q, q.dtype, PRECISION), as_operand(g, g.dtype, PRECISION)
    total = tl.load(totals + rows, mask=rows < blocks, other=1.0)
    least = cutoff * total
    delta = tl.zeros((ROWS,), tl.float32)
    kept = tl.zeros((ROWS,), tl.float32)
    for start in range(0, count, ITEMS):
        n = start + tl.arange(0, ITEMS)
        m = load_rows(items, n, count, elements, D)  # (N, K)
        _, e, _ = _exponentials(q, inverse, m, item_inverses, n, count, PRECISION)
        w = tl.where(e < least[:, None], 0.0, e)
        if RENORMALIZE:
            kept += tl.sum(w, axis=1)
        delta += tl.sum(w * tl.dot(g, m.trans(), input_precision=PRECISION), axis=1)
    norm = 1 / nonzero(kept) if RENORMALIZE else 1 / total
    delta = delta * norm
    along = tl.zeros((ROWS,), tl.float32)
    u = tl.zeros((ROWS, ELEMENTS), tl.float32)
    for start in range(0, count, ITEMS):
        n = start + tl.arange(0, ITEMS)
        m = load_rows(items, n, count, elements, D)
        s, e, scale = _exponentials(q, inverse, m, item_inverses, n, count, PRECISION)
        dw = tl.dot(g, m.trans(), input_precision=PRECISION)
        if RENORMALIZE:
            ds = tl.where(e < least[:, None], 0.0, e) * (dw - delta[:, None])
        else:
            ds = e * (tl.where(e < least[:, None], 0.0, dw) - delta[:, None])
        along += tl.sum(ds * s, axis=1)
        factor = as_operand(ds * scale[None, :], OPERAND, PRECISION)
        u = tl.dot(factor, m.to(OPERAND), u, input_precision=PRECISION)
    tl.store(deltas + rows, delta, mask=rows < blocks)
    tl.store(norms + rows, norm, mask=rows < blocks)
    tl.store(inverses + rows, inverse_norm, mask=rows < blocks)
    # Loaded again, and after a store so that it is: held through both sweeps it costs registers
    q = load_blocks(x, rows, blocks, elements, grid_sizes, x_strides, BLOCK, X_RUNS)
    tangent = along * (norm * LN_2 * inverse_norm * inverse_norm)
    radial = norm * inverse_norm / temperature
    dq = u * radial[:, None] - tangent[:, None] * q.to(tl.float32)
    dq = dq.to(out.dtype.element_ty)
    store_blocks(out, dq, rows, blocks, elements, grid_sizes, out_strides, BLOCK, OUT_RUNS)


@triton.jit
def grad_items_kernel(
    x, x_strides, grad, grad_strides, grid_sizes, blocks, items, item_inverses, count,
    totals, deltas, norms, inverses, temperature, cutoff, share, partial, along_items,
    BLOCK: tl.constexpr, X_RUNS: tl.constexpr, GRAD_RUNS: tl.constexpr,
    RENORMALIZE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Over one share of the blocks: sum (w g + ds q' / (|m_i| t)) `(N, D)` and sum ds s `(N,)`.

    Shares are added up afterwards in their order, so that no result depends on timing.
    """
    n = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    first = tl.program_id(1) * share
    elements = tl.arange(0, ELEMENTS)
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    m = load_rows(items, n, count, elements, D)  # (N, K)
    scale = tl.load(item_inverses + n, mask=n < count, other=0.0) * (1 / temperature)
    along = tl.zeros((ITEMS,), tl.float32)
    dm = tl.zeros((ITEMS, ELEMENTS), tl.float32)
    for start in range(first, min(first + share, blocks), ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = rows < blocks
        q = load_blocks(x, rows, blocks, elements, grid_sizes, x_strides, BLOCK, X_RUNS)  # (R, K)
        g = load_blocks(grad, rows, blocks, elements, grid_sizes, grad_strides, BLOCK, GRAD_RUNS)
        q, g = as_operand(q, q.dtype, PRECISION), as_operand(g, g.dtype, PRECISION)
        inverse = tl.load(inverses + rows, mask=inside, other=0.0)
        least = cutoff * tl.load(totals + rows, mask=inside, other=1.0)
        delta = tl.load(deltas + rows, mask=inside, other=0.0)
        norm = tl.load(norms + rows, mask=inside, other=0.0)
        # (N, R), as all that follow
        s = tl.dot(m, q.trans(), input_precision=PRECISION)
        s = s * (scale * LOG2_E)[:, None] * inverse[None, :]
        e = tl.exp2(s)
        p = e * norm[None, :]
        dropped = e < least[None, :]
        w = tl.where(dropped, 0.0, p)
        dw = tl.dot(m, g.trans(), input_precision=PRECISION)
        ds = w * (dw - delta[None, :]) if RENORMALIZE else w * dw - p * delta[None, :]
        along += tl.sum(ds * s, axis=1)
        factor = ds * scale[:, None] * inverse[None, :]
        w, factor = as_operand(w, OPERAND, PRECISION), as_operand(factor, OPERAND, PRECISION)
        dm = tl.dot(w, g.to(OPERAND), dm, input_precision=PRECISION)
        dm = tl.dot(factor, q.to(OPERAND), dm, input_precision=PRECISION)
    row = tl.program_id(1).to(tl.int64) * count + n
    mask = (n < count)[:, None] & (elements < D)[None, :]
    tl.store(partial + row[:, None] * D + elements[None, :], dm, mask=mask)
    tl.store(along_items + row, along * LN_2, mask=n < count)
