"""The Triton backend: which kernel on what grid, and the small tables between kernels.

Same functions as the PyTorch backend in `blockmem.chunked`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockmem import chunked
from blockmem.addressing import Addressing
from blockmem.kernels import large, small
from blockmem.kernels.maps import Blocks
from blockmem.kernels.tiles import Tile, family_of, largest_small, precision_of, tile_for

TABLE = 2**22  # numbers in a table of (blocks, items): 16 MB in float32
LEAST_ROWS = 128  # of a table; chunks begin at multiples of it, where runs of blocks do too
ALIGN = 16  # rows of tables start at multiples of this, to be read 16 bytes at a time
PROCESSORS = 132  # of a GPU, where there is none to ask
INTERPRETED = not isinstance(small.read_kernel, triton.JITFunction)


class Call(NamedTuple):
    """What the kernels of one call have in common."""

    x: Tensor
    memory: Tensor  # in the kernels' order
    block_shape: Sequence[int]
    blocks: Blocks
    how: Addressing
    family: str
    precision: str

    @classmethod
    def of(
        cls, x: Tensor, out: Tensor, memory: Tensor, block_shape: Sequence[int], how: Addressing
    ) -> "Call":
        """For a map and a dense one like it, whose order of numbers is best to go through."""
        blocks = Blocks.of(out, block_shape)
        memory = blocks.arrange(memory)
        family, precision = family_of(x.device), precision_of(x.dtype)
        return cls(x, memory, block_shape, blocks, how, family, precision)

    @property
    def items(self) -> int:
        return self.memory.shape[0]

    @property
    def width(self) -> int:
        return _width(self.items)

    @property
    def operand(self) -> Any:
        """dtype of weights where they are multiplied. float16 would lose small gradients."""
        return torch.bfloat16 if self.x.dtype == torch.bfloat16 else torch.float32

    @property
    def small(self) -> bool:
        return self.blocks.size <= largest_small(self.precision)

    def tile(self, kernel: str) -> Tile:
        return tile_for(self.family, kernel, self.precision, self.blocks.size)

    def map(self, name: str, x: Tensor) -> dict[str, Any]:
        """A map's arguments of a kernel."""
        strides = self.blocks.strides(x, self.block_shape)
        return {
            name: x,
            f"{name}_strides": (strides.grid, strides.block),
            f"{name.upper()}_RUNS": strides.runs,
        }

    def common(self) -> dict[str, Any]:
        grid, block = self.blocks.sizes
        return {"grid_sizes": grid, "BLOCK": block, "memory": self.memory, "items": self.items}

    def tiled(self, tile: Tile) -> dict[str, Any]:
        # PRECISION is of float32 products alone
        precision = "tf32" if self.precision == "bf16" else self.precision
        return {"PRECISION": precision, **tile.arguments()}

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.x.new_empty(shape, dtype=dtype)


def _width(items: int) -> int:
    """Columns of tables: the items, filled up."""
    return -(-items // ALIGN) * ALIGN


def kept_size(queries: int, items: int, size: int, dtype: torch.dtype, keep: bool) -> int:
    """How many float32 numbers the forward hands to the backward."""
    if not keep:
        return 0
    if size <= largest_small(precision_of(dtype)):
        return queries  # normalisers
    if not chunked.kept_size(queries, items, size, dtype, keep):
        return 0
    width = _width(items)
    return queries * width + queries + width  # logits and norms


def read_blocks(
    x: Tensor,
    memory: Tensor,
    block_shape: Sequence[int],
    how: Addressing,
    keep: bool = False,
) -> tuple[Tensor, Tensor]:
    """The new map, in the memory format of `x`, and what the backward wants if asked to `keep`."""
    out = torch.empty_like(x)
    call = Call.of(x, out, memory, block_shape, how)
    blocks = call.blocks
    kept = call.new(kept_size(blocks.count, call.items, blocks.size, x.dtype, keep))
    if blocks.count:
        with _on(x.device):
            (_read_small if call.small else _read_large)(call, out, kept)
    return out, kept


def read_blocks_backward(
    grad: Tensor,
    x: Tensor,
    memory: Tensor,
    kept: Tensor,
    block_shape: Sequence[int],
    how: Addressing,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `read_blocks` for `x` and `memory`, as far as `needs` asks for each."""
    grad_x = torch.empty_like(x)
    call = Call.of(x, grad_x, memory, block_shape, how)
    if call.blocks.count:
        # By what the forward kept: PyTorch's float32 setting may have changed in between
        small_blocks = kept.numel() == call.blocks.count
        backward = _backward_small if small_blocks else _backward_large
        with _on(x.device):
            grad_memory = backward(call, grad, grad_x, kept, needs)
    else:
        grad_memory = torch.zeros_like(memory) if needs[1] else None
    if grad_memory is not None:
        grad_memory = call.blocks.restore(grad_memory).to(memory.dtype)
    return grad_x if needs[0] else None, grad_memory


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels go to the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


# Small blocks


def _small(call: Call, tile: Tile, inverse: Tensor) -> dict[str, Any]:
    numbers = max(16, triton.next_power_of_2(call.blocks.size))
    operand = tl.bfloat16 if call.operand == torch.bfloat16 else tl.float32
    return {
        **call.common(),
        **call.tiled(tile._replace(numbers=numbers)),
        "blocks": call.blocks.count,
        "scales": inverse / call.how.temperature,
        "cutoff": call.how.cutoff,
        "RENORMALIZE": call.how.renormalize,
        "OPERAND": operand,
    }


def _read_small(call: Call, out: Tensor, kept: Tensor) -> None:
    tile = call.tile("small read")
    inverse = chunked.inverse_norms(call.memory)
    totals = kept if kept.numel() else call.new(call.blocks.count)
    small.read_kernel[(triton.cdiv(call.blocks.count, tile.rows),)](
        **call.map("x", call.x),
        **call.map("out", out),
        **_small(call, tile, inverse),
        totals=totals,
    )


def _backward_small(
    call: Call, grad: Tensor, grad_x: Tensor, totals: Tensor, needs: tuple[bool, bool]
) -> Tensor | None:
    count, size, inverse = call.blocks.count, call.blocks.size, chunked.inverse_norms(call.memory)
    maps = call.map("x", call.x) | call.map("grad", grad)
    rows = {name: call.new(count) for name in ("deltas", "sums", "inverses")}
    rows["totals"] = totals
    tile = call.tile("small grad_queries")
    small.grad_queries_kernel[(triton.cdiv(count, tile.rows),)](
        **maps, **call.map("out", grad_x), **rows, **_small(call, tile, inverse)
    )
    if not needs[1]:
        return None
    tile = call.tile("small grad_items")
    columns = triton.cdiv(call.items, tile.items)
    share, shares = _shares(count, tile.rows, 2 * _processors(call.x.device) // columns)
    partial, along = call.new(shares, call.items, size), call.new(shares, call.items)
    small.grad_items_kernel[(columns, shares)](
        **maps, **rows, **_small(call, tile, inverse), share=share, partial=partial,
        partial_along=along,
    )  # fmt: skip
    across = (along.sum(dim=0) * inverse.square()).unsqueeze(1)
    return partial.sum(dim=0).addcmul_(call.memory.float(), across, value=-1)


def _shares(length: int, step: int, wanted: int) -> tuple[int, int]:
    """Cuts a length into about so many shares, multiples of a step; their length and number."""
    share = triton.cdiv(triton.cdiv(length, max(1, wanted)), step) * step
    return share, triton.cdiv(length, share)


# Large blocks


class Tables(NamedTuple):
    """`(blocks, width)` and `(blocks,)` between the kernels of a chunk of blocks, and norms."""

    first: int
    blocks: int
    logits: Tensor
    inverses: Tensor
    item_inverses: Tensor
    weights: Tensor


def _chunks(call: Call, kept: Tensor) -> Iterator[Tables]:
    """The blocks in chunks, with their part of what was or is to be kept, or tables in its place."""
    count, width = call.blocks.count, call.width
    step = min(count, max(LEAST_ROWS, TABLE // width // LEAST_ROWS * LEAST_ROWS))
    rows = count if kept.numel() else step
    numbers = kept if kept.numel() else call.new(rows * width + rows + width)
    logits, inverses, item_inverses = torch.split(numbers, [rows * width, rows, width])
    weights = call.new(step, width, dtype=call.operand)
    for first in range(0, count, step):
        blocks = min(step, count - first)
        start = first if kept.numel() else 0
        here = slice(start, start + blocks)
        table = logits.view(-1, width)[here]
        yield Tables(first, blocks, table, inverses[here], item_inverses, weights[:blocks])


def _products(call: Call, x: Tensor, tables: Tables, norms: bool) -> dict[str, Any]:
    """Products of blocks and items, and squares of norms, in parts that are still to be summed."""
    tile = call.tile("large products")
    tiles = triton.cdiv(tables.blocks, tile.rows), triton.cdiv(call.items, tile.items)
    wanted = _processors(x.device) // (tiles[0] * tiles[1])
    share, parts = _shares(call.blocks.size, tile.numbers, min(wanted, 16))
    products = call.new(parts, tables.blocks, call.width)
    squares = call.new(parts, tables.blocks), call.new(parts, call.width)
    large.products_kernel[(*tiles, parts)](
        **call.map("x", x), **call.common(), **call.tiled(tile), width=call.width,
        first=tables.first, blocks=tables.blocks, share=share, products=products,
        squares=squares[0], item_squares=squares[1], NORMS=norms,
    )  # fmt: skip
    found = {"products": products, "parts": parts}
    return found | {"squares": squares[0], "item_squares": squares[1]} if norms else found


def _rows(call: Call, tables: Tables) -> dict[str, Any]:
    """Arguments of the kernels that go through tables row by row."""
    columns = triton.next_power_of_2(call.width)
    return {
        "blocks": tables.blocks, "items": call.items, "width": call.width,
        "temperature": call.how.temperature, "cutoff": call.how.cutoff, "logits": tables.logits,
        "inverses": tables.inverses, "item_inverses": tables.item_inverses,
        "weights": tables.weights, "RENORMALIZE": call.how.renormalize, "ITEMS": columns,
        "num_warps": min(8, max(1, columns // 512)),
    }  # fmt: skip


def _find_weights(call: Call, tables: Tables) -> None:
    parts = _products(call, call.x, tables, norms=True)
    large.weights_kernel[(tables.blocks,)](**parts, **_rows(call, tables))


def _read(call: Call, weights: Tensor, out: Tensor, tables: Tables, along: Tensor | None) -> None:
    """Weighted sums of items into a map, and where `along` is given less that times x."""
    tile = call.tile("large read")
    tiles = triton.cdiv(tables.blocks, tile.rows), triton.cdiv(call.blocks.size, tile.numbers)
    large.read_kernel[tiles](
        **call.map("out", out), **call.map("x", call.x), **call.common(), **call.tiled(tile),
        weights=weights, width=call.width, first=tables.first, blocks=tables.blocks,
        row_along=tables.inverses if along is None else along, TANGENT=along is not None,
    )  # fmt: skip


def _read_large(call: Call, out: Tensor, kept: Tensor) -> None:
    for tables in _chunks(call, kept):
        _find_weights(call, tables)
        _read(call, tables.weights, out, tables, along=None)


def _backward_large(
    call: Call, grad: Tensor, grad_x: Tensor, kept: Tensor, needs: tuple[bool, bool]
) -> Tensor | None:
    chunks = list(_chunks(call, kept))
    dtype = torch.float32 if len(chunks) > 1 else call.memory.dtype
    grad_memory = call.new(*call.memory.shape, dtype=dtype) if needs[1] else None
    for tables in chunks:
        if not kept.numel():
            _find_weights(call, tables)
        factors = torch.empty_like(tables.weights)
        along, row_along = torch.empty_like(tables.logits), call.new(tables.blocks)
        large.grad_logits_kernel[(tables.blocks,)](
            **_products(call, grad, tables, norms=False), **_rows(call, tables), factors=factors,
            along=along, row_along=row_along,
        )  # fmt: skip
        if needs[0]:
            _read(call, factors, grad_x, tables, row_along)
        if grad_memory is not None:
            _add_grad_items(call, grad, tables, factors, along, grad_memory)
    return grad_memory


def _add_grad_items(
    call: Call, grad: Tensor, tables: Tables, factors: Tensor, along: Tensor, out: Tensor
) -> None:
    tile = call.tile("large grad_items")
    tiles = triton.cdiv(call.items, tile.items), triton.cdiv(call.blocks.size, tile.numbers)
    item_along = along[:, : call.items].sum(dim=0) * tables.item_inverses[: call.items].square()
    large.grad_items_kernel[tiles](
        **call.map("x", call.x), **call.map("grad", grad), **call.common(), **call.tiled(tile),
        weights=tables.weights, factors=factors, width=call.width, first=tables.first,
        blocks=tables.blocks, item_along=item_along, out=out, ADD=tables.first > 0,
    )  # fmt: skip
