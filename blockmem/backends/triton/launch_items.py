"""Launches of the kernels for the items, `items.py`."""

from typing import NamedTuple

import torch
import triton

from blockmem.backends.triton.items import finish_kernel, prepare_kernel
from blockmem.backends.triton.launcher import Launcher

TILE = 4096  # elements of a program
PARTS = 64  # added up at a time


class Order(NamedTuple):
    """A block, in the order in which kernels go through it, and steps in a row of the memory."""

    block: tuple[int, ...]
    steps: tuple[int, ...]
    runs: tuple[int, int]  # of the memory as it is
    plain_steps: tuple[int, ...]
    plain_runs: tuple[int, int]  # of a contiguous one


def prepare(
    items: int, width: int, stride: int, order: Order, precision: str, copy: bool
) -> Launcher:
    """Return what makes 1/|m_i| `(width,)` and, where it is to `copy`, items `(width, D)`."""
    size = torch.Size(order.block).numel()
    elements = min(TILE // 2, triton.next_power_of_2(size))
    rows = TILE // 2 // elements
    return Launcher(
        prepare_kernel, (triton.cdiv(width, rows),),
        memory_stride=stride, steps=order.steps, count=items, width=width,
        BLOCK=order.block, RUNS=order.runs, COPY=copy, PRECISION=precision,
        ITEMS=rows, ELEMENTS=elements, num_warps=4,
    )  # fmt: skip


def finish(
    items: int, stride: int, order: Order, shares: int, share_stride: int, parts: int, width: int
) -> Launcher:
    """Return what makes the gradient of the items of `shares` of products, and of `parts` of sums
    of ds s for each."""
    size = torch.Size(order.block).numel()
    elements = min(TILE // 4, triton.next_power_of_2(size))
    rows = TILE // elements
    return Launcher(
        finish_kernel, (triton.cdiv(items, rows), triton.cdiv(size, elements)),
        shares=shares, share_stride=share_stride, parts=parts, along_stride=width,
        memory_stride=stride, steps=order.steps, out_steps=order.plain_steps, count=items,
        BLOCK=order.block, RUNS=order.runs, OUT_RUNS=order.plain_runs,
        PARTS=PARTS, ITEMS=rows, ELEMENTS=elements, num_warps=4,
    )  # fmt: skip
