"""Large blocks: products by PyTorch's own library, and between them the kernels of `large.py`."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from blockmem.addressing import Addressing
from blockmem.backends import common
from blockmem.backends.triton import large, launch_items
from blockmem.backends.triton.launch_items import Order
from blockmem.backends.triton.launcher import PLANS, Call, Launcher, Shape, numbers
from blockmem.backends.triton.maps import Positions
from blockmem.division import chunks, grid_shape, grid_views

TABLE = 2**24  # elements in a table of (blocks, items): 64 MB in float32
ROWS = 2**27  # elements of blocks copied at a time: 256 MB in bfloat16
LEAST_BLOCKS = 128  # a product of fewer rows is slow, however long they are
TILE = 8192  # elements that a program copies
MOST_CHANNELS = 64  # of them along the channels
PROGRAMS = 512  # that share the rows of a table, each with sums of its own for the items

# Float32 products of bfloat16: newer versions of torch have them, on NVIDIA's GPUs
WIDENS = hasattr(torch.ops.aten.mm, "dtype") and not torch.version.hip

Box = tuple[tuple[int, int, int], ...]  # axis, start, length


class Chunk(NamedTuple):
    """Consecutive blocks, a box of the map; and the launchers for it."""

    rows: slice
    box: Box  # empty for the whole map
    programs: slice  # numbers of those that make gradients of logits
    gathers: tuple[Launcher, ...]  # of x unless it lies in rows, and of the upstream gradient
    table: Launcher  # of weights, or of gradients of logits
    scatter: Launcher | None  # None where the result lies in rows

    @property
    def blocks(self) -> int:
        return int(self.rows.stop - self.rows.start)


class Plan(NamedTuple):
    """What calls of one shape, layout, dtype and device have in common."""

    blocks: int
    width: int  # columns of tables
    operand: torch.dtype
    saved: bool  # whether logits are
    copy: bool  # whether the items are
    prepare: Launcher
    chunks: tuple[Chunk, ...]
    finish: Launcher


def operand_of(dtype: torch.dtype) -> torch.dtype:
    """dtype of what is multiplied. In float16 small gradients would be lost."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def width_of(items: int, dtype: torch.dtype) -> int:
    """Columns of tables. With 500, the library takes a bfloat16 kernel of half the speed."""
    multiple = 16 if dtype == torch.bfloat16 else 4
    return -(-items // multiple) * multiple


def saved_size(queries: int, items: int, size: int, dtype: torch.dtype) -> int:
    """Return how many numbers the forward saves: norms, and x . m_i where that is no larger than
    the map."""
    logits = queries * width_of(items, dtype) if logits_are_saved(queries, items, size) else 0
    return queries + logits


def logits_are_saved(queries: int, items: int, size: int) -> bool:
    """Whether the forward saves its logits for the backward.

    They are worth it where they take no more than the map itself, which is saved anyway, or than a
    chunk. To compute them again is one product of seven.
    """
    return items <= size or queries * items <= common.CHUNK_WEIGHTS


@lru_cache(PLANS)
def plan_for(call: Call, backward: bool) -> Plan:
    items, size = call.memory_shape
    grid = (call.shape[0], *grid_shape(call.shape, call.block_shape))
    blocks, width = torch.Size(grid).numel(), width_of(items, call.dtype)
    operand = operand_of(call.dtype)
    row_stride, stride = call.memory_stride
    runs, plain = ((16, 16) if size % 16 == 0 and step == 1 else (1, 1) for step in (stride, 1))
    order = Order((1, 1, 1, size), (0, 0, 0, stride), runs, (0, 0, 0, 1), plain)
    copy = call.dtype != operand or width != items or call.memory_stride != (size, 1)
    found = tuple(_chunks(call, grid, width, backward))
    return Plan(
        blocks, width, operand, logits_are_saved(blocks, items, size), copy,
        launch_items.prepare(items, width, row_stride, order, "ieee", copy), found,
        launch_items.finish(items, row_stride, order, 1, 0, found[-1].programs.stop, width),
    )  # fmt: skip


def _chunks(call: Call, grid: Shape, width: int, backward: bool) -> Iterator[Chunk]:
    count, size = torch.Size(grid).numel(), call.memory_shape[1]
    most = max(LEAST_BLOCKS, min(TABLE // width, ROWS // size))
    columns = triton.next_power_of_2(width)
    common = {
        "count": call.memory_shape[0], "width": width, "RENORMALIZE": call.renormalize,
        "ITEMS": columns, "num_warps": min(32, max(4, columns // 512)),
    }  # fmt: skip
    first = program = 0
    whole: list[tuple[int | slice, ...]] = [()]
    for index in whole if count <= most else chunks(grid, most):
        box, blocks = _box(index, grid, call.block_shape)
        x, out, *grad = (_narrow(call.map(which), box) for which in range(len(call.strides)))
        each = max(2, triton.cdiv(blocks, PROGRAMS))
        programs = triton.cdiv(blocks, each)
        if backward:
            gathers = tuple(_gather(one, call.block_shape) for one in (x, *grad))
            scatter: Launcher | None = _scatter(out, call.block_shape, x)
            table = Launcher(
                large.grad_logits_kernel, (programs,), blocks=blocks, each=each, **common
            )
        else:
            gathers = () if _lies_in_rows(x, call) else (_gather(x, call.block_shape),)
            scatter = None if _lies_in_rows(out, call) else _scatter(out, call.block_shape)
            elements = min(2048, triton.next_power_of_2(size))
            table = Launcher(large.weights_kernel, (blocks,), D=size, ELEMENTS=elements, **common)
        where = slice(first, first + blocks), box, slice(program, program + programs)
        yield Chunk(*where, gathers, table, scatter)
        first, program = first + blocks, program + programs


def _narrow(x: Tensor, box: Box) -> Tensor:
    for axis, start, length in box:
        x = x.narrow(axis, start, length)
    return x


def _box(index: Sequence[int | slice], grid: Shape, block_shape: Shape) -> tuple[Box, int]:
    """Where a chunk of the grid is in the map, and how many blocks it is."""
    sides = (1, *block_shape[1:], block_shape[0])
    axes = (0, *range(2, len(grid)), 1)
    box, blocks = [], 1
    for axis, side, size, at in zip(axes, sides, grid, (*index, *[slice(None)] * 5), strict=False):
        start, stop, _ = at.indices(size) if isinstance(at, slice) else (at, at + 1, 1)
        blocks *= stop - start
        if (start, stop) != (0, size):
            box.append((axis, start * side, (stop - start) * side))
    return tuple(box), blocks


def _lies_in_rows(x: Tensor, call: Call) -> bool:
    """Whether the blocks of a map are rows as they lie: single pixels of channels_last, say."""
    (view,) = grid_views(call.block_shape, x)
    return operand_of(call.dtype) == call.dtype and view.is_contiguous()


def _gather(x: Tensor, block_shape: Shape) -> Launcher:
    positions = Positions.of(x, block_shape)
    return _copying(large.gather_kernel, positions, x=x)


def _scatter(out: Tensor, block_shape: Shape, x: Tensor | None = None) -> Launcher:
    """Rows into a map; where it is given, less a multiple of each block of `x`."""
    positions = Positions.of(out, block_shape)
    launcher = _copying(large.scatter_kernel, positions, out=out, x=out if x is None else x)
    launcher.constants |= {
        "TANGENT": x is not None, "GROUPED": positions.block[-1] != positions.channels
    }  # fmt: skip
    return launcher


def _copying(kernel: object, positions: Positions, **maps: Tensor) -> Launcher:
    channels = min(MOST_CHANNELS, triton.next_power_of_2(positions.channels))
    side = TILE // channels
    found: dict[str, object] = {}
    for name, x in maps.items():
        strides, runs = positions.strides(x)
        found |= {f"{name}_strides": strides, f"{name.upper()}_RUNS": runs}
    return Launcher(
        kernel, (triton.cdiv(positions.count, side), triton.cdiv(positions.channels, channels)),
        count=positions.count, sizes=positions.sizes, grid_steps=positions.grid_steps,
        inner_steps=positions.inner_steps, channels=positions.channels, BLOCK=positions.block,
        D=positions.size, ROW_RUNS=positions.row_runs, POSITIONS=side, CHANNELS=channels,
        num_warps=8, **found,
    )  # fmt: skip


def forward(
    x: Tensor, memory: Tensor, block_shape: Shape, addressing: Addressing, out: Tensor,
    saved: Tensor,
) -> None:  # fmt: skip
    """Fill `out`, and `saved` with what the backward is to be given where it has room."""
    plan = plan_for(Call.of(memory, block_shape, addressing, x, out), False)
    items, item_inverses = _items(plan, memory)
    if not saved.numel():
        saved = x.new_empty(plan.blocks, dtype=torch.float32)
    saved_products, inverses = _split(plan, saved)
    varying = numbers(addressing, memory.shape[0])
    size = memory.shape[1]
    for chunk in plan.chunks:
        rows = _rows(chunk, x, items)
        products = saved_products[chunk.rows] if saved_products is not None else None
        products = multiply(rows, items.T, torch.float32, products)
        weights = items.new_empty(products.shape)
        chunk.table(
            products=products, rows=rows, inverses=inverses[chunk.rows],
            item_inverses=item_inverses, weights=weights, **varying,
        )  # fmt: skip
        there = _narrow(out, chunk.box)
        if chunk.scatter is None:
            torch.mm(weights, items, out=there.as_strided((chunk.blocks, size), (size, 1)))
        else:
            copied = bool(chunk.gathers)  # and no longer needed
            answers = torch.mm(weights, items, out=rows if copied else None)
            chunk.scatter(rows=answers, out=there, x=there, along=inverses)


def backward(
    grad: Tensor, x: Tensor, memory: Tensor, saved: Tensor, block_shape: Shape,
    addressing: Addressing, grad_x: Tensor | None, grad_memory: Tensor | None,
) -> None:  # fmt: skip
    """Fill both gradients, as far as they are given."""
    like = x if grad_x is None else grad_x
    plan = plan_for(Call.of(memory, block_shape, addressing, x, like, grad), True)
    items, item_inverses = _items(plan, memory)
    saved_products, inverses = _split(plan, saved)
    varying = numbers(addressing, memory.shape[0])
    size = memory.shape[1]
    along = x.new_empty((plan.chunks[-1].programs.stop, plan.width), dtype=torch.float32)
    total: Tensor | None = None
    for chunk in plan.chunks:
        pair = items.new_empty((2, chunk.blocks, size))  # of upstream gradients and of blocks
        here = _narrow(x, chunk.box)
        there = _narrow(grad, chunk.box)
        for gather, one, rows in zip(chunk.gathers, (here, there), pair, strict=True):
            gather(x=one, rows=rows)
        if saved_products is not None:
            products = saved_products[chunk.rows]
            grad_products = multiply(pair[1], items.T, torch.float32)
        else:
            both = multiply(pair.view(-1, size), items.T, torch.float32)
            products, grad_products = both.view(2, chunk.blocks, plan.width)
        tables = items.new_empty((2, chunk.blocks, plan.width))  # ds/(|q| |m_i| t), and weights
        row_along = x.new_empty(chunk.blocks, dtype=torch.float32)
        chunk.table(
            products=products, grad_products=grad_products, inverses=inverses[chunk.rows],
            item_inverses=item_inverses, factors=tables[0], weights=tables[1],
            row_along=row_along, item_along=along[chunk.programs], **varying,
        )  # fmt: skip
        if grad_memory is not None:
            dtype = plan.operand if len(plan.chunks) == 1 else torch.float32
            part = multiply(tables.view(-1, plan.width).T, pair.view(-1, size), dtype)
            total = part if total is None else total.add_(part)
        if grad_x is not None and chunk.scatter is not None:
            queries = torch.mm(tables[0], items, out=pair[0])  # no longer needed
            chunk.scatter(rows=queries, out=_narrow(grad_x, chunk.box), x=here, along=row_along)
    if grad_memory is not None and total is not None:
        plan.finish(
            products=total, along=along, memory=memory, inverses=item_inverses, out=grad_memory
        )


def multiply(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """`a @ b` in a dtype that may be wider than theirs; sums are float32 in any case."""
    if a.dtype != dtype and a.device.type == "cuda" and WIDENS:
        if out is None:
            return torch.mm(a, b, out_dtype=dtype)
        return torch.mm(a, b, out_dtype=dtype, out=out)
    a, b = a.to(dtype), b.to(dtype)
    return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)


def _rows(chunk: Chunk, x: Tensor, items: Tensor) -> Tensor:
    """The blocks of a map: as they lie, or a copy."""
    here, size = _narrow(x, chunk.box), items.shape[1]
    if not chunk.gathers:
        return here.as_strided((chunk.blocks, size), (size, 1))
    rows = items.new_empty((chunk.blocks, size))
    for gather in chunk.gathers:
        gather(x=here, rows=rows)
    return rows


def _items(plan: Plan, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The items filled up with zeros, and 1/|m_i| `(width,)`."""
    inverses = memory.new_empty(plan.width, dtype=torch.float32)
    shape = (plan.width, memory.shape[1])
    items = memory.new_empty(shape, dtype=plan.operand) if plan.copy else memory
    plan.prepare(memory=memory, items=items, inverses=inverses)
    return items, inverses


def _split(plan: Plan, saved: Tensor) -> tuple[Tensor | None, Tensor]:
    """Of what is saved x . m_i `(blocks, width)`, where there is any, and 1/|q| `(blocks,)`."""
    if saved.numel() == plan.blocks:
        return None, saved
    # Products first, to be as aligned as what is saved
    return saved[: -plan.blocks].view(plan.blocks, plan.width), saved[-plan.blocks :]
