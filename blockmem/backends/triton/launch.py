"""The Triton backend: which regime computes a call, and what both have in common.

Its functions are those of the PyTorch backend in `blockmem.backends.torch.chunks`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from blockmem.addressing import Addressing
from blockmem.backends.triton import launch_large, launch_small
from blockmem.backends.triton.tiles import largest_small

INTERPRETED = launch_small.INTERPRETED


def saved_size(queries: int, items: int, size: int, dtype: torch.dtype) -> int:
    """Return how many float32 numbers the forward saves for the backward."""
    if size <= largest_small(dtype):
        return launch_small.saved_size(queries)
    return launch_large.saved_size(queries, items, size, dtype)


def forward(
    x: Tensor,
    memory: Tensor,
    block_shape: Sequence[int],
    addressing: Addressing,
    save: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute the new map, in the memory format of `x`, and what the backward is to be given."""
    items, size = memory.shape
    out = torch.empty_like(x)
    count = saved_size(x.numel() // size, items, size, x.dtype) if save else 0
    saved = x.new_empty(count, dtype=torch.float32)
    if x.numel():
        regime = launch_small if size <= largest_small(x.dtype) else launch_large
        with _on(x.device):
            regime.forward(x, memory, tuple(block_shape), addressing, out, saved)
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
    grad_x = torch.empty_like(x) if needs[0] else None
    if not x.numel():
        return grad_x, torch.zeros_like(memory) if needs[1] else None
    grad_memory = memory.new_empty(memory.shape) if needs[1] else None
    regime = launch_small if memory.shape[1] <= largest_small(x.dtype) else launch_large
    with _on(x.device):
        regime.backward(grad, x, memory, saved, tuple(block_shape), addressing, grad_x, grad_memory)
    return grad_x, grad_memory


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels go to the current device, which need not be the tensors'."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return nullcontext()
