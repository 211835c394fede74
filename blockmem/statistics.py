"""What addressing weights tell: their entropy, as a loss, and how often each item is used."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def entropy(weights: Tensor) -> Tensor:
    r"""Compute the mean entropy of addressing weights, MemAE's loss for sparse addressing.

    .. math::
        E = \frac{1}{Q} \sum_{k=1}^{Q} \sum_{i=1}^{N} -w_{ki} \log w_{ki}, \qquad 0 \log 0 = 0

    over all Q blocks of a batch (Gong et al., ICCV 2019, Eq. 9). MemAE adds it to the
    reconstruction error with a factor of 0.0002, and takes the mean over blocks in its code.

    Value and gradients are finite, to second order, with and without `renormalize`. The gradient
    of an item that was dropped is 0. Formulas such as `-(w * w.log()).sum(-1)` give NaN, and so do
    the gradients of `torch.special.entr` with `renormalize`: at 0 its derivative is infinite, and
    the gradient of a row's sum multiplies it by 0.

    Args:
        weights: `(B, Q, N)` after shrinkage, as `BlockwiseMemory.read` and
            `BlockwiseMemory.address` give them, or any `(..., N)`; in a floating-point dtype.

    Returns:
        A scalar in nats, log N where all rows are uniform; in float32 (float64 for float64). As in
        PyTorch's own losses, the mean of no rows is NaN. A weight that is NaN or negative makes it
        NaN too: the values are not looked at, which would wait for the device.

    Raises:
        TypeError: for what is not a tensor of a floating-point dtype.
        ValueError: for weights without a dimension, or of no items.

    Examples:
        >>> import torch
        >>> certain, undecided = [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]
        >>> entropy(torch.tensor([[certain, undecided]]))  # the mean of 0 and log 4
        tensor(0.6931)
    """
    _check(weights)
    weights = weights.to(_sum_dtype(weights))
    # Zeros are taken out before the logarithm: masking its result leaves 0 * inf in the backward.
    # Below the smallest normal number 1/w overflows, and the second derivative with it.
    negligible = weights.abs() < torch.finfo(weights.dtype).tiny
    kept = torch.where(negligible, 1.0, weights)
    return -(kept * kept.log()).sum(dim=-1).mean()


@dataclass(frozen=True, repr=False, eq=False)
class Usage:
    """How much each item of a memory was used, over one batch or the sum of several.

    Made by `usage`. `a + b` is the usage over both, and `sum()` takes any number of them.

    Attributes:
        totals: each item's weights, summed over all blocks: `(N,)`, float64, on the CPU.
    """

    totals: Tensor

    @property
    def shares(self) -> Tensor:
        """Return each item's part of all weight, `(N,)`: they sum to 1, or are 0 where nothing was used."""
        total = self.totals.sum()
        return self.totals / torch.where(total == 0, 1.0, total)

    @property
    def perplexity(self) -> float:
        """Return exp of the entropy of the shares: how many items, equally used, would be as even.

        It is N where all are used alike, 1 where one item has all weight, 0 where none has any.
        """
        if not self.totals.any():
            return 0.0
        return math.exp(torch.special.entr(self.shares).sum().item())

    @property
    def never_used(self) -> Tensor:
        """Return which items no block kept, a boolean mask `(N,)` on the CPU."""
        return self.totals == 0

    def __add__(self, other: "Usage") -> "Usage":
        if not isinstance(other, Usage):
            return NotImplemented
        if len(self.totals) != len(other.totals):
            raise ValueError(
                f"usage of {len(self.totals)} items and of {len(other.totals)} cannot be added: "
                "expected weights of the same memory"
            )
        return Usage(self.totals + other.totals)

    def __radd__(self, other: int) -> "Usage":
        """Return itself for the 0 that `sum()` begins with."""
        return self if other == 0 else NotImplemented

    def __repr__(self) -> str:
        return (
            f"Usage(num_items={len(self.totals)}, perplexity={self.perplexity:.1f}, "
            f"never_used={int(self.never_used.sum())})"
        )


def usage(weights: Tensor) -> Usage:
    """Return how much each item of a memory is used: shares, perplexity, items never used.

    A perplexity far below N says that few items do all the work. An item that no block uses is in no
    answer; with `renormalize` it gets no gradient either, and stays dead. Nothing here has a
    gradient.

    Args:
        weights: `(B, Q, N)` after shrinkage, as `BlockwiseMemory.read` and
            `BlockwiseMemory.address` give them, or any `(..., N)`; in a floating-point dtype.

    Returns:
        `Usage`, with `shares`, `perplexity` and `never_used`; over several batches, their sum. Of
        weights without a row, or all 0, no item is used.

    Raises:
        TypeError: for what is not a tensor of a floating-point dtype.
        ValueError: for weights without a dimension, of no items, negative, infinite or NaN.

    Examples:
        >>> import torch
        >>> first = usage(torch.tensor([[0.5, 0.0, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0]]))
        >>> first
        Usage(num_items=4, perplexity=1.8, never_used=2)
        >>> both = first + usage(torch.tensor([[0.0, 0.0, 0.0, 1.0]]))  # one more batch
        >>> both.shares, both.never_used
        (tensor([0.5000, 0.0000, 0.1667, 0.3333], dtype=torch.float64),
         tensor([False,  True, False, False]))
    """
    _check(weights)
    weights = weights.detach()
    if not ((weights >= 0) & (weights < math.inf)).all():
        raise ValueError(
            "weights hold a number that is negative, infinite or NaN: expected addressing weights, "
            "as memory.read(x) and memory.address(x) give them"
        )
    rows = weights.reshape(-1, weights.shape[-1])
    # Not every device has float64: the sum goes there only once it is on the CPU
    return Usage(rows.sum(dim=0, dtype=_sum_dtype(rows)).cpu().double())


def _check(weights: Tensor) -> None:
    if not isinstance(weights, Tensor):
        raise TypeError(
            f"weights are of {type(weights)}: expected a tensor (B, Q, N), as memory.read(x)[1] "
            "and memory.address(x) give it"
        )
    if not weights.is_floating_point():
        raise TypeError(
            f"weights are {weights.dtype}: expected a floating-point dtype; of counts or a mask, "
            "use weights.float()"
        )
    if weights.ndim == 0 or weights.shape[-1] == 0:
        raise ValueError(
            f"weights of shape {tuple(weights.shape)}: expected (B, Q, N), or any (..., N) with at "
            "least one item"
        )


def _sum_dtype(weights: Tensor) -> torch.dtype:
    return torch.promote_types(weights.dtype, torch.float32)
