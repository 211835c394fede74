"""`blockwise_memory`, the layer as a function: checks, the autocast rule, the choice of backend."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blockmem import addressing, ops
from blockmem.addressing import AUTOCAST_DEVICES, Addressing, no_autocast
from blockmem.division import check_block_shape, check_fits, divide

BACKENDS = ("auto", "torch", "triton")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def blockwise_memory(
    x: Tensor,
    memory: Tensor,
    block_shape: Sequence[int],
    *,
    temperature: float = 1.0,
    threshold: float | None = None,
    renormalize: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""Every block of a map replaced by what the memory answers to it.

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
        temperature: :math:`\tau > 0`; 1 in the paper. Smaller makes addressing sparser.
        threshold: :math:`\theta \ge 0`, below which an item is dropped; None is 1/N, 0 drops none.
        renormalize: make the weights that are left sum to 1, as MemAE does and DAAD does not.
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

    >>> import torch
    >>> x, memory = torch.randn(2, 8, 16, 16), torch.randn(50, 2 * 4 * 4)
    >>> blockwise_memory(x, memory, (2, 4, 4)).shape
    torch.Size([2, 8, 16, 16])
    """
    check_backend(backend)
    x, memory, how = prepare(x, memory, block_shape, temperature, threshold, renormalize)
    return read_map(x, memory, block_shape, how, backend)


def read_map(
    x: Tensor, memory: Tensor, block_shape: Sequence[int], how: Addressing, backend: str
) -> Tensor:
    """`blockwise_memory` of what was checked."""
    if _needs_formula(x, memory):
        return ops.straight(x, memory, block_shape, how)
    settings = (how.temperature, how.threshold, how.renormalize, backend)
    keep = torch.is_grad_enabled() and (x.requires_grad or memory.requires_grad)
    out: Tensor = ops.read_blocks(x, memory, block_shape, *settings, keep)[0]
    return out


def blockwise_address(
    x: Tensor,
    memory: Tensor,
    block_shape: Sequence[int],
    *,
    temperature: float = 1.0,
    threshold: float | None = None,
    renormalize: bool = False,
) -> Tensor:
    """The addressing weights of every block, `(B, Q, N)` after shrinkage (Eq. 1).

    A diagnostic: all weights are materialised, in float32 (float64 for float64). Arguments and
    errors as for `blockwise_memory`.
    """
    x, memory, how = prepare(x, memory, block_shape, temperature, threshold, renormalize)
    with no_autocast(x.device.type):
        return addressing.address(divide(x, block_shape), memory, how)


def prepare(
    x: Tensor,
    memory: Tensor,
    block_shape: Sequence[int],
    temperature: float,
    threshold: float | None,
    renormalize: bool,
) -> tuple[Tensor, Tensor, Addressing]:
    """Map and memory as autocast wants them, and how to address; checked."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is of {type(x)}: expected a tensor, a map (B, C, *S)")
    check_block_shape(block_shape)
    check_fits(x.shape, block_shape)
    size = math.prod(block_shape)
    if memory.ndim != 2 or memory.shape[0] < 1 or memory.shape[1] != size:
        raise ValueError(
            f"memory of shape {tuple(memory.shape)} does not fit blocks {tuple(block_shape)}: "
            f"expected (N, D) with N at least 1 and D = {size}, the numbers in a block"
        )
    if x.device != memory.device:
        raise ValueError(
            f"x is on {x.device} and memory on {memory.device}: expected one device; "
            "move the layer or the map"
        )
    x, memory = _autocast(x, memory)
    if x.dtype != memory.dtype or x.dtype not in DTYPES:
        raise TypeError(
            f"x is {x.dtype} and memory {memory.dtype}: expected one dtype of float64, float32, "
            "bfloat16 and float16; convert one of them, or use autocast"
        )
    return x, memory, check_addressing(memory.shape[0], temperature, threshold, renormalize)


def check_addressing(
    num_items: int, temperature: float, threshold: float | None, renormalize: bool
) -> Addressing:
    """How to address, with the threshold's default 1/N; ValueError for what is out of range,
    TypeError for a tensor."""
    for name, value in (("temperature", temperature), ("threshold", threshold)):
        if isinstance(value, Tensor):
            raise TypeError(
                f"{name} is a tensor: expected a number; it has no gradient to learn by"
            )
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature {temperature}: expected a finite number above 0")
    if threshold is None:
        threshold = 1 / num_items
    if not 0 <= threshold < math.inf:
        raise ValueError(
            f"threshold {threshold}: expected None (for 1/N) or a number of at least 0, "
            "where 0 switches shrinkage off"
        )
    return Addressing(float(temperature), float(threshold), bool(renormalize))


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(map(repr, BACKENDS))}")


def _autocast(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the autocast dtype where it is on; float64 stays, as in PyTorch's own layers."""
    device = x.device.type
    if device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        return x, memory
    dtype = torch.get_autocast_dtype(device)
    x, memory = (t if t.dtype == torch.float64 else t.to(dtype) for t in (x, memory))
    return x, memory


def _needs_formula(x: Tensor, memory: Tensor) -> bool:
    """Whether the operations of the formula are wanted, rather than ours: by torch.export, the ONNX
    exporters and torch.jit.trace, which know no other, and by torch.func's transforms, which go
    through each."""
    if getattr(torch.compiler, "is_exporting", lambda: False)():  # newer than torch 2.6
        return True
    if torch.compiler.is_compiling():
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return traced or wrapped(x) or wrapped(memory)
