"""Which backend computes."""

from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

from blockmem.addressing import Addressing
from blockmem.backends.torch import chunks
from blockmem.backends.triton.support import unsupported_reason

BACKENDS = ("auto", "torch", "triton")


def choose(backend: str, x: Tensor, memory: Tensor, addressing: Addressing) -> ModuleType:
    """Return the module that computes.

    Raises:
        ValueError: where "triton" is asked for and cannot; says why.
    """
    if backend == "torch" or (backend == "auto" and x.device.type != "cuda"):
        return chunks
    reason = unsupported_reason(x, memory, addressing)
    if not reason:
        return load_triton()
    if backend == "auto":
        return chunks
    raise ValueError(f"backend 'triton': {reason}; use 'auto' or 'torch'")


@cache
def load_triton() -> ModuleType:
    """Return the launchers of the Triton backend. They are imported late: Triton takes a while."""
    return import_module("blockmem.backends.triton.launch")
