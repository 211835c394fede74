"""The PyTorch backend: `addressing.read` for a whole map, a chunk of blocks at a time.

Never more than a chunk of queries and weights is held. The backward computes logits again, unless
the forward was asked to keep them. docs/maths.md has the gradients.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from blockmem.addressing import Addressing, compute_dtype
from blockmem.division import chunks, grid_view
from blockmem.products import add_products, times

CHUNK_WEIGHTS = 2**20  # logits held at once: 4 MB in float32
CHUNK_NUMBERS = 2**21  # numbers of queries held at once: 8 MB in float32
LEAST_ROWS = 64  # a product of fewer rows is slow, however long they are

Index = tuple[int | slice, ...]


def kept_size(queries: int, items: int, size: int, dtype: torch.dtype, keep: bool) -> int:
    """How many numbers the forward hands to the backward: all logits, or none.

    They are worth keeping where they take no more than the map itself, which is kept anyway, or
    than a chunk. Computing them again is one product of seven.
    """
    worth = items <= size or queries * items <= CHUNK_WEIGHTS
    return queries * items if keep and worth else 0


def inverse_norms(rows: Tensor) -> Tensor:
    """1/|row| `(R,)` in `compute_dtype`, and 0 for a row of zeros."""
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=compute_dtype(rows.dtype))
    return norm.reciprocal().masked_fill_(norm == 0, 0)


def read_blocks(
    x: Tensor,
    memory: Tensor,
    block_shape: Sequence[int],
    how: Addressing,
    keep: bool = False,
) -> tuple[Tensor, Tensor]:
    """The new map, in the memory format of `x`, and logits `(B * Q * N,)`, if they are kept.

    Args:
        x: map `(B, C, *S)`.
        memory: items `(N, D)`.
        block_shape: `(c, *s)`.
        how: temperature, threshold, renormalize.
        keep: return logits for the backward.
    """
    out = torch.empty_like(x)
    values, inverse = _values(memory), inverse_norms(memory)
    items, size = memory.shape
    kept = values.new_empty(kept_size(x.numel() // size, items, size, x.dtype, keep))
    for index, rows, (queries,) in _chunks([x], memory, block_shape):
        logits = kept.view(-1, items)[rows] if len(kept) else None
        answers = _answers(queries, values, inverse / how.temperature, how, logits)
        _put(answers, out, index, block_shape)
        del answers  # before the next are made
    return out, kept


def _answers(
    queries: Tensor, values: Tensor, scale: Tensor, how: Addressing, kept: Tensor | None
) -> Tensor:
    """Of a chunk, `(R, D)`; overwrites the queries, and puts the logits where they are kept."""
    queries.mul_(inverse_norms(queries).unsqueeze(1))
    logits = times(queries, values.T).mul_(scale)
    if kept is not None:
        kept.copy_(logits)
    weights = torch.softmax(logits, dim=1)
    del logits
    return times(_shrink_(weights, how), values)


def read_blocks_backward(
    grad: Tensor,
    x: Tensor,
    memory: Tensor,
    kept: Tensor,
    block_shape: Sequence[int],
    how: Addressing,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `read_blocks` for `x` and `memory`, as far as `needs` asks for each.

    With g the gradient of an answer, unit vectors q' and m'_i, and the set of kept items held
    constant (as for ReLU):

        dw_i = g . m_i
        d    = sum_i w_i dw_i
        ds_i = w_i dw_i - p_i d                   or w_i (dw_i - d) with renormalize
        dq   = (sum_i ds_i m'_i / t - (sum_i ds_i s_i) q') / |q|
        dm_i = sum (w_i g + ds_i q' / (|m_i| t)) - (sum ds_i s_i) m_i / |m_i|^2

    where the sums of dm_i go over all queries.
    """
    values, inverse = _values(memory), inverse_norms(memory)
    grad_x = torch.empty_like(x) if needs[0] else None
    grad_memory = torch.zeros_like(values) if needs[1] else None
    along_items = torch.zeros_like(inverse)
    for index, rows, pair in _chunks([grad, x], memory, block_shape):
        inverse_queries = inverse_norms(pair[1]).unsqueeze(1)
        queries = pair[1].mul_(inverse_queries)
        logits = kept.view(-1, len(values))[rows] if len(kept) else None
        both, along = _weights_and_factors(pair, values, inverse / how.temperature, how, logits)
        if grad_memory is not None:
            along_items += along.sum(dim=0)
            add_products(grad_memory, both.flatten(0, 1), pair.flatten(0, 1))
        if grad_x is not None:
            grad_queries = times(both[1], values)
            grad_queries.addcmul_(queries, along.sum(dim=1, keepdim=True), value=-1)
            _put(grad_queries.mul_(inverse_queries), grad_x, index, block_shape)
            del grad_queries
        del both, along  # before the next are made
    if grad_memory is None:
        return grad_x, None
    grad_memory.addcmul_(values, (along_items * inverse.square()).unsqueeze(1), value=-1)
    return grad_x, grad_memory.to(memory.dtype)


def _weights_and_factors(
    pair: Tensor, values: Tensor, scale: Tensor, how: Addressing, logits: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of a chunk's gradients of answers and unit queries `(2, R, D)`: w and ds/(|m_i| t),
    `(2, R, N)`, and ds s `(R, N)`."""
    if logits is None:
        grad_weights, logits = times(pair.flatten(0, 1), values.T).view(2, pair.shape[1], -1)
        logits.mul_(scale)
    else:
        grad_weights = times(pair[0], values.T)
    both = logits.new_empty((2, *logits.shape))
    weights, grad_logits = both
    probabilities = torch.softmax(logits, dim=1)
    _shrink_(weights.copy_(probabilities), how)
    torch.mul(weights, grad_weights, out=grad_logits)
    total = grad_logits.sum(dim=1, keepdim=True)
    # Dropped items still feel the softmax, unless renormalize took them out of it
    grad_logits.addcmul_(weights if how.renormalize else probabilities, total, value=-1)
    along = torch.mul(grad_logits, logits, out=probabilities)
    grad_logits.mul_(scale)
    return both, along


def _chunks(
    maps: Sequence[Tensor], memory: Tensor, block_shape: Sequence[int]
) -> Iterator[tuple[Index, slice, Tensor]]:
    """Index into the `grid_view`, number of its blocks, and blocks `(maps, rows, D)`, a copy, of
    each chunk. The copies of all chunks share their storage."""
    items, size = memory.shape
    grids = [grid_view(x, block_shape) for x in maps]
    grid = grids[0].shape[: -len(block_shape)]
    rows = max(1, min(CHUNK_WEIGHTS // items, max(LEAST_ROWS, CHUNK_NUMBERS // size)))
    rows = min(rows, math.prod(grid))
    workspace = memory.new_empty(len(maps) * rows * size, dtype=compute_dtype(memory.dtype))
    start = 0
    for index in chunks(grid, rows):
        shape = grids[0][index].shape
        count = math.prod(shape) // size
        copies = workspace[: len(maps) * count * size].view(len(maps), count, size)
        for copy, blocks in zip(copies, grids, strict=True):
            copy.view(shape).copy_(blocks[index])
        yield index, slice(start, start + count), copies
        start += count


def _put(rows: Tensor, x: Tensor, index: Index, block_shape: Sequence[int]) -> None:
    target = grid_view(x, block_shape)[index]
    target.copy_(rows.view(target.shape))


def _values(memory: Tensor) -> Tensor:
    return memory.to(compute_dtype(memory.dtype)).contiguous()


def _shrink_(probabilities: Tensor, how: Addressing) -> Tensor:
    """In place, probabilities to weights."""
    weights = torch.threshold_(probabilities, how.cutoff, 0.0)  # keeps NaN
    if how.renormalize:
        total = weights.sum(dim=1, keepdim=True)
        weights.div_(total.masked_fill_(total == 0, 1))
    return weights
