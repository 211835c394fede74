"""Address a memory and read from it: Eq. 1 and 2 of the paper, hard shrinkage, and gradients.

With queries q, items m_i, temperature t and threshold h, in plain PyTorch:

    s_i = q . m_i / (|q| |m_i| t)        cosine logits; 0 where a norm is 0
    p   = softmax(s)
    w_i = p_i if p_i >= h else 0         hard shrinkage
    w   = w / sum(w)                     only with renormalize
    out = sum_i w_i m_i

`address` and `read` say just that: they are differentiable to any order, hold all weights at once,
and are the ground truth. `read_blocks` and `read_blocks_backward` compute the same for a whole map,
a chunk of blocks at a time, and never hold more than a chunk of weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available

from blockmem.division import chunks, grid_shape, grid_view

Index = tuple[int | slice, ...]

ULPS = 2.0**-21  # four units in the last place of float32
MAX_EXPONENT = 80.0  # exp(+-80) and sums of 1000s of it are normal float32 numbers
CHUNK_WEIGHTS = 2**20  # weights held at once: 4 MB in float32


@dataclass(frozen=True)
class Addressing:
    """How a memory is addressed: what Eq. 1 and 2 leave to choose."""

    temperature: float
    threshold: float
    renormalize: bool

    @property
    def cutoff(self) -> float:
        """The threshold, less the rounding of a float32 weight that equals it.

        A uniform row has weights of exactly 1/N, which rounding would push to either side.
        A logit is off by some units in the last place of 1/temperature.
        """
        slack = min(ULPS * (1 + 1 / self.temperature), 2.0**-10)
        return self.threshold * (1 - slack)

    @property
    def bounded(self) -> bool:
        """Whether exp(s) needs no shift by the row's maximum: |s| <= 1/temperature."""
        return 1 / self.temperature <= MAX_EXPONENT


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: norms, logits, softmax and sums are never in half."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Asked once, here: torch.compile of torch 2.6 cannot trace the question.
AUTOCAST_DEVICES = frozenset(filter(is_autocast_available, ("cpu", "cuda", "mps", "xpu", "hpu")))


def no_autocast(device: str) -> AbstractContextManager[object]:
    """Keeps autocast, where a device has it, from lowering the dtype of what is computed inside."""
    if device in AUTOCAST_DEVICES:
        return torch.autocast(device, enabled=False)
    return nullcontext()


def address(queries: Tensor, memory: Tensor, how: Addressing) -> Tensor:
    """Weights `(..., N)` after shrinkage of queries `(..., D)` on memory `(N, D)` (Eq. 1).

    Computed and returned in `compute_dtype`.
    """
    dtype = compute_dtype(queries.dtype)
    cosine = _unit(queries.to(dtype)) @ _unit(memory.to(dtype)).mT
    weights = torch.softmax(cosine / how.temperature, dim=-1)
    weights = torch.where(weights < how.cutoff, 0.0, weights)  # so that NaN is kept
    if how.renormalize:
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / torch.where(total == 0, 1.0, total)
    return weights


def read(queries: Tensor, memory: Tensor, how: Addressing) -> Tensor:
    """What the memory answers, `(..., D)` in the queries' dtype (Eq. 2)."""
    weights = address(queries, memory, how)
    return (weights @ memory.to(weights.dtype)).to(queries.dtype)


def _unit(rows: Tensor) -> Tensor:
    """Rows of norm 1; a row of zeros stays one, and its gradients are 0 to every order."""
    square = rows.square().sum(dim=-1, keepdim=True)
    empty = square == 0
    return rows * torch.where(empty, 0.0, torch.where(empty, 1.0, square).rsqrt())


def read_blocks(
    x: Tensor, memory: Tensor, block_shape: Sequence[int], how: Addressing
) -> tuple[Tensor, Tensor]:
    """`read` for every block of a map `(B, C, *S)`: the new map, and one number a block.

    The map has the memory format of `x`. The number, `(B, Q)`, is the softmax's normaliser
    sum_i exp(s_i), or sum_i exp(s_i - max_j s_j) where the logits are not `bounded`: all that
    the backward needs beside `x` and `memory`.
    """
    out = torch.empty_like(x)
    keys, values = _keys(memory, how), memory.to(compute_dtype(memory.dtype))
    normalizer = values.new_empty((x.shape[0], *grid_shape(x.shape, block_shape)))
    target = grid_view(out, block_shape)
    for index, queries in _query_chunks(x, memory, block_shape):
        weights = torch.mm(queries, keys.T)
        weights.mul_(_inverse_norm(queries))
        total = _exponentiate(weights, how).sum(dim=1, keepdim=True)
        weights.div_(total)
        weights.masked_fill_(weights < how.cutoff, 0)
        if how.renormalize:
            _renormalize(weights)
        target[index] = torch.mm(weights, values).view(target[index].shape)
        normalizer[index] = total.view(normalizer[index].shape)
    return out, normalizer.flatten(1)


def read_blocks_backward(
    grad: Tensor,
    x: Tensor,
    memory: Tensor,
    normalizer: Tensor,
    block_shape: Sequence[int],
    how: Addressing,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `read_blocks` for `x` and `memory`, as far as `needs` asks for each.

    Weights are computed again, chunk by chunk. With g the gradient of an answer, unit vectors
    q' and m'_i, and the set of kept items held constant (as for ReLU):

        dw_i = g . m_i
        d    = sum_i w_i dw_i
        ds_i = w_i dw_i - p_i d                   or w_i (dw_i - d) with renormalize
        dq   = (u - (q' . u) q') / |q|            u = sum_i ds_i m'_i / t
        dm_i = sum w_i g  +  (v_i - (m'_i . v_i) m'_i) / (|m_i| t)      v_i = sum ds_i q'

    where the last two sums go over all queries. Neither logits nor the answer are needed.
    """
    dtype = compute_dtype(memory.dtype)
    keys, values = _keys(memory, how), memory.to(dtype)
    grad_x = torch.empty_like(x) if needs[0] else None
    from_read, from_keys = torch.zeros_like(values), torch.zeros_like(values)
    normalizer = normalizer.view(x.shape[0], *grid_shape(x.shape, block_shape))
    grads = grid_view(grad, block_shape)
    for index, queries in _query_chunks(x, memory, block_shape):
        answer_grad = grads[index].reshape(queries.shape).to(dtype)
        inverse = _inverse_norm(queries)
        weights = torch.mm(queries, keys.T).mul_(inverse)
        _exponentiate(weights, how).div_(normalizer[index].reshape(-1, 1))
        grad_logits = torch.mm(answer_grad, values.T)
        _backward_softmax(weights, grad_logits, how)
        queries.mul_(inverse)
        if needs[1]:
            from_read.addmm_(weights.T, answer_grad)
            from_keys.addmm_(grad_logits.T, queries)
        if grad_x is not None:
            grad_queries = _tangent(torch.mm(grad_logits, keys), queries).mul_(inverse)
            target = grid_view(grad_x, block_shape)[index]
            target.copy_(grad_queries.view(target.shape))
    if not needs[1]:
        return grad_x, None
    inverse = _inverse_norm(values)
    from_keys = _tangent(from_keys, values * inverse).mul_(inverse / how.temperature)
    return grad_x, from_read.add_(from_keys).to(memory.dtype)


def _backward_softmax(weights: Tensor, grad_weights: Tensor, how: Addressing) -> None:
    """In place: probabilities to the weights they become, gradients of weights to those of logits."""
    dropped = weights < how.cutoff
    if how.renormalize:
        _renormalize(weights.masked_fill_(dropped, 0))
    grad_weights.masked_fill_(dropped, 0).mul_(weights)
    total = grad_weights.sum(dim=1, keepdim=True)
    grad_weights.addcmul_(weights, total, value=-1)  # dropped items still feel the softmax ...
    weights.masked_fill_(dropped, 0)  # ... unless renormalize made them 0 above


def _query_chunks(
    x: Tensor, memory: Tensor, block_shape: Sequence[int]
) -> Iterator[tuple[Index, Tensor]]:
    """Index into the `grid_view` and queries `(rows, D)`, a copy, of each chunk of blocks."""
    items, size = memory.shape
    blocks = grid_view(x, block_shape)
    for index in chunks((x.shape[0], *grid_shape(x.shape, block_shape)), CHUNK_WEIGHTS // items):
        chunk = blocks[index]
        queries = torch.empty(chunk.shape, dtype=compute_dtype(x.dtype), device=x.device)
        yield index, queries.copy_(chunk).view(-1, size)


def _keys(memory: Tensor, how: Addressing) -> Tensor:
    """Items of norm 1/temperature, so that a product with a unit query is a logit."""
    keys = memory.to(compute_dtype(memory.dtype))
    return keys * _inverse_norm(keys).div_(how.temperature)


def _inverse_norm(rows: Tensor) -> Tensor:
    """1/|row| `(rows, 1)`, and 0 for a row of zeros."""
    norm: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return norm.reciprocal().masked_fill_(norm == 0, 0)


def _exponentiate(logits: Tensor, how: Addressing) -> Tensor:
    """In place, exp of logits, shifted by each row's maximum where they could overflow."""
    if not how.bounded:
        logits.sub_(logits.amax(dim=1, keepdim=True))
    return logits.exp_()


def _renormalize(weights: Tensor) -> Tensor:
    """In place, rows that sum to 1; a row of zeros stays one."""
    total = weights.sum(dim=1, keepdim=True)
    return weights.div_(total.masked_fill_(total == 0, 1))


def _tangent(vectors: Tensor, units: Tensor) -> Tensor:
    """In place, the part of each vector that is orthogonal to its unit vector."""
    along = torch.linalg.vecdot(vectors, units).unsqueeze(1)
    return vectors.addcmul_(units, along, value=-1)
