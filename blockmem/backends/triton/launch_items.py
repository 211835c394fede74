"""Launches of the kernels for the items, `items.py`."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from blockmem.backends.triton.items import finish_kernel, prepare_kernel

TILE = 4096  # elements of a program
PARTS = 32  # added up at a time


class Order(NamedTuple):
    """A block, in the order in which kernels go through it, and steps in a row of the memory."""

    block: tuple[int, ...]
    steps: tuple[int, ...]
    runs: tuple[int, int]  # of the memory as it is
    plain_steps: tuple[int, ...]
    plain_runs: tuple[int, int]  # of a contiguous one


def prepare(
    memory: Tensor, order: Order, width: int, precision: str, copy: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Return the items `(width, D)`, a copy of a dtype or themselves, and 1/|m_i| `(width,)`."""
    count, size = memory.shape
    inverses = memory.new_empty(width, dtype=torch.float32)
    items = memory if copy is None else memory.new_empty((width, size), dtype=copy)
    elements = min(TILE // 2, triton.next_power_of_2(size))
    rows = TILE // 2 // elements
    prepare_kernel[(triton.cdiv(width, rows),)](
        memory, memory.stride(0), order.steps, items, inverses, count, width,
        BLOCK=order.block, RUNS=order.runs, COPY=copy is not None, PRECISION=precision,
        ITEMS=rows, ELEMENTS=elements,
    )  # fmt: skip
    return items, inverses


def finish(
    products: Tensor, along: Tensor, memory: Tensor, order: Order, inverses: Tensor, out: Tensor
) -> None:
    """Write the gradient of the items from shares of products `(shares, *, D)` and `(parts, *)`."""
    count, size = memory.shape
    elements = min(TILE // 4, triton.next_power_of_2(size))
    rows = TILE // elements
    finish_kernel[(triton.cdiv(count, rows), triton.cdiv(size, elements))](
        products, products.shape[0], products.stride(0), along, along.shape[0], along.stride(0),
        memory, memory.stride(0), order.steps, inverses, out, order.plain_steps, count,
        BLOCK=order.block, RUNS=order.runs, OUT_RUNS=order.plain_runs,
        PARTS=PARTS, ITEMS=rows, ELEMENTS=elements,
    )  # fmt: skip
