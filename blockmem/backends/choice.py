"""Which backend computes, and PyTorch's where a Triton kernel does not compile."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from blockmem._dtypes import compute_dtype
from blockmem.addressing import Addressing
from blockmem.backends.common import KernelFailure
from blockmem.backends.torch import chunks
from blockmem.backends.triton.support import unsupported_reason

BACKENDS = ("auto", "torch", "triton")
TRACED = "traced"  # what "auto" becomes in a graph that was compiled for the Triton backend
# Where a kernel did not compile; "auto" leaves these to PyTorch
GIVEN_UP: set[torch.device] = set()


def choose(backend: str, x: Tensor, memory: Tensor, addressing: Addressing) -> ModuleType:
    """Return the module that computes, unless it is given up, and that says how much is saved.

    Raises:
        ValueError: where "triton" is asked for and cannot; says why.
    """
    if backend == "torch" or (backend == "auto" and x.device.type != "cuda"):
        return chunks
    reason = None if backend == TRACED else unsupported_reason(x, memory, addressing)
    if not reason:
        return load_triton()
    if backend == "auto":
        return chunks
    raise ValueError(f"backend 'triton': {reason}; use 'auto' or 'torch'")


def traced(backend: str, x: Tensor, memory: Tensor, addressing: Addressing) -> str:
    """Return the backend's name in a graph that is called with other temperatures too."""
    if choose(backend, x, memory, addressing) is chunks:
        return "torch"
    return "triton" if backend == "triton" else TRACED


def saved_size(chosen: ModuleType, x: Tensor, memory: Tensor) -> int:
    """Return how many numbers `chosen` saves for the backward."""
    items, size = memory.shape
    count: int = chosen.saved_size(x.numel() // size, items, size, x.dtype)
    return count


def forward(
    backend: str,
    x: Tensor,
    memory: Tensor,
    block_shape: Sequence[int],
    addressing: Addressing,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the new map, like `x`, and what the backend saves for the backward, if asked to."""
    chosen = choose(backend, x, memory, addressing)
    found: tuple[Tensor, Tensor] | None = _tried(
        lambda: chosen.forward(x, memory, block_shape, addressing, save),
        *(backend, chosen, x, memory, addressing),
    )
    if found is not None:
        return found
    out = chunks.forward(x, memory, block_shape, addressing, False)[0]
    # As large as a compiled graph expects. Nobody reads it: `backward` computes anew from now on
    count = saved_size(chosen, x, memory) if save else 0
    return out, x.new_empty(count, dtype=compute_dtype(x.dtype))


def backward(
    backend: str,
    grad: Tensor,
    x: Tensor,
    memory: Tensor,
    saved: Tensor,
    block_shape: Sequence[int],
    addressing: Addressing,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of `forward` for `x` and `memory`, as far as `needs` asks for each."""
    chosen = choose(backend, x, memory, addressing)
    found: tuple[Tensor | None, Tensor | None] | None = _tried(
        lambda: chosen.backward(grad, x, memory, saved, block_shape, addressing, needs),
        *(backend, chosen, x, memory, addressing),
    )
    if found is not None:
        return found
    again = chunks.forward(x, memory, block_shape, addressing, True)[1]
    return chunks.backward(grad, x, memory, again, block_shape, addressing, needs)


def _tried(
    compute: Callable[[], Any],
    backend: str,
    chosen: ModuleType,
    x: Tensor,
    memory: Tensor,
    addressing: Addressing,
) -> Any:
    """Return what the chosen backend computes, or None where PyTorch's is to stand in for it.

    A graph is compiled for a temperature, and may be called with one that Triton does not take.
    """
    if backend == "triton" or chosen is chunks:
        return compute()
    refused = backend == TRACED and unsupported_reason(x, memory, addressing) is not None
    if refused or x.device in GIVEN_UP:
        return None
    try:
        return compute()
    except KernelFailure as error:
        _give_up(x.device, error)
        return None


def _give_up(device: torch.device, error: Exception) -> None:
    """Take the PyTorch backend on `device` from now on, where the choice is "auto"; warn once."""
    if device not in GIVEN_UP:
        GIVEN_UP.add(device)
        warnings.warn(
            f"blockmem: {error}; from now on backend 'auto' is PyTorch's on {device}, which is slower "
            f"there. Give backend='torch' to say so yourself, and report this with your GPU and the "
            f"version of triton",
            stacklevel=2,
        )


@cache
def load_triton() -> ModuleType:
    """Return the launchers of the Triton backend. They are imported late: Triton takes a while."""
    return import_module("blockmem.backends.triton.launch")
