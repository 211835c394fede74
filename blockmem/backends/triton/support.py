"""What the Triton backend takes, and why it does not take the rest."""

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from blockmem.addressing import MAX_EXPONENT, Addressing

OLDEST_TRITON = (3, 3)  # the first whose kernels take tuples
MOST_ITEMS = 2**14  # a row of the table of weights is held on the chip


def unsupported_reason(x: Tensor, memory: Tensor, addressing: Addressing) -> str | None:
    """Return why the kernels do not take this, or None where they do."""
    if x.dtype == torch.float64:
        return "float64 is not supported; convert to float32"
    if not addressing.cosine:
        return (
            f"similarity {addressing.similarity!r} is not supported: the kernels have cosines alone"
        )
    if not addressing.bounded:
        return (
            f"temperature {addressing.temperature:g} is below {1 / MAX_EXPONENT:g}, where exp of a logit "
            "may overflow"
        )
    if memory.shape[0] > MOST_ITEMS:
        return f"{memory.shape[0]} items are more than {MOST_ITEMS}"
    return _no_triton() or _wrong_device(x)


@cache
def _no_triton() -> str | None:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "Triton is not installed"
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"Triton {found} is older than {oldest}; install a newer one"
    return None


def _wrong_device(x: Tensor) -> str | None:
    if x.device.type == "cuda":
        return _wrong_gpu(x.device.index or 0)
    if x.device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f"x is on {x.device}: expected a GPU, or for a try on the CPU TRITON_INTERPRET=1 in "
            "the environment before blockmem is imported"
        )
    if not _interpreted():
        return "TRITON_INTERPRET was set after the kernels had been imported; set it before"
    if x.dtype == torch.bfloat16:
        return "Triton's interpreter does not multiply bfloat16; convert to float32 or float16"
    return None


@cache
def _wrong_gpu(index: int) -> str | None:
    if torch.version.hip:
        name = torch.cuda.get_device_properties(index).gcnArchName
        if not name.startswith("gfx942"):
            return f"GPU {index} is {name}: there are tiles for gfx942 alone"
    elif torch.cuda.get_device_capability(index) < (8, 0):
        return f"GPU {index} is older than compute capability 8.0"
    return None


def _interpreted() -> bool:
    """Whether the kernels were defined for Triton's interpreter."""
    from blockmem.backends.triton import launch

    return launch.INTERPRETED
