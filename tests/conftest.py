"""What the tests of the library share: the ground truth, and inputs that keep clear of the kink."""

import torch
from torch import Tensor

from blockmem import divide
from blockmem.addressing import Addressing, address
from blockmem.ops import straight


def clear_threshold(
    x: Tensor, memory: Tensor, block_shape: tuple[int, ...], temperature: float
) -> float:
    """A threshold near 1/N in the widest gap between this input's probabilities.

    An item whose weight is close to the threshold is kept or dropped by rounding, and no two
    dtypes need agree. Values and gradients are compared where none is close.
    """
    how = Addressing(temperature, 0.0, False)
    probabilities = address(divide(x.double(), block_shape), memory.double(), how).flatten()
    low, high = 0.8 / memory.shape[0], 1.25 / memory.shape[0]
    near = probabilities[(probabilities > low) & (probabilities < high)].sort().values
    edges = torch.cat([near.new_tensor([low]), near, near.new_tensor([high])])
    widest = edges.diff().argmax()
    return ((edges[widest] + edges[widest + 1]) / 2).item()


def ground_truth(
    x: Tensor, memory: Tensor, grad: Tensor, block_shape: tuple[int, ...], how: Addressing
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and both gradients by the straight formula in float64."""
    x, memory = (t.detach().double().requires_grad_() for t in (x, memory))
    out = straight(x, memory, block_shape, how)
    return (out.detach(), *torch.autograd.grad(out, (x, memory), grad.double()))
