"""Kernels for the items, the same for both regimes: before their products, and after."""

import triton
import triton.language as tl

from blockmem.backends.triton.maths import as_operand, element_offsets, inverse_norms


@triton.jit
def prepare_kernel(
    memory, memory_stride, steps, items, inverses, count, width,
    BLOCK: tl.constexpr, RUNS: tl.constexpr, COPY: tl.constexpr, PRECISION: tl.constexpr,
    ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """1/|m_i| `(width,)`; with COPY also the items `(width, D)` in the order of the kernels, and
    for tf32 rounded to it. Beyond the number of items all are zeros."""
    n = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    square = tl.zeros((ITEMS, ELEMENTS), tl.float32)
    for start in range(0, D, ELEMENTS):
        elements = start + tl.arange(0, ELEMENTS)
        at = element_offsets(elements, BLOCK, steps, RUNS[0], RUNS[1])
        mask = (n < count)[:, None] & (elements < D)[None, :]
        m = tl.load(memory + n.to(tl.int64)[:, None] * memory_stride + at[None, :], mask, other=0.0)
        if COPY:
            to = items + n.to(tl.int64)[:, None] * D + elements[None, :]
            copied = as_operand(m, items.dtype.element_ty, PRECISION)
            tl.store(to, copied, mask=(n < width)[:, None] & (elements < D)[None, :])
        m = m.to(tl.float32)
        square += m * m
    tl.store(inverses + n, inverse_norms(tl.sum(square, axis=1)), mask=n < width)


@triton.jit
def finish_kernel(
    products, shares, share_stride, along, parts, along_stride, memory, memory_stride, steps,
    inverses, out, out_steps, count,
    BLOCK: tl.constexpr, RUNS: tl.constexpr, OUT_RUNS: tl.constexpr,
    PARTS: tl.constexpr, ITEMS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """The gradient of the items: shares of products `(shares, N, D)` added up, less their part
    along the item, (sum ds s) / |m_i|^2 m_i, whose sums come in parts `(parts, N)` too.

    Both are added in their order, so that no result depends on timing.
    """
    n = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    elements = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    D: tl.constexpr = BLOCK[0] * BLOCK[1] * BLOCK[2] * BLOCK[3]
    sums = tl.zeros((PARTS, ITEMS), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & (n < count)[None, :]
        sums += tl.load(along + part[:, None] * along_stride + n[None, :], inside, other=0.0)
    inverse = tl.load(inverses + n, mask=n < count, other=0.0)
    tangent = tl.sum(sums, axis=0) * inverse * inverse
    mask = (n < count)[:, None] & (elements < D)[None, :]
    row = n.to(tl.int64)[:, None]
    dm = tl.zeros((ITEMS, ELEMENTS), tl.float32)
    here = products + row * D + elements[None, :]
    for _ in range(shares):
        dm += tl.load(here, mask, other=0.0).to(tl.float32)
        here += share_stride
    at = element_offsets(elements, BLOCK, steps, RUNS[0], RUNS[1])
    m = tl.load(memory + row * memory_stride + at[None, :], mask, other=0.0).to(tl.float32)
    dm -= tangent[:, None] * m
    to = element_offsets(elements, BLOCK, out_steps, OUT_RUNS[0], OUT_RUNS[1])
    tl.store(out + row * D + to[None, :], dm.to(out.dtype.element_ty), mask=mask)
