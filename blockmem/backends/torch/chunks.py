"""The PyTorch backend: the layer for a whole map, a chunk of blocks at a time.

Never more than a chunk of queries and weights is held. The backward computes logits again, unless
the forward was asked to save them. docs/maths.md has the gradients.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from blockmem._dtypes import compute_dtype
from blockmem.addressing import Addressing
from blockmem.backends import common
from blockmem.backends.common import inverse_norms, logits_are_saved
from blockmem.backends.torch.products import add_products, matmul
from blockmem.division import chunks, grid_views

CHUNK_ELEMENTS = 2**21  # elements of queries held at once: 8 MB in float32
SHARE = 256  # of a GPU's memory one table of weights may take
LEAST_ROWS = 64  # a product of fewer rows is slow, however long they are

Index = tuple[int | slice, ...]


def saved_size(queries: int, items: int, size: int, dtype: torch.dtype) -> int:
    """Return how many numbers the forward can save for the backward: all logits, or none."""
    return queries * items if logits_are_saved(queries, items, size) else 0


def forward(
    x: Tensor,
    memory: Tensor,
    block_shape: Sequence[int],
    addressing: Addressing,
    save: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute the new map, in the memory format of `x`, and what the backward is to be given.

    Args:
        x: map `(B, C, *S)`.
        memory: items `(N, D)`.
        block_shape: `(c, *s)`.
        addressing: temperature, threshold, renormalize, similarity.
        save: whether there will be a backward.

    Returns:
        The map, and the logits `(B * Q * N,)`, empty where they are not saved.
    """
    out = torch.empty_like(x)
    values = _values(memory)
    scale = _scale(inverse_norms(values) if addressing.cosine else None, addressing)
    items, size = memory.shape
    count = saved_size(x.numel() // size, items, size, x.dtype) if save else 0
    saved: Tensor | None = None
    *sources, target = grid_views(block_shape, x, out)
    for index, rows, (queries,) in _chunks(sources, memory):
        if addressing.cosine:
            queries.mul_(inverse_norms(queries).unsqueeze(1))
        logits = matmul(queries, values.T).mul_(scale)
        if logits.numel() == count:  # all in one chunk
            saved = logits.view(-1)
        elif count:
            saved = values.new_empty(count) if saved is None else saved
            saved.view(-1, items)[rows] = logits
        weights = torch.softmax(logits, dim=1)
        del logits  # before the answers are made
        answers = matmul(_shrink_(weights, addressing), values)
        _put(answers, target, index)
        del weights, answers  # before the next are made
    return out, values.new_empty(count) if saved is None else saved


def backward(
    grad: Tensor,
    x: Tensor,
    memory: Tensor,
    saved: Tensor,
    block_shape: Sequence[int],
    addressing: Addressing,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of `forward` for `x` and `memory`, as far as `needs` asks for each.

    With g the gradient of an answer, unit vectors q' and m'_i, and the set of kept items held
    constant (as for ReLU):

        dw_i = g . m_i
        d    = sum_i w_i dw_i
        ds_i = w_i dw_i - p_i d                   or w_i (dw_i - d) with renormalize
        dq   = (sum_i ds_i m'_i / t - (sum_i ds_i s_i) q') / |q|
        dm_i = sum (w_i g + ds_i q' / (|m_i| t)) - (sum ds_i s_i) m_i / |m_i|^2

    where the sums of dm_i go over all queries. With similarity "dot" vectors stand for themselves:
    dq = sum_i ds_i m_i / t and dm_i = sum (w_i g + ds_i q / t).
    """
    values = _values(memory)
    inverse = inverse_norms(values) if addressing.cosine else None
    scale = _scale(inverse, addressing)
    grad_x = torch.empty_like(x) if needs[0] else None
    grad_memory = torch.zeros_like(values) if needs[1] else None
    along_items: Tensor | None = None
    *sources, target = grid_views(block_shape, grad, x, x if grad_x is None else grad_x)
    for index, rows, pair in _chunks(sources, memory):
        queries = pair[1]
        if inverse is not None:
            inverse_queries = inverse_norms(queries).unsqueeze(1)
            queries.mul_(inverse_queries)
        logits = saved.view(-1, len(values))[rows] if len(saved) else None
        both, along = _weights_and_factors(pair, values, scale, addressing, logits)
        if grad_memory is not None:
            add_products(grad_memory, both.flatten(0, 1), pair.flatten(0, 1))
            if inverse is not None:
                here = along.sum(dim=0)
                along_items = here if along_items is None else along_items.add_(here)
        if grad_x is not None:
            grad_queries = matmul(both[1], values)
            if inverse is not None:
                grad_queries.addcmul_(queries, along.sum(dim=1, keepdim=True), value=-1)
                grad_queries.mul_(inverse_queries)
            _put(grad_queries, target, index)
            del grad_queries
        del both, along  # before the next are made
    if grad_memory is None:
        return grad_x, None
    if inverse is not None and along_items is not None:
        along_items.mul_(inverse.square_())
        grad_memory.addcmul_(values, along_items.unsqueeze(1), value=-1)
    return grad_x, grad_memory.to(memory.dtype)


def _weights_and_factors(
    pair: Tensor,
    values: Tensor,
    scale: Tensor | float,
    addressing: Addressing,
    logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute what the gradients of a chunk are made of.

    From its gradients of answers and its unit queries `(2, R, D)`: w and ds/(|m_i| t), `(2, R, N)`,
    and ds s `(R, N)`.
    """
    if logits is None:
        grad_weights, logits = matmul(pair.flatten(0, 1), values.T).view(2, -1, len(values))
        logits.mul_(scale)
    else:
        grad_weights = matmul(pair[0], values.T)
    both = logits.new_empty((2, *logits.shape))
    weights, grad_logits = both
    probabilities = torch.softmax(logits, dim=1)
    _shrink_(weights.copy_(probabilities), addressing)
    torch.mul(weights, grad_weights, out=grad_logits)
    total = grad_logits.sum(dim=1, keepdim=True)
    # Dropped items still feel the softmax, unless renormalize took them out of it
    grad_logits.addcmul_(weights if addressing.renormalize else probabilities, total, value=-1)
    along = torch.mul(grad_logits, logits, out=probabilities)
    grad_logits.mul_(scale)
    return both, along


def _chunks(grids: Sequence[Tensor], memory: Tensor) -> Iterator[tuple[Index, slice, Tensor]]:
    """Yield of each chunk its index into the `grid_views`, its rows, and the blocks of each map.

    The blocks `(maps, rows, D)` are a copy. The copies of all chunks share their storage.
    """
    items, size = memory.shape
    shape = grids[0].shape
    count = grids[0].numel() // size
    times = _times(memory.device)
    most = times * common.CHUNK_WEIGHTS // items, times * CHUNK_ELEMENTS // size
    rows = max(1, min(most[0], max(LEAST_ROWS, most[1])))
    dtype = compute_dtype(memory.dtype)
    if count <= rows:
        copies = memory.new_empty((len(grids), *shape), dtype=dtype)
        for copy, blocks in zip(copies, grids, strict=True):
            copy.copy_(blocks)
        yield (), slice(count), copies.view(len(grids), count, size)
        return
    workspace = memory.new_empty(len(grids) * rows * size, dtype=dtype)
    start = 0
    for index in chunks(shape[: (len(shape) + 1) // 2], rows):  # the axes of the grid
        shape = grids[0][index].shape
        count = math.prod(shape) // size
        copies = workspace[: len(grids) * count * size].view(len(grids), count, size)
        for copy, blocks in zip(copies, grids, strict=True):
            copy.view(shape).copy_(blocks[index])
        yield index, slice(start, start + count), copies
        start += count


@cache
def _times(device: torch.device) -> int:
    """Return how many chunks of a CPU's size a device takes at once.

    A CPU's fit its caches. Elsewhere each has its launches to pay for, so there are few of them: a
    table of weights takes up to 1/256 of the memory. The memory as a whole, since to ask for what
    is free costs time in each call.
    """
    if device.type in ("cuda", "xpu"):
        total = getattr(torch, device.type).get_device_properties(device).total_memory
    elif device.type == "mps":
        total = torch.mps.recommended_max_memory()
    else:
        return 1
    return max(1, int(total) // (SHARE * 4 * common.CHUNK_WEIGHTS))


def _put(rows: Tensor, grid: Tensor, index: Index) -> None:
    target = grid[index] if index else grid
    target.copy_(rows.view(target.shape))


def _values(memory: Tensor) -> Tensor:
    return memory.to(compute_dtype(memory.dtype)).contiguous()


def _scale(inverse: Tensor | None, addressing: Addressing) -> Tensor | float:
    """Return what turns products with items into logits, from the inverse norms of the items."""
    if inverse is None:
        return 1 / addressing.temperature
    return inverse if addressing.temperature == 1 else inverse / addressing.temperature


def _shrink_(probabilities: Tensor, addressing: Addressing) -> Tensor:
    """Turn probabilities into weights, in place."""
    cutoff = addressing.cutoff(probabilities.shape[1])
    weights = torch.threshold_(probabilities, cutoff, 0.0)  # keeps NaN
    if addressing.renormalize:
        total = weights.sum(dim=1, keepdim=True)
        weights.div_(total.masked_fill_(total == 0, 1))
    return weights
