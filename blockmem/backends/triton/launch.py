"""The Triton backend: which kernel runs on what grid, and the small tables between kernels.

Its functions are those of the PyTorch backend in `blockmem.backends.torch.chunks`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockmem.addressing import Addressing
from blockmem.backends.common import inverse_norms, logits_are_saved
from blockmem.backends.triton import large, small
from blockmem.backends.triton.maps import Blocks
from blockmem.backends.triton.tiles import Tile, family_of, largest_small, precision_of, tile_for

TABLE = 2**22  # elements in a table of (blocks, items): 16 MB in float32
LEAST_ROWS = 128  # of a table; chunks begin at multiples of it, where runs of blocks do too
ALIGN = 16  # rows of tables start at multiples of this, to be read 16 bytes at a time
PROCESSORS = 132  # of a GPU, where there is none to ask
INTERPRETED = not isinstance(small.read_kernel, triton.JITFunction)


class Launch(NamedTuple):
    """What the kernels of one forward or backward have in common."""

    x: Tensor
    memory: Tensor  # in the kernels' order
    block_shape: Sequence[int]
    blocks: Blocks
    addressing: Addressing
    family: str
    precision: str

    @classmethod
    def of(
        cls,
        x: Tensor,
        out: Tensor,
        memory: Tensor,
        block_shape: Sequence[int],
        addressing: Addressing,
    ) -> "Launch":
        """For a map and a dense one like it, whose order of elements is best to go through."""
        blocks = Blocks.of(out, block_shape)
        memory = blocks.arrange(memory)
        family, precision = family_of(x.device), precision_of(x.dtype)
        return cls(x, memory, block_shape, blocks, addressing, family, precision)

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


def saved_size(queries: int, items: int, size: int, dtype: torch.dtype) -> int:
    """Return how many float32 numbers the forward can save for the backward."""
    if size <= largest_small(precision_of(dtype)):
        return queries  # normalisers
    if not logits_are_saved(queries, items, size):
        return 0
    width = _width(items)
    return queries * width + queries + width  # logits and norms


def forward(
    x: Tensor,
    memory: Tensor,
    block_shape: Sequence[int],
    addressing: Addressing,
    save: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute the new map, in the memory format of `x`, and what the backward is to be given."""
    out = torch.empty_like(x)
    launch = Launch.of(x, out, memory, block_shape, addressing)
    blocks = launch.blocks
    count = saved_size(blocks.count, launch.items, blocks.size, x.dtype) if save else 0
    saved = launch.new(count)
    if blocks.count:
        with _on(x.device):
            (_read_small if launch.small else _read_large)(launch, out, saved)
    return out, saved


def backward(
    grad: Tensor,
    x: Tensor,
    memory: Tensor,
    saved: Tensor,
    block_shape: Sequence[int],
    addressing: Addressing,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of `forward` for `x` and `memory`, as far as `needs` asks for each."""
    grad_x = torch.empty_like(x)
    launch = Launch.of(x, grad_x, memory, block_shape, addressing)
    if launch.blocks.count:
        # By what the forward saved: PyTorch's float32 setting may have changed in between
        small_blocks = saved.numel() == launch.blocks.count
        backward = _backward_small if small_blocks else _backward_large
        with _on(x.device):
            grad_memory = backward(launch, grad, grad_x, saved, needs)
    else:
        grad_memory = torch.zeros_like(memory) if needs[1] else None
    if grad_memory is not None:
        grad_memory = launch.blocks.restore(grad_memory).to(memory.dtype)
    return grad_x if needs[0] else None, grad_memory


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels go to the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


# Small blocks


def _small(launch: Launch, tile: Tile, inverse: Tensor) -> dict[str, Any]:
    elements = max(16, triton.next_power_of_2(launch.blocks.size))
    operand = tl.bfloat16 if launch.operand == torch.bfloat16 else tl.float32
    return {
        **launch.common(),
        **launch.tiled(tile._replace(elements=elements)),
        "blocks": launch.blocks.count,
        "scales": inverse / launch.addressing.temperature,
        "cutoff": launch.addressing.cutoff(launch.items),
        "RENORMALIZE": launch.addressing.renormalize,
        "OPERAND": operand,
    }


def _read_small(launch: Launch, out: Tensor, saved: Tensor) -> None:
    tile = launch.tile("small read")
    inverse = inverse_norms(launch.memory)
    totals = saved if saved.numel() else launch.new(launch.blocks.count)
    small.read_kernel[(triton.cdiv(launch.blocks.count, tile.rows),)](
        **launch.map("x", launch.x),
        **launch.map("out", out),
        **_small(launch, tile, inverse),
        totals=totals,
    )


def _backward_small(
    launch: Launch, grad: Tensor, grad_x: Tensor, totals: Tensor, needs: tuple[bool, bool]
) -> Tensor | None:
    count, size, inverse = launch.blocks.count, launch.blocks.size, inverse_norms(launch.memory)
    maps = launch.map("x", launch.x) | launch.map("grad", grad)
    rows = {name: launch.new(count) for name in ("deltas", "sums", "inverses")}
    rows["totals"] = totals
    tile = launch.tile("small grad_queries")
    small.grad_queries_kernel[(triton.cdiv(count, tile.rows),)](
        **maps, **launch.map("out", grad_x), **rows, **_small(launch, tile, inverse)
    )
    if not needs[1]:
        return None
    tile = launch.tile("small grad_items")
    columns = triton.cdiv(launch.items, tile.items)
    share, shares = _shares(count, tile.rows, 2 * _processors(launch.x.device) // columns)
    partial, along = launch.new(shares, launch.items, size), launch.new(shares, launch.items)
    small.grad_items_kernel[(columns, shares)](
        **maps, **rows, **_small(launch, tile, inverse), share=share, partial=partial,
        partial_along=along,
    )  # fmt: skip
    across = (along.sum(dim=0) * inverse.square()).unsqueeze(1)
    return partial.sum(dim=0).addcmul_(launch.memory.float(), across, value=-1)


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


def _chunks(launch: Launch, saved: Tensor) -> Iterator[Tables]:
    """The blocks in chunks, with their part of what was or is to be saved, or tables in its place."""
    count, width = launch.blocks.count, launch.width
    step = min(count, max(LEAST_ROWS, TABLE // width // LEAST_ROWS * LEAST_ROWS))
    rows = count if saved.numel() else step
    elements = saved if saved.numel() else launch.new(rows * width + rows + width)
    logits, inverses, item_inverses = torch.split(elements, [rows * width, rows, width])
    weights = launch.new(step, width, dtype=launch.operand)
    for first in range(0, count, step):
        blocks = min(step, count - first)
        start = first if saved.numel() else 0
        here = slice(start, start + blocks)
        table = logits.view(-1, width)[here]
        yield Tables(first, blocks, table, inverses[here], item_inverses, weights[:blocks])


def _products(launch: Launch, x: Tensor, tables: Tables, norms: bool) -> dict[str, Any]:
    """Products of blocks and items, and squares of norms, in parts that are still to be summed."""
    tile = launch.tile("large products")
    tiles = triton.cdiv(tables.blocks, tile.rows), triton.cdiv(launch.items, tile.items)
    wanted = _processors(x.device) // (tiles[0] * tiles[1])
    share, parts = _shares(launch.blocks.size, tile.elements, min(wanted, 16))
    products = launch.new(parts, tables.blocks, launch.width)
    squares = launch.new(parts, tables.blocks), launch.new(parts, launch.width)
    large.products_kernel[(*tiles, parts)](
        **launch.map("x", x), **launch.common(), **launch.tiled(tile), width=launch.width,
        first=tables.first, blocks=tables.blocks, share=share, products=products,
        squares=squares[0], item_squares=squares[1], NORMS=norms,
    )  # fmt: skip
    found = {"products": products, "parts": parts}
    return found | {"squares": squares[0], "item_squares": squares[1]} if norms else found


def _rows(launch: Launch, tables: Tables) -> dict[str, Any]:
    """Arguments of the kernels that go through tables row by row."""
    columns = triton.next_power_of_2(launch.width)
    return {
        "blocks": tables.blocks, "items": launch.items, "width": launch.width,
        "temperature": launch.addressing.temperature, "cutoff": launch.addressing.cutoff(launch.items), "logits": tables.logits,
        "inverses": tables.inverses, "item_inverses": tables.item_inverses,
        "weights": tables.weights, "RENORMALIZE": launch.addressing.renormalize, "ITEMS": columns,
        "num_warps": min(8, max(1, columns // 512)),
    }  # fmt: skip


def _find_weights(launch: Launch, tables: Tables) -> None:
    parts = _products(launch, launch.x, tables, norms=True)
    large.weights_kernel[(tables.blocks,)](**parts, **_rows(launch, tables))


def _read(
    launch: Launch, weights: Tensor, out: Tensor, tables: Tables, along: Tensor | None
) -> None:
    """Weighted sums of items into a map, and where `along` is given less that times x."""
    tile = launch.tile("large read")
    tiles = triton.cdiv(tables.blocks, tile.rows), triton.cdiv(launch.blocks.size, tile.elements)
    large.read_kernel[tiles](
        **launch.map("out", out), **launch.map("x", launch.x), **launch.common(), **launch.tiled(tile),
        weights=weights, width=launch.width, first=tables.first, blocks=tables.blocks,
        row_along=tables.inverses if along is None else along, TANGENT=along is not None,
    )  # fmt: skip


def _read_large(launch: Launch, out: Tensor, saved: Tensor) -> None:
    for tables in _chunks(launch, saved):
        _find_weights(launch, tables)
        _read(launch, tables.weights, out, tables, along=None)


def _backward_large(
    launch: Launch, grad: Tensor, grad_x: Tensor, saved: Tensor, needs: tuple[bool, bool]
) -> Tensor | None:
    chunks = list(_chunks(launch, saved))
    dtype = torch.float32 if len(chunks) > 1 else launch.memory.dtype
    grad_memory = launch.new(*launch.memory.shape, dtype=dtype) if needs[1] else None
    for tables in chunks:
        if not saved.numel():
            _find_weights(launch, tables)
        factors = torch.empty_like(tables.weights)
        along, row_along = torch.empty_like(tables.logits), launch.new(tables.blocks)
        large.grad_logits_kernel[(tables.blocks,)](
            **_products(launch, grad, tables, norms=False), **_rows(launch, tables), factors=factors,
            along=along, row_along=row_along,
        )  # fmt: skip
        if needs[0]:
            _read(launch, factors, grad_x, tables, row_along)
        if grad_memory is not None:
            _add_grad_items(launch, grad, tables, factors, along, grad_memory)
    return grad_memory


def _add_grad_items(
    launch: Launch, grad: Tensor, tables: Tables, factors: Tensor, along: Tensor, out: Tensor
) -> None:
    tile = launch.tile("large grad_items")
    tiles = triton.cdiv(launch.items, tile.items), triton.cdiv(launch.blocks.size, tile.elements)
    item_along = along[:, : launch.items].sum(dim=0) * tables.item_inverses[: launch.items].square()
    large.grad_items_kernel[tiles](
        **launch.map("x", launch.x), **launch.map("grad", grad), **launch.common(), **launch.tiled(tile),
        weights=tables.weights, factors=factors, width=launch.width, first=tables.first,
        blocks=tables.blocks, item_along=item_along, out=out, ADD=tables.first > 0,
    )  # fmt: skip
