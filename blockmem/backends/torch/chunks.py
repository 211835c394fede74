"""The PyTorch backend: the layer for a whole map, a chunk of blocks at a time.

Never more than a chunk of queries and weights is held. The backward computes logits again, unless
the forward saved them, or for many items their softmax. docs/maths.md has the gradients.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blockmem._dtypes import compute_dtype
from blockmem.addressing import Addressing
from blockmem.backends.common import inverse_norms
from blockmem.backends.torch.blocks import copied, far, put
from blockmem.backends.torch.products import add_products, matmul
from blockmem.division import grid_views

SPAN = 60.0  # of the logits of a row: exp(-60) / N is no denormal number
MOST_SAVED = 2**24  # logits or probabilities kept for the backward: 64 MB in float32


def saved_size(queries: int, items: int, size: int, dtype: torch.dtype) -> int:
    """Return how many numbers the forward can save for the backward: one for each logit, or none.

    To compute them again is one product of seven, and eager PyTorch, which keeps four such tables,
    would be faster for it. What is kept has a bound, as all else has.
    """
    few = items <= size or queries * items <= MOST_SAVED
    return queries * items if few else 0


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
        The map, and what is saved `(B * Q * N,)`, or empty: logits, or their softmax of many items.
    """
    out = torch.empty_like(x)
    values = _values(memory)
    scale = _scale(inverse_norms(values) if addressing.cosine else None, addressing)
    items, size = memory.shape
    few = _few(values)
    keys = values if few else _scaled(values, scale)
    count = saved_size(x.numel() // size, items, size, x.dtype) if save else 0
    saved = values.new_empty(count)
    *sources, target = grid_views(block_shape, x, out)
    for index, rows, (queries,) in copied(sources, memory):
        if addressing.cosine:
            queries.mul_(inverse_norms(queries).unsqueeze(1))
        kept = saved.view(-1, items)[rows] if count else None
        logits = matmul(queries, keys.T, room=kept if few else None)
        if few:
            logits.mul_(scale)
        _narrow_(logits, addressing)
        if kept is None:
            weights = _softmax(logits, addressing, out=logits)
        elif few:
            kept.copy_(logits)  # which does nothing where they are the same
            weights = _softmax(logits, addressing)
        else:
            weights = _softmax(logits, addressing, out=kept)
        del logits  # before the answers are made
        shrink = torch.threshold if weights is kept else torch.threshold_
        weights = _normalize_(shrink(weights, addressing.cutoff(items), 0.0), addressing)
        answers = matmul(weights, values, room=None if far(target) else queries)
        put(answers, target, index, queries)
        del weights, answers  # before the next are made
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
    grad_x = torch.empty_like(x) if needs[0] else None
    kind = _FewItems if _few(values) else _ManyItems
    items: _FewItems | _ManyItems = kind(values, inverse, addressing, needs)
    *sources, target = grid_views(block_shape, grad, x, x if grad_x is None else grad_x)
    for index, rows, pair in copied(sources, memory):
        queries = pair[1]
        if inverse is not None:
            inverse_queries = inverse_norms(queries).unsqueeze(1)
            queries.mul_(inverse_queries)
        grad_queries = items.add(pair, saved.view(-1, len(values))[rows] if len(saved) else None)
        if grad_queries is not None:
            if inverse is not None:
                grad_queries.mul_(inverse_queries)
            put(grad_queries, target, index, queries)
        del grad_queries  # before the next are made
    grad_memory = items.total()
    return grad_x, None if grad_memory is None else grad_memory.to(memory.dtype)


class _Items:
    """The items of a backward, and what it adds up of their gradient.

    `add` takes a chunk's gradients of answers and unit queries `(2, R, D)`, and what `forward`
    saved of it, or None. It returns |q| dq `(R, D)`, for which it may write over the gradients.
    `total` returns the memory's gradient `(N, D)`.
    """

    def __init__(
        self,
        values: Tensor,
        inverse: Tensor | None,
        addressing: Addressing,
        needs: tuple[bool, bool],
    ) -> None:
        self.values, self.inverse, self.addressing, self.needs = values, inverse, addressing, needs
        self.scale = _scale(inverse, addressing)
        self.grad_memory = torch.zeros_like(values) if needs[1] else None


class _FewItems(_Items):
    """The gradients where a row of weights is no longer than a block.

    Passes over weights cost little there, and tensors of the memory's size much: so the products of
    w and g, and of ds and q', are one, and sums along q' and m' come from ds s.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.along_items: Tensor | float = 0.0

    def add(self, pair: Tensor, logits: Tensor | None) -> Tensor | None:
        values = self.values
        if logits is None:
            grad_weights, logits = matmul(pair.flatten(0, 1), values.T).view(2, -1, len(values))
            _narrow_(logits.mul_(self.scale), self.addressing)
        else:
            grad_weights = matmul(pair[0], values.T)
        both = logits.new_empty((2, *logits.shape))
        _factors(grad_weights, _softmax(logits, self.addressing), self.addressing, both)
        along = grad_weights.copy_(both[1]).mul_(logits)
        both[1].mul_(self.scale)
        if self.grad_memory is not None:
            add_products(self.grad_memory, both.flatten(0, 1), pair.flatten(0, 1))
            self.along_items = along.sum(dim=0).add_(self.along_items)
        if not self.needs[0]:
            return None
        grad_queries = matmul(both[1], values, room=pair[0])
        if self.inverse is not None:
            grad_queries.addcmul_(pair[1], along.sum(dim=1, keepdim=True), value=-1)
        return grad_queries

    def total(self) -> Tensor | None:
        if self.grad_memory is None or self.inverse is None:
            return self.grad_memory
        along = self.inverse.square().mul_(self.along_items)
        return self.grad_memory.addcmul_(self.values, along.unsqueeze(1), value=-1)


class _ManyItems(_Items):
    """The gradients where a row of weights is longer than a block.

    Passes over weights cost most there. So products of w and g, and of ds and q', are added up
    apart, and what lies along q' and m' is taken off the sums.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.keys = _scaled(self.values, self.scale)
        self.grad_units = torch.zeros_like(self.values) if self.needs[1] else None

    def add(self, pair: Tensor, probabilities: Tensor | None) -> Tensor | None:
        grad, queries = pair
        if probabilities is None:
            logits = _narrow_(matmul(queries, self.keys.T), self.addressing)
            probabilities = _softmax(logits, self.addressing, out=logits)
            del logits
        grad_weights = matmul(grad, self.values.T)
        weights, grad_logits = _factors(grad_weights, probabilities, self.addressing)
        del probabilities, grad_weights
        if self.grad_memory is not None and self.grad_units is not None:
            add_products(self.grad_memory, weights, grad)
            add_products(self.grad_units, grad_logits, queries)
        del weights
        if not self.needs[0]:
            return None
        grad_queries = matmul(grad_logits, self.keys, room=grad)
        return grad_queries if self.inverse is None else _across(grad_queries, queries)

    def total(self) -> Tensor | None:
        if self.grad_memory is None or self.grad_units is None:
            return None
        if self.inverse is not None:
            _across(self.grad_units, _scaled(self.values, self.inverse))
        return self.grad_memory.add_(_scaled(self.grad_units, self.scale))


def _across(rows: Tensor, units: Tensor) -> Tensor:
    """Take off each of `rows`, in place, what lies along its unit vector."""
    return rows.addcmul_(units, torch.linalg.vecdot(rows, units).unsqueeze(1), value=-1)


def _factors(
    grad_weights: Tensor, probabilities: Tensor, addressing: Addressing, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute w and ds `(R, N)` from dw and p; into `out` `(2, R, N)`, or ds in place of dw."""
    weights = torch.threshold(probabilities, addressing.cutoff(probabilities.shape[1]), 0.0)
    _normalize_(weights, addressing)
    grad_logits = torch.mul(grad_weights, weights, out=grad_weights if out is None else out[1])
    total = grad_logits.sum(dim=1, keepdim=True)
    # Dropped items still feel the softmax, unless renormalize took them out of it
    grad_logits.addcmul_(weights if addressing.renormalize else probabilities, total, value=-1)
    return (weights if out is None else out[0].copy_(weights)), grad_logits


def _values(memory: Tensor) -> Tensor:
    return memory.to(compute_dtype(memory.dtype)).contiguous()


def _scale(inverse: Tensor | None, addressing: Addressing) -> Tensor | float:
    """Return what turns products with items into logits, from the inverse norms of the items."""
    if inverse is None:
        return 1 / addressing.temperature
    return inverse if addressing.temperature == 1 else inverse / addressing.temperature


def _few(values: Tensor) -> bool:
    """Whether a row of weights is no longer than a block."""
    return len(values) <= values.shape[1]


def _scaled(values: Tensor, scale: Tensor | float) -> Tensor:
    return values * (scale.unsqueeze(1) if isinstance(scale, Tensor) else scale)


def _narrow_(logits: Tensor, addressing: Addressing) -> Tensor:
    """Raise, in place, the logits of a row that lie far below its highest.

    No weight or gradient changes by more than exp(-SPAN) of the largest. But smaller ones would be
    denormal numbers: products of them took an Intel Xeon up to seven times as long. GPUs do not mind.
    """
    close = addressing.cosine and 2 / addressing.temperature <= SPAN
    if close or not logits.is_cpu:
        return logits
    least = logits.amax(dim=1, keepdim=True).sub_(SPAN)
    return torch.maximum(logits, least, out=logits)


def _softmax(logits: Tensor, addressing: Addressing, out: Tensor | None = None) -> Tensor:
    """Compute the softmax of each row, into `out` if given, which may be the logits themselves.

    Where logits are bounded, exp needs no shift: on a CPU its passes take a third less time.
    """
    if not (addressing.bounded and logits.is_cpu):
        return torch.softmax(logits, dim=1, out=None if out is logits else out)
    weights = torch.exp(logits, out=out)
    return weights.mul_(weights.sum(dim=1, keepdim=True).reciprocal_())


def _normalize_(weights: Tensor, addressing: Addressing) -> Tensor:
    """Make the weights of a row sum to 1, in place, where that is asked for."""
    if addressing.renormalize:
        total = weights.sum(dim=1, keepdim=True)
        weights.div_(total.masked_fill_(total == 0, 1))
    return weights
