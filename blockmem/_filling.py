"""Items that become blocks of a map: which blocks are drawn, and which rows of a memory they take.

Two equal items would stay equal for good, since their weights and their gradients are equal. So no
block is taken that an item has already.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blockmem._operator import is_dtensor
from blockmem.division import divide

# Of blocks that are compared with those taken so far, in one go
PART = 1024


@torch.no_grad()
def fill_items(
    memory: Tensor,
    x: Tensor,
    block_shape: Sequence[int],
    rows: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Write blocks of `x` over the items `rows` of `memory`; return the rows that were written.

    They are all of `rows` where there are enough blocks, else as many of them as there are blocks.
    See `BlockwiseMemory.fill_` for what is drawn and for the errors.
    """
    check_memory(memory)
    _check_map(x)
    blocks = divide(x.detach(), block_shape).flatten(0, 1).to(memory)
    _check_finite(blocks, x, memory)
    # Items that a training spoiled equal no block, and NaN cannot be sorted
    held = memory.detach().nan_to_num()
    stays = torch.ones(len(memory), dtype=torch.bool, device=memory.device)
    stays[rows] = False
    drawn = _draw(blocks, len(rows), held[stays], generator)
    if len(drawn) < len(rows):
        # Some of `rows` stay: not those that equal a drawn block or one another
        repeats = repeated(torch.cat([drawn, held[rows]]))[len(drawn) :]
        rows = rows[torch.argsort(~repeats, stable=True)]
    rows = rows[: len(drawn)]
    memory[rows] = drawn
    return rows


def item_indices(items: Tensor | None, num_items: int, device: torch.device) -> Tensor:
    """Return the indices `(K,)` that a mask `(N,)` or indices stand for; None stands for all N."""
    if items is None:
        return torch.arange(num_items, device=device)
    items = torch.as_tensor(items, device=device)
    if items.dtype == torch.bool and items.shape == (num_items,):
        return items.nonzero().flatten()
    whole = not (items.is_floating_point() or items.is_complex() or items.dtype == torch.bool)
    if not (items.ndim == 1 and (whole or not len(items))):
        raise ValueError(
            f"items of shape {tuple(items.shape)} and {items.dtype}: expected a boolean mask "
            f"({num_items},), one entry an item, or indices (K,) of whole numbers"
        )
    items = items.long()
    if len(items) and not 0 <= items.min() <= items.max() < num_items:
        raise ValueError(
            f"items {items.min().item()} to {items.max().item()}: expected indices from 0 to "
            f"{num_items - 1}"
        )
    if len(items) and items.bincount().max() > 1:
        raise ValueError("items: an index is there twice; expected each item once")
    return items


def repeated(rows: Tensor) -> Tensor:
    """Return a mask `(R,)` of the rows of `(R, D)` that equal a row before them."""
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    places = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(places, len(rows)).scatter_reduce(0, group, places, "amin")
    return first[group] != places


def check_memory(memory: Tensor) -> None:
    """Raise ValueError for a memory whose rows cannot be written here."""
    if is_dtensor(memory):
        raise ValueError(
            "memory is a DTensor, of which every process holds a part: fill it before fully_shard "
            "or distribute_module shards the model, with the same maps on every process"
        )
    if memory.is_meta:
        raise ValueError(
            "memory is on the meta device and holds nothing: call to_empty(device=...) and "
            "reset_parameters() first; where accelerate offloads a model, fill before that"
        )
    if not isinstance(memory, nn.Parameter):
        raise ValueError(
            "memory is not the layer's own parameter, so that what is written to it would be lost "
            "(a parametrization, pruning, functional_call or FullyShardedDataParallel computes it): "
            "fill the plain layer first"
        )


def _check_map(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x is {kind}: expected a map (B, C, *S) of floating-point numbers")
    if is_dtensor(x) or x.is_meta:
        raise ValueError(
            "x is a DTensor or on the meta device: expected a map whose numbers are all here"
        )


def _check_finite(blocks: Tensor, x: Tensor, memory: Tensor) -> None:
    bad = int((~blocks.isfinite()).any(1).sum())
    if bad:
        raise ValueError(
            f"x has NaN or infinity in {bad} of {len(blocks)} blocks (x is {x.dtype}, memory "
            f"{memory.dtype}): expected finite numbers, since an item of one such block spoils "
            "every answer; nothing was filled"
        )


def _draw(blocks: Tensor, count: int, held: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw at most `count` of `blocks`, which are not zero and equal neither one another nor `held`."""
    norms = torch.linalg.vector_norm(
        blocks, dim=1, dtype=torch.promote_types(blocks.dtype, torch.float32)
    )
    usable = norms.nonzero().flatten()
    device = "cpu" if generator is None else generator.device
    order = torch.randperm(len(usable), generator=generator, device=device).to(usable.device)
    held = held[~repeated(held)]
    found, wanted = held, len(held) + count
    for part in usable[order].split(PART):
        if len(found) == wanted:
            break
        found = torch.cat([found, blocks[part]])
        found = found[~repeated(found)][:wanted]
    return found[len(held) :]
