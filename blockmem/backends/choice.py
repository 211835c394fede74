"""Which backend computes."""

import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from blockmem.addressing import Addressing
from blockmem.backends.torch import chunks
from blockmem.backends.triton.support import unsupported_reason

BACKENDS = ("auto", "torch", "triton")
GIVEN_UP: set[torch.device] = (
    set()
)  # where a kernel did not compile; "auto" leaves these to PyTorch


def choose(backend: str, x: Tensor, memory: Tensor, addressing: Addressing) -> ModuleType:
    """Return the module that computes.

    Raises:
        ValueError: where "triton" is asked for and cannot; says why.
    """
    if backend == "torch" or (backend == "auto" and x.device.type != "cuda"):
        return chunks
    if backend == "auto" and x.device in GIVEN_UP:
        return chunks
    reason = unsupported_reason(x, memory, addressing)
    if not reason:
        return load_triton()
    if backend == "auto":
        return chunks
    raise ValueError(f"backend 'triton': {reason}; use 'auto' or 'torch'")


def give_up(device: torch.device, error: Exception) -> None:
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
