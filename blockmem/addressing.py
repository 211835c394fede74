"""Address a memory and read from it: Eq. 1 and 2 of the paper, and hard shrinkage.

With queries q, items m_i, temperature t and threshold h, in plain PyTorch:

    s_i = q . m_i / (|q| |m_i| t)        cosine logits; 0 where a norm is 0
    p   = softmax(s)
    w_i = p_i if p_i >= h else 0         hard shrinkage
    w   = w / sum(w)                     only with renormalize
    out = sum_i w_i m_i

`address` and `read` say just that: they are differentiable to any order, hold all weights at once,
and are the ground truth for the backends (`blockmem.chunked`, `blockmem.kernels`).
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available

ULPS = 2.0**-21  # four units in the last place of float32
MAX_EXPONENT = 80.0  # exp(+-80) and sums of 1000s of it are normal float32 numbers


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
    cosine = _unit(queries.to(dtype)) @ _unit(memory.to(dtype)).transpose(0, 1)  # ONNX has no mT
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
