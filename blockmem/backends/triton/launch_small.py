"""Launches of the kernels for small blocks, `small.py`."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockmem.addressing import Addressing
from blockmem.backends.triton import launch_items, small, tiles
from blockmem.backends.triton.launch_items import Order
from blockmem.backends.triton.maps import Blocks
from blockmem.backends.triton.tiles import Tile

PLANS = 256  # kept at a time
INTERPRETED = not isinstance(small.read_kernel, triton.JITFunction)

Shape = tuple[int, ...]


class Plan(NamedTuple):
    """What calls of one shape, layout, dtype and device have in common."""

    blocks: int
    constant: dict[str, Any]  # arguments of every kernel
    order: Order
    copy: torch.dtype | None
    precision: str
    tiles: dict[str, Tile]
    arguments: dict[str, dict[str, Any]]  # of each kernel, by its tile
    share: tuple[int, int]  # blocks of a share of the gradient of the items; how many shares


@lru_cache(PLANS)
def _blocks(shape: Shape, stride: Shape, block_shape: Shape) -> Blocks:
    return Blocks.of(torch.empty_strided(shape, stride, device="meta"), block_shape)


@lru_cache(PLANS)
def _map(
    name: str, shape: Shape, stride: Shape, block_shape: Shape, blocks: Blocks
) -> dict[str, Any]:
    x = torch.empty_strided(shape, stride, device="meta")
    strides = blocks.strides(x, block_shape)
    return {
        f"{name}_strides": (strides.grid, strides.block),
        f"{name.upper()}_RUNS": strides.runs,
    }


@lru_cache(PLANS)
def _plan(
    blocks: Blocks, items: int, memory_stride: int, contiguous: bool, dtype: torch.dtype,
    family: str, precision: str, programs: int,
) -> Plan:  # fmt: skip
    grid, block = blocks.sizes
    steps, runs = blocks.steps(memory_stride)
    plain_steps, plain_runs = blocks.steps()
    rounded = precision == "tf32" and dtype == torch.float32
    as_it_is = contiguous and blocks.plain and not rounded
    operand = tl.bfloat16 if dtype == torch.bfloat16 else tl.float32
    elements = max(16, triton.next_power_of_2(blocks.size))
    constant = {
        "blocks": blocks.count, "count": items, "grid_sizes": grid, "BLOCK": block,
        "OPERAND": operand,
        "PRECISION": "tf32" if precision == "bf16" else precision,  # of float32 products alone
    }  # fmt: skip
    chosen, arguments = {}, {}
    for kernel in ("read", "grad_queries", "grad_items"):
        tile = tiles.tile_for(family, kernel, precision, blocks.size)
        chosen[kernel] = tile
        arguments[kernel] = tile._replace(elements=elements).arguments()
    columns = triton.cdiv(items, chosen["grad_items"].items)
    share = shares(blocks.count, chosen["grad_items"].rows, 2 * programs // columns)
    order = Order(block, steps, runs, plain_steps, plain_runs)
    copy = None if as_it_is else dtype
    return Plan(blocks.count, constant, order, copy, precision, chosen, arguments, share)


def plan_for(x: Tensor, out: Tensor, memory: Tensor, block_shape: Shape) -> tuple[Blocks, Plan]:
    blocks = _blocks(tuple(out.shape), out.stride(), block_shape)
    plan = _plan(
        blocks, memory.shape[0], memory.stride(1), memory.is_contiguous(), x.dtype,
        tiles.family_of(x.device), tiles.precision_of(x.dtype), tiles.processors(x.device),
    )  # fmt: skip
    return blocks, plan


def shares(length: int, step: int, wanted: int) -> tuple[int, int]:
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
    blocks, plan = plan_for(x, out, memory, block_shape)
    totals = saved if saved.numel() else x.new_empty(plan.blocks, dtype=torch.float32)
    _launch(
        "read", small.read_kernel, plan, addressing,
        _items(plan, memory),
        _maps(blocks, block_shape, x=x, out=out),
        totals=totals,
    )  # fmt: skip


def backward(
    grad: Tensor, x: Tensor, memory: Tensor, totals: Tensor, block_shape: Shape,
    addressing: Addressing, grad_x: Tensor | None, grad_memory: Tensor | None,
) -> None:  # fmt: skip
    """Fill both gradients, as far as they are given."""
    out = torch.empty_like(x) if grad_x is None else grad_x
    blocks, plan = plan_for(x, out, memory, block_shape)
    items = _items(plan, memory)
    maps = _maps(blocks, block_shape, x=x, grad=grad)
    deltas, norms, inverses = x.new_empty((3, plan.blocks), dtype=torch.float32)
    rows = {"totals": totals, "deltas": deltas, "norms": norms, "inverses": inverses}
    _launch(
        "grad_queries", small.grad_queries_kernel, plan, addressing, items,
        maps | _maps(blocks, block_shape, out=out), **rows,
    )  # fmt: skip
    if grad_memory is None:
        return
    share, count = plan.share
    partial = x.new_empty((count, *memory.shape), dtype=torch.float32)
    along = x.new_empty((count, memory.shape[0]), dtype=torch.float32)
    _launch(
        "grad_items", small.grad_items_kernel, plan, addressing, items, maps,
        share=share, partial=partial, along_items=along, **rows,
    )  # fmt: skip
    inverse = items["item_inverses"]
    launch_items.finish(partial, along, memory, plan.order, inverse, grad_memory)


def _items(plan: Plan, memory: Tensor) -> dict[str, Tensor]:
    items, inverses = launch_items.prepare(
        memory, plan.order, memory.shape[0], plan.precision, plan.copy
    )
    return {"items": items, "item_inverses": inverses}


def _maps(blocks: Blocks, block_shape: Shape, **maps: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, x in maps.items():
        found[name] = x
        found |= _map(name, tuple(x.shape), x.stride(), block_shape, blocks)
    return found


def _launch(
    name: str, kernel: Any, plan: Plan, addressing: Addressing, *arguments: dict[str, Any],
    **rest: Any,
) -> None:  # fmt: skip
    tile = plan.tiles[name]
    grid: Sequence[int] = (triton.cdiv(plan.blocks, tile.rows),)
    if name == "grad_items":
        grid = triton.cdiv(plan.constant["count"], tile.items), plan.share[1]
    for some in arguments:
        rest |= some
    kernel[tuple(grid)](
        **plan.constant, **plan.arguments[name], **rest,
        temperature=float(addressing.temperature),
        cutoff=addressing.cutoff(plan.constant["count"]),
        RENORMALIZE=addressing.renormalize,
    )  # fmt: skip
