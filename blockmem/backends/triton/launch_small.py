"""Launches of the kernels for small blocks, `small.py`."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockmem.addressing import Addressing
from blockmem.backends.triton import launch_items, small, tiles
from blockmem.backends.triton.launch_items import Order
from blockmem.backends.triton.launcher import PLANS, Call, Launcher, Shape, numbers
from blockmem.backends.triton.maps import Blocks

INTERPRETED = not isinstance(small.read_kernel, triton.JITFunction)


class Forward(NamedTuple):
    blocks: int
    copy: bool  # whether the items are
    prepare: Launcher
    read: Launcher


class Backward(NamedTuple):
    blocks: int
    copy: bool
    shares: int
    prepare: Launcher
    grad_queries: Launcher
    grad_items: Launcher
    finish: Launcher


@lru_cache(PLANS)
def plan_forward(call: Call) -> Forward:
    blocks = Blocks.of(call.map(1), call.block_shape)
    copy, _, prepare = _prepare(call, blocks)
    tile, constants = _constants(call, blocks, "read")
    grid = (triton.cdiv(blocks.count, tile.rows),)
    maps = _map(call, blocks, "x", 0) | _map(call, blocks, "out", 1)
    return Forward(
        blocks.count, copy, prepare, Launcher(small.read_kernel, grid, **constants, **maps)
    )


@lru_cache(PLANS)
def plan_backward(call: Call) -> Backward:
    blocks = Blocks.of(call.map(1), call.block_shape)
    copy, order, prepare = _prepare(call, blocks)
    items, size = call.memory_shape
    maps = _map(call, blocks, "x", 0) | _map(call, blocks, "grad", 2)
    tile, constants = _constants(call, blocks, "grad_queries")
    grad_queries = Launcher(
        small.grad_queries_kernel, (triton.cdiv(blocks.count, tile.rows),),
        **constants, **maps, **_map(call, blocks, "out", 1),
    )  # fmt: skip
    tile, constants = _constants(call, blocks, "grad_items")
    columns = triton.cdiv(items, tile.items)
    share, shares = cut(blocks.count, tile.rows, 2 * tiles.processors(call.device) // columns)
    grad_items = Launcher(
        small.grad_items_kernel, (columns, shares), **constants, **maps, share=share
    )
    finish = launch_items.finish(
        items, call.memory_stride[0], order, shares, items * size, shares, items
    )
    return Backward(blocks.count, copy, shares, prepare, grad_queries, grad_items, finish)


def _prepare(call: Call, blocks: Blocks) -> tuple[bool, Order, Launcher]:
    """Items are copied to be in the kernels' order, or rounded; in their dtype."""
    items, size = call.memory_shape
    steps, runs = blocks.steps(call.memory_stride[1])
    order = Order(blocks.sizes[1], steps, runs, *blocks.steps())
    rounded = call.precision == "tf32" and call.dtype == torch.float32
    copy = rounded or not blocks.plain or call.memory_stride != (size, 1)
    stride = call.memory_stride[0]
    return copy, order, launch_items.prepare(items, items, stride, order, call.precision, copy)


def _constants(call: Call, blocks: Blocks, kernel: str) -> tuple[tiles.Tile, dict[str, Any]]:
    grid_sizes, block = blocks.sizes
    tile = tiles.tile_for(call.family, kernel, call.precision, blocks.size)
    elements = max(16, triton.next_power_of_2(blocks.size))
    return tile, {
        "blocks": blocks.count, "count": call.memory_shape[0], "grid_sizes": grid_sizes,
        "BLOCK": block, "RENORMALIZE": call.renormalize,
        "OPERAND": tl.bfloat16 if call.dtype == torch.bfloat16 else tl.float32,
        "PRECISION": "tf32" if call.precision == "bf16" else call.precision,  # of float32 alone
        **tile._replace(elements=elements).arguments(),
    }  # fmt: skip


def _map(call: Call, blocks: Blocks, name: str, which: int) -> dict[str, Any]:
    strides = blocks.strides(call.map(which), call.block_shape)
    return {
        f"{name}_strides": (strides.grid, strides.block),
        f"{name.upper()}_RUNS": strides.runs,
    }


def cut(length: int, step: int, wanted: int) -> tuple[int, int]:
    """Cut a length into about so many shares, multiples of a step; their length and number."""
    share = triton.cdiv(triton.cdiv(length, max(1, wanted)), step) * step
    return share, triton.cdiv(length, share)


def saved_size(queries: int) -> int:
    """Return how many numbers the forward saves: normalisers."""
    return queries


def forward(
    x: Tensor, memory: Tensor, block_shape: Shape, addressing: Addressing, out: Tensor,
    saved: Tensor,
) -> None:  # fmt: skip
    """Fill `out`, and `saved` with the normalisers where it has room for them."""
    plan = plan_forward(Call.of(memory, block_shape, addressing, x, out))
    items, inverses = _items(plan, memory)
    plan.read(
        x=x, out=out, items=items, item_inverses=inverses,
        totals=saved if saved.numel() else x.new_empty(plan.blocks, dtype=torch.float32),
        **numbers(addressing, memory.shape[0]),
    )  # fmt: skip


def backward(
    grad: Tensor, x: Tensor, memory: Tensor, totals: Tensor, block_shape: Shape,
    addressing: Addressing, grad_x: Tensor | None, grad_memory: Tensor | None,
) -> None:  # fmt: skip
    """Fill both gradients, as far as they are given."""
    out = torch.empty_like(x) if grad_x is None else grad_x
    plan = plan_backward(Call.of(memory, block_shape, addressing, x, out, grad))
    items, inverses = _items(plan, memory)
    rows = x.new_empty((3, plan.blocks), dtype=torch.float32)
    common: dict[str, Any] = {
        "x": x, "grad": grad, "items": items, "item_inverses": inverses,
        "totals": totals, "deltas": rows[0], "norms": rows[1], "inverses": rows[2],
        **numbers(addressing, memory.shape[0]),
    }  # fmt: skip
    plan.grad_queries(out=out, **common)
    if grad_memory is None:
        return
    partial = x.new_empty((plan.shares, *memory.shape), dtype=torch.float32)
    along = x.new_empty((plan.shares, memory.shape[0]), dtype=torch.float32)
    plan.grad_items(partial=partial, along_items=along, **common)
    plan.finish(products=partial, along=along, memory=memory, inverses=inverses, out=grad_memory)


def _items(plan: Forward | Backward, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The items as the kernels take them, and 1/|m_i|."""
    inverses = memory.new_empty(memory.shape[0], dtype=torch.float32)
    items = memory.new_empty(memory.shape) if plan.copy else memory
    plan.prepare(memory=memory, items=items, inverses=inverses)
    return items, inverses
