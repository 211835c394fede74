"""`blockwise_memory`, the layer as a function: its checks, and who computes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blockmem._dtypes import DTYPES, autocast, no_autocast
from blockmem._operator import Settings, call
from blockmem.addressing import SIMILARITIES, Addressing, address, reference, reference_read
from blockmem.backends.choice import BACKENDS
from blockmem.division import check_block_shape, check_fits, divide


def blockwise_memory(
    x: Tensor,
    memory: Tensor,
    block_shape: Sequence[int],
    *,
    temperature: float = 1.0,
    threshold: float | None = None,
    renormalize: bool = False,
    similarity: str = "cosine",
    backend: str = "auto",
) -> Tensor:
    r"""Replace every block of a map by what the memory answers to it.

    .. math::
        s_i = \frac{q \cdot m_i}{\|q\| \|m_i\| \tau}, \quad p = \mathrm{softmax}(s), \quad
        w_i = p_i \,[p_i \ge \theta], \quad \hat q = \sum_i w_i m_i

    for each block :math:`q` and the items :math:`m_1 \dots m_N` (DAAD, Eq. 1 and 2). A block or
    item of zeros has cosine 0. An item whose probability equals the threshold is kept.

    Args:
        x: map `(B, C, *S)` with 1, 2 or 3 spatial dimensions; float64, float32, bfloat16 or
            float16, any strides.
        memory: items `(N, D)` of the same dtype and device, `D = c * prod(s)`; each flattened in
            the order `(*s, c)`, channels fastest.
        block_shape: `(c, *s)`; `c` divides `C` and each of `s` its spatial size.
        temperature: :math:`\tau > 0`; 1 in the paper. A smaller one makes addressing sparser.
        threshold: :math:`\theta \ge 0`, below which an item is dropped; None is 1/N, 0 drops none.
        renormalize: make the weights that are left sum to 1, as MemAE does and DAAD does not.
        similarity: "cosine", or "dot" for :math:`s_i = q \cdot m_i / \tau`, as in the code of
            MemAE and HF2-VAD.
        backend: "torch", "triton" (GPUs; with TRITON_INTERPRET=1 in the environment, slowly, CPUs
            too) or "auto": Triton for maps on a GPU where it takes them, else PyTorch.

    Returns:
        A map like `x` in shape, dtype and memory format. Under autocast `x` and `memory` are cast
        to its dtype, and the result has it. Weights are computed in float32 whatever the dtype
        (float64 for float64).

    Raises:
        ValueError: for sizes that do not belong together, settings out of range, and what the
            backend asked for does not take; says why.
        TypeError: for dtypes that differ or are none of those above, and for settings that are
            tensors.

    Examples:
        >>> import torch
        >>> x, memory = torch.randn(2, 8, 16, 16), torch.randn(50, 2 * 4 * 4)
        >>> blockwise_memory(x, memory, (2, 4, 4)).shape
        torch.Size([2, 8, 16, 16])
    """
    check_backend(backend)
    addressing = check_addressing(temperature, threshold, renormalize, similarity)
    x, memory, block_shape = _check_tensors(x, memory, block_shape)
    if _is_exported():
        return reference(x, memory, block_shape, addressing)
    return call(x, memory, Settings(block_shape, *addressing, backend))


def blockwise_read(
    x: Tensor, memory: Tensor, block_shape: Sequence[int], addressing: Addressing
) -> tuple[Tensor, Tensor]:
    """Compute the map of `blockwise_memory`, and the weights `(B, Q, N)` it is read with.

    Both are differentiable. All weights are held.
    """
    return reference_read(*_check_tensors(x, memory, block_shape), addressing)


def blockwise_address(
    x: Tensor, memory: Tensor, block_shape: Sequence[int], addressing: Addressing
) -> Tensor:
    """Compute the addressing weights of every block, `(B, Q, N)` after shrinkage (Eq. 1)."""
    x, memory, block_shape = _check_tensors(x, memory, block_shape)
    with no_autocast(x.device.type):
        return address(divide(x, block_shape), memory, addressing)


def _check_tensors(
    x: Tensor, memory: Tensor, block_shape: Sequence[int]
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return map and memory as autocast wants them, and the block shape; checked."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is of {type(x)}: expected a tensor, a map (B, C, *S)")
    block_shape = check_block_shape(block_shape)
    check_fits(x.shape, block_shape)
    size = math.prod(block_shape)
    if memory.ndim != 2 or memory.shape[0] < 1 or memory.shape[1] != size:
        raise ValueError(
            f"memory of shape {tuple(memory.shape)} does not fit blocks {block_shape}: "
            f"expected (N, D) with N at least 1 and D = {size}, the elements of a block"
        )
    if x.device != memory.device:
        raise ValueError(
            f"x is on {x.device} and memory on {memory.device}: expected one device; "
            "move the layer or the map"
        )
    x, memory = autocast(x, memory)
    if x.dtype != memory.dtype or x.dtype not in DTYPES:
        raise TypeError(
            f"x is {x.dtype} and memory {memory.dtype}: expected one dtype of float64, float32, "
            "bfloat16 and float16; convert one of them, or use autocast"
        )
    return x, memory, block_shape


def check_addressing(
    temperature: float, threshold: float | None, renormalize: bool, similarity: str
) -> Addressing:
    """Return how to address.

    Raises:
        ValueError: for what is out of range.
        TypeError: for a temperature or threshold that is a tensor.
    """
    for name, value in (("temperature", temperature), ("threshold", threshold)):
        if isinstance(value, Tensor):
            raise TypeError(
                f"{name} is a tensor: expected a number; it has no gradient to learn by"
            )
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}: expected a finite number above 0")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ValueError(
            f"threshold {threshold}: expected None (for 1/N) or a number of at least 0, "
            "where 0 switches shrinkage off"
        )
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity {similarity!r}: expected 'cosine' or 'dot'")
    return Addressing(temperature, threshold, bool(renormalize), similarity)


def check_backend(backend: str) -> None:
    """Raise ValueError for a backend that does not exist."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(map(repr, BACKENDS))}")


def _is_exported() -> bool:
    """Whether torch.export, an ONNX exporter or torch.jit.trace looks on, which know no operator
    of ours."""
    if getattr(torch.compiler, "is_exporting", lambda: False)():  # newer than torch 2.6
        return True
    if torch.compiler.is_compiling():
        return False
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
