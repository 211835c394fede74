"""What every backend needs: norms, and what is worth saving for the backward."""

import math

import torch
from torch import Tensor

from blockmem._dtypes import compute_dtype, smallest_square

CHUNK_WEIGHTS = 2**20  # logits held at once: 4 MB in float32

SMALLEST_NORM = {
    dtype: math.sqrt(smallest_square(dtype)) for dtype in (torch.float32, torch.float64)
}


def inverse_norms(rows: Tensor) -> Tensor:
    """Return 1/|row| `(R,)` in `compute_dtype`, and 0 for a row that counts as zero."""
    dtype = compute_dtype(rows.dtype)
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    return torch.threshold_(norm, SMALLEST_NORM[dtype], math.inf).reciprocal_()


class KernelFailure(RuntimeError):
    """A kernel of the Triton backend does not compile on this GPU, or does not fit it."""
