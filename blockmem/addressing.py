"""Address a memory and combine its items: Eq. 1 and 2 of the paper, and hard shrinkage.

With queries q, items m_i, temperature t and threshold h, in plain PyTorch:

    s_i = q . m_i / (|q| |m_i| t)        cosine logits; 0 where a norm is 0
    s_i = q . m_i / t                    with similarity "dot"
    p   = softmax(s)
    w_i = p_i if p_i >= h else 0         hard shrinkage
    w   = w / sum(w)                     only with renormalize
    out = sum_i w_i m_i

`address`, `combine` and `reference` say just that. They are differentiable to any order and hold all
weights at once. Every backend is compared with them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blockmem._dtypes import compute_dtype, no_autocast, smallest_square
from blockmem.division import assemble, divide

SIMILARITIES = ("cosine", "dot")
ULPS = 2.0**-21  # four units in the last place of float32
MAX_EXPONENT = 64.0  # sums of 10000s of exp(+-64), times items, are normal float32 numbers


class Addressing(NamedTuple):
    """How a memory is addressed: what Eq. 1 and 2 leave to choose."""

    temperature: float = 1.0
    threshold: float | None = None  # None is 1/N
    renormalize: bool = False
    similarity: str = "cosine"

    @property
    def cosine(self) -> bool:
        return self.similarity == "cosine"

    def cutoff(self, items: int) -> float:
        """Return the threshold, less the rounding of a float32 weight that equals it.

        A uniform row has weights of exactly 1/N, which rounding would push to either side.
        A logit is off by some units in the last place of 1/temperature.
        """
        threshold = 1 / items if self.threshold is None else self.threshold
        slack = min(ULPS * (1 + 1 / self.temperature), 2.0**-10)
        return threshold * (1 - slack)

    @property
    def bounded(self) -> bool:
        """Whether exp(s) needs no shift by the row's maximum: |s| <= 1/temperature."""
        return self.cosine and 1 / self.temperature <= MAX_EXPONENT


def address(queries: Tensor, memory: Tensor, addressing: Addressing) -> Tensor:
    """Return the weights `(..., N)` after shrinkage of queries `(..., D)` on memory `(N, D)` (Eq. 1).

    They are computed and returned in `compute_dtype`.
    """
    dtype = compute_dtype(queries.dtype)
    queries, memory = queries.to(dtype), memory.to(dtype)
    if addressing.cosine:
        queries, memory = _unit(queries), _unit(memory)
    logits = queries @ memory.transpose(0, 1) / addressing.temperature  # ONNX has no mT
    weights = torch.softmax(logits, dim=-1)
    cutoff = addressing.cutoff(memory.shape[0])
    weights = torch.where(weights < cutoff, 0.0, weights)  # so that NaN is kept
    if addressing.renormalize:
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / torch.where(total == 0, 1.0, total)
    return weights


def combine(weights: Tensor, memory: Tensor) -> Tensor:
    """Return the answers `(..., D)` that weights `(..., N)` take from a memory, in its dtype (Eq. 2)."""
    return (weights @ memory.to(weights.dtype)).to(memory.dtype)


def reference(
    x: Tensor, memory: Tensor, block_shape: Sequence[int], addressing: Addressing
) -> Tensor:
    """Compute the layer as it is defined: divide, address, combine, assemble."""
    return reference_read(x, memory, block_shape, addressing)[0]


def reference_read(
    x: Tensor, memory: Tensor, block_shape: Sequence[int], addressing: Addressing
) -> tuple[Tensor, Tensor]:
    """Compute the map of `reference`, and the weights `(B, Q, N)` it is read with."""
    with no_autocast(x.device.type):
        weights = address(divide(x, block_shape), memory, addressing)
        return assemble(combine(weights, memory), block_shape, x.shape), weights


def _unit(rows: Tensor) -> Tensor:
    """Return rows of norm 1. A row that counts as zero gives zeros, and gradients of 0 to any order.

    A quotient, since the derivative of 1/sqrt overflows for rows of norm 1e-13 already.
    """
    square = rows.detach().square().sum(dim=-1, keepdim=True)
    empty = square <= smallest_square(rows.dtype)
    rows = torch.where(empty, 1.0, rows)
    return torch.where(empty, 0.0, rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True))
