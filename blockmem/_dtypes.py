"""Rules of dtypes: what is computed in which, what autocast does, and how float32 is multiplied."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Asked once, here: torch.compile of torch 2.6 cannot trace the question.
AUTOCAST_DEVICES = frozenset(filter(is_autocast_available, ("cpu", "cuda", "mps", "xpu", "hpu")))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64, else float32: norms, logits and sums are never in half."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def smallest_square(dtype: torch.dtype) -> float:
    """Return the squared norm up to which a row counts as zero, in a `compute_dtype`.

    The square of a smaller norm is no normal number, and what is divided by it overflows.
    """
    return 2.0**-1022 if dtype == torch.float64 else 2.0**-126


def no_autocast(device: str) -> AbstractContextManager[object]:
    """Keep autocast, where a device has it, from lowering the dtype of what is computed inside."""
    if device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def autocast(*tensors: Tensor) -> Iterable[Tensor]:
    """Cast to the autocast dtype where autocast is on; float64 stays, as in PyTorch's layers."""
    device = tensors[0].device.type
    if device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [t if t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def tf32_allowed() -> bool:
    """Return whether PyTorch's settings let a GPU multiply float32 matrices in TensorFloat-32.

    PyTorch has an older and a newer way to set it. Where the newer one was used, the question in
    the older way raises.
    """
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:
        return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")
