"""Large blocks: products by PyTorch's own library, and between them the kernels of `large.py`."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from blockmem.addressing import Addressing
from blockmem.backends.common import logits_are_saved
from blockmem.backends.triton import large, launch_items
from blockmem.backends.triton.launch_items import Order
from blockmem.backends.triton.maps import Positions
from blockmem.division import chunks, grid_shape, grid_views

TABLE = 2**24  # elements in a table of (blocks, items): 64 MB in float32
ROWS = 2**27  # elements of blocks copied at a time: 256 MB in bfloat16
LEAST_BLOCKS = 128  # a product of fewer rows is slow, however long they are
TILE = 8192  # elements that a program copies
MOST_CHANNELS = 64  # of them along the channels
PROGRAMS = 512  # that share the rows of a table, each with sums of its own for the items
PLANS = 256  # kept at a time

Shape = tuple[int, ...]


class Chunk(NamedTuple):
    """Consecutive blocks, a box of the map."""

    rows: slice
    box: tuple[tuple[int, int, int], ...]  # axis, start, length; empty for the whole map
    each: int  # rows for each program that makes gradients of logits
    programs: slice  # their numbers


class Plan(NamedTuple):
    """What calls of one shape, dtype and number of items have in common."""

    chunks: tuple[Chunk, ...]
    blocks: int
    width: int  # columns of tables
    order: Order
    saved: bool  # whether logits are
    columns: dict[str, int]  # of the kernels that go through rows of tables


class Saved(NamedTuple):
    """What the forward saves: x . m_i where it is no larger than the map, and norms."""

    products: Tensor  # (blocks, width), or empty
    inverses: Tensor  # 1/|q| (blocks,)


def operand_of(dtype: torch.dtype) -> torch.dtype:
    """dtype of what is multiplied. In float16 small gradients would be lost."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def _width(items: int, dtype: torch.dtype) -> int:
    """Columns of tables. With 500, the library takes a bfloat16 kernel of half the speed."""
    multiple = 16 if dtype == torch.bfloat16 else 4
    return -(-items // multiple) * multiple


@lru_cache(PLANS)
def _plan(map_shape: Shape, block_shape: Shape, items: int, dtype: torch.dtype) -> Plan:
    grid = (map_shape[0], *grid_shape(map_shape, block_shape))
    size, count = torch.Size(block_shape).numel(), torch.Size(grid).numel()
    width = _width(items, dtype)
    rows = max(LEAST_BLOCKS, min(TABLE // width, ROWS // size))
    found: list[Chunk] = []
    first = program = 0
    for index in [()] if count <= rows else chunks(grid, rows):
        box, blocks = _box(index, grid, block_shape)
        each = max(1, triton.cdiv(blocks, PROGRAMS))
        programs = triton.cdiv(blocks, each)
        where = slice(first, first + blocks), box, each, slice(program, program + programs)
        found.append(Chunk(*where))
        first, program = first + blocks, program + programs
    columns = triton.next_power_of_2(width)
    warps = min(32, max(4, columns // 512))
    order = Order((1, 1, 1, size), (0, 0, 0, 1), (1, 1), (0, 0, 0, 1), (16, 16))
    saved = logits_are_saved(count, items, size)
    return Plan(tuple(found), count, width, order, saved, {"ITEMS": columns, "num_warps": warps})


def _box(
    index: Sequence[int | slice], grid: Shape, block_shape: Shape
) -> tuple[tuple[tuple[int, int, int], ...], int]:
    """Where a chunk of the grid is in the map, `(axis, start, length)`, and how many blocks."""
    sides = (1, *block_shape[1:], block_shape[0])
    axes = (0, *range(2, len(grid)), 1)
    box, blocks = [], 1
    for axis, side, size, at in zip(axes, sides, grid, (*index, *[slice(None)] * 5), strict=False):
        start, stop, _ = at.indices(size) if isinstance(at, slice) else (at, at + 1, 1)
        blocks *= stop - start
        if (start, stop) != (0, size):
            box.append((axis, start * side, (stop - start) * side))
    return tuple(box), blocks


def saved_size(queries: int, items: int, size: int, dtype: torch.dtype) -> int:
    """Return how many numbers the forward saves."""
    width = _width(items, dtype)
    return queries + (queries * width if logits_are_saved(queries, items, size) else 0)


def _saved(plan: Plan, x: Tensor, saved: Tensor | None) -> Saved:
    """Views of what is saved; where nothing is to be, memory in its place."""
    if saved is None or not saved.numel():
        saved = x.new_empty(plan.blocks, dtype=torch.float32)
    products, inverses = torch.split(saved, [saved.numel() - plan.blocks, plan.blocks])
    return Saved(products.view(-1, plan.width), inverses)


def forward(
    x: Tensor, memory: Tensor, block_shape: Shape, addressing: Addressing, out: Tensor,
    saved: Tensor,
) -> None:  # fmt: skip
    """Fill `out`, and `saved` with what the backward is to be given where it has room."""
    plan = _plan(tuple(x.shape), block_shape, memory.shape[0], x.dtype)
    items, inverses = _items(plan, memory)
    kept = _saved(plan, x, saved)
    for chunk in plan.chunks:
        here, there = _cut(x, chunk), _cut(out, chunk)
        rows = _as_rows(here, block_shape, items.dtype)
        if rows is None:
            rows = _gather(here, block_shape, x.new_empty(_shape(chunk, items), dtype=items.dtype))
        products = kept.products[chunk.rows] if kept.products.numel() else None
        products = multiply(rows, items.T, torch.float32, products)
        weights = items.new_empty(products.shape)
        large.weights_kernel[(len(rows),)](
            products, rows, kept.inverses[chunk.rows], inverses, weights,
            D=rows.shape[1], ELEMENTS=min(2048, triton.next_power_of_2(rows.shape[1])),
            **_rows(plan, addressing, memory),
        )  # fmt: skip
        target = _as_rows(there, block_shape, items.dtype)
        if target is not None:
            torch.mm(weights, items, out=target)
        else:
            copied = not _same_memory(rows, x)
            answers = torch.mm(weights, items, out=rows) if copied else torch.mm(weights, items)
            _scatter(answers, there, block_shape)


def backward(
    grad: Tensor, x: Tensor, memory: Tensor, saved: Tensor, block_shape: Shape,
    addressing: Addressing, grad_x: Tensor | None, grad_memory: Tensor | None,
) -> None:  # fmt: skip
    """Fill both gradients, as far as they are given."""
    plan = _plan(tuple(x.shape), block_shape, memory.shape[0], x.dtype)
    items, item_inverses = _items(plan, memory)
    kept = _saved(plan, x, saved)
    programs = plan.chunks[-1].programs.stop
    along = x.new_empty((programs, plan.width), dtype=torch.float32)
    total: Tensor | None = None
    for chunk in plan.chunks:
        count, size = _shape(chunk, items)
        pair = items.new_empty((2, count, size))  # of gradients and of blocks
        here = _cut(x, chunk)
        _gather(_cut(grad, chunk), block_shape, pair[0])
        _gather(here, block_shape, pair[1])
        if plan.saved:
            products = kept.products[chunk.rows]
            grad_products = multiply(pair[0], items.T, torch.float32)
        else:
            both = multiply(pair.view(-1, size), items.T, torch.float32)
            grad_products, products = both.view(2, count, -1)
        factors = items.new_empty((2, count, plan.width))  # weights and ds/(|q| |m_i| t)
        row_along = x.new_empty(count, dtype=torch.float32)
        large.grad_logits_kernel[(chunk.programs.stop - chunk.programs.start,)](
            products, grad_products, kept.inverses[chunk.rows], item_inverses,
            factors[0], factors[1], row_along, along[chunk.programs], count, chunk.each,
            **_rows(plan, addressing, memory),
        )  # fmt: skip
        if grad_x is not None:
            grad_queries = torch.mm(factors[1], items)
            _scatter(grad_queries, _cut(grad_x, chunk), block_shape, here, row_along)
        if grad_memory is not None:
            dtype = items.dtype if len(plan.chunks) == 1 else torch.float32
            part = multiply(factors.view(-1, plan.width).T, pair.view(-1, size), dtype)
            total = part if total is None else total.add_(part)
    if grad_memory is not None and total is not None:
        launch_items.finish(
            total.unsqueeze(0), along, memory, _order(plan, memory), item_inverses, grad_memory
        )


def multiply(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """`a @ b` in a dtype that may be wider than theirs; sums are float32 in any case."""
    if a.dtype == dtype:
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    if a.device.type == "cuda" and _WIDENS:
        if out is None:
            return torch.mm(a, b, out_dtype=dtype)
        return torch.mm(a, b, out_dtype=dtype, out=out)
    return (
        torch.mm(a.to(dtype), b.to(dtype))
        if out is None
        else torch.mm(a.to(dtype), b.to(dtype), out=out)
    )


# Since torch 2.8, on NVIDIA's GPUs
_WIDENS = hasattr(torch.ops.aten.mm, "dtype") and not torch.version.hip


def _items(plan: Plan, memory: Tensor) -> tuple[Tensor, Tensor]:
    dtype = operand_of(memory.dtype)
    as_it_is = memory.dtype == dtype and memory.is_contiguous() and memory.shape[0] == plan.width
    copy = None if as_it_is else dtype
    return launch_items.prepare(memory, _order(plan, memory), plan.width, "ieee", copy)


def _order(plan: Plan, memory: Tensor) -> Order:
    stride = memory.stride(1)
    runs = (16, 16) if stride == 1 and memory.shape[1] % 16 == 0 else (1, 1)
    return plan.order._replace(steps=(0, 0, 0, stride), runs=runs, plain_runs=runs)


def _rows(plan: Plan, addressing: Addressing, memory: Tensor) -> dict[str, Any]:
    """Arguments of the kernels that go through tables row by row."""
    return {
        "count": memory.shape[0], "width": plan.width,
        "temperature": float(addressing.temperature),
        "cutoff": addressing.cutoff(memory.shape[0]), "RENORMALIZE": addressing.renormalize,
        **plan.columns,
    }  # fmt: skip


# Blocks and rows


def _cut(x: Tensor, chunk: Chunk) -> Tensor:
    for axis, start, length in chunk.box:
        x = x.narrow(axis, start, length)
    return x


def _shape(chunk: Chunk, items: Tensor) -> tuple[int, int]:
    return chunk.rows.stop - chunk.rows.start, items.shape[1]


def _as_rows(x: Tensor, block_shape: Shape, dtype: torch.dtype) -> Tensor | None:
    """The blocks of a map as rows where they already lie so: single pixels of channels_last."""
    if x.dtype != dtype:
        return None
    (view,) = grid_views(block_shape, x)
    return view.view(-1, torch.Size(block_shape).numel()) if view.is_contiguous() else None


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


@lru_cache(PLANS)
def _copying(
    shape: Shape, stride: Shape, block_shape: Shape
) -> tuple[Positions, tuple[int, int], dict[str, Any]]:
    """How kernels go through a map, their grid, and their arguments but for the maps."""
    positions = Positions.of(torch.empty_strided(shape, stride, device="meta"), block_shape)
    channels = min(MOST_CHANNELS, triton.next_power_of_2(positions.channels))
    side = TILE // channels
    arguments = {
        "count": positions.count, "sizes": positions.sizes, "grid_steps": positions.grid_steps,
        "inner_steps": positions.inner_steps, "channels": positions.channels,
        "BLOCK": positions.block, "D": positions.size, "ROW_RUNS": positions.row_runs,
        "POSITIONS": side, "CHANNELS": channels, "num_warps": 8,
    }  # fmt: skip
    grid = triton.cdiv(positions.count, side), triton.cdiv(positions.channels, channels)
    return positions, grid, arguments


@lru_cache(PLANS)
def _strides(name: str, shape: Shape, stride: Shape, positions: Positions) -> dict[str, Any]:
    strides, runs = positions.strides(torch.empty_strided(shape, stride, device="meta"))
    return {f"{name}_strides": strides, f"{name.upper()}_RUNS": runs}


def _map(name: str, x: Tensor, positions: Positions) -> dict[str, Any]:
    return {name: x, **_strides(name, tuple(x.shape), x.stride(), positions)}


def _gather(x: Tensor, block_shape: Shape, rows: Tensor) -> Tensor:
    positions, grid, arguments = _copying(tuple(x.shape), x.stride(), block_shape)
    large.gather_kernel[grid](rows=rows, **_map("x", x, positions), **arguments)
    return rows


def _scatter(
    rows: Tensor, out: Tensor, block_shape: Shape, x: Tensor | None = None,
    along: Tensor | None = None,
) -> None:  # fmt: skip
    """Rows into a map; where they are given, less `along` times the blocks of `x`."""
    positions, grid, arguments = _copying(tuple(out.shape), out.stride(), block_shape)
    large.scatter_kernel[grid](
        rows=rows, along=rows if along is None else along, TANGENT=along is not None,
        GROUPED=positions.block[-1] != positions.channels,
        **_map("out", out, positions), **_map("x", out if x is None else x, positions),
        **arguments,
    )  # fmt: skip
