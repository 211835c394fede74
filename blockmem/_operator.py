"""The operator `blockmem::blockwise_memory`: its schema, shapes, gradients and FLOPs.

It is one node for autograd, torch.compile and the tools that watch operators. It is registered with
`torch.library.Library` itself: `torch.library.custom_op` costs three times as much a call and
imports the compiler at the first one. The backward is an operator too.

Where a transform must see through the operator, `addressing.reference` stands in for it: forward
mode, torch.func, DTensor, and gradients that are to be differentiated again. It is right under any
transform, and holds all weights at once.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import SymFloat, Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from blockmem._dtypes import compute_dtype, no_autocast
from blockmem.addressing import Addressing, reference
from blockmem.backends import choice

Pair = tuple[Tensor, Tensor]
PLAIN = (Tensor, torch.nn.Parameter)


class Settings(NamedTuple):
    """What follows the tensors in both schemas, in their order."""

    block_shape: Sequence[int]
    temperature: Any
    threshold: Any
    renormalize: bool
    similarity: str
    backend: str

    @property
    def addressing(self) -> Addressing:
        temperature, threshold = self.temperature, self.threshold
        if isinstance(temperature, Tensor):
            temperature = temperature.item()
            threshold = None if threshold is None else threshold.item()
        return Addressing(temperature, threshold, self.renormalize, self.similarity)


# The compiler makes one graph for all values of a tensor, but one for each value of a number. So
# there is an overload whose temperature and threshold are tensors of one element, on the CPU. Only
# graphs call it, where a number has changed (see `_annealed`).
NUMBERS = {"": "Scalar", ".annealed": "Tensor"}

library: Any = torch.library.Library("blockmem", "DEF")
for _overload, _type in NUMBERS.items():
    _settings = (
        f"SymInt[] block_shape, {_type} temperature, {_type}? threshold, bool renormalize, "
        "str similarity, str backend"
    )
    library.define(
        f"blockwise_memory{_overload}(Tensor x, Tensor memory, {_settings}, bool save) "
        "-> (Tensor, Tensor)"
    )
    library.define(
        f"blockwise_memory_backward{_overload}(Tensor grad, Tensor x, Tensor memory, "
        f"Tensor saved, {_settings}, bool needs_x, bool needs_memory) -> (Tensor, Tensor)"
    )
FORWARD = torch.ops.blockmem.blockwise_memory
BACKWARD = torch.ops.blockmem.blockwise_memory_backward


def call(x: Tensor, memory: Tensor, settings: Settings) -> Tensor:
    """Return what the operator computes.

    Where nothing looks on, it is not called by way of PyTorch's dispatcher: that takes some
    microseconds, which small maps would feel.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._autograd._profiler_enabled()
        or not _unobserved(x, memory)
    ):
        if not torch.compiler.is_compiling():
            _tell_flop_counters()
        out: Tensor = FORWARD.default(x, memory, *settings, False)[0]
        return out
    return _differentiable(x, memory, settings, False)[0]


def _unobserved(*tensors: Tensor) -> bool:
    """Whether no mode and no subclass of Tensor wants to be told of operators."""
    return torch._C._len_torch_dispatch_stack() == 0 and all(type(t) in PLAIN for t in tensors)


def _differentiable(x: Tensor, memory: Tensor, settings: Settings, save: bool) -> Pair:
    """Compute the new map and what is saved for the backward, for autograd and transforms."""
    if _sees_through(x, memory):
        return _reference_forward(x, memory, settings)
    if isinstance(settings.temperature, SymFloat) or isinstance(settings.threshold, SymFloat):
        settings = _annealed(x, memory, settings)
    if torch.is_grad_enabled() and (x.requires_grad or memory.requires_grad):
        found: Pair = _BlockwiseMemory.apply(x, memory, settings)  # type: ignore[no-untyped-call]
        return found
    return _forward(x, memory, settings, save)


class _BlockwiseMemory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, memory: Tensor, settings: Settings) -> Pair:
        out, saved = _forward(x, memory, settings, True)
        ctx.settings = settings
        # Nothing of the output is saved, so an in-place activation may follow
        ctx.save_for_backward(x, memory, saved)
        ctx.mark_non_differentiable(saved)
        # Or each backward would be given zeros as large as what is saved
        ctx.set_materialize_grads(False)
        return out, saved

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None
        x, memory, saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or _sees_through(grad, x, memory):
            grads = _reference_backward(grad, x, memory, ctx.settings, needs)
        else:
            grads = _backward(grad, x, memory, saved, ctx.settings, needs)
        return grads[0] if needs[0] else None, grads[1] if needs[1] else None, None


def _forward(x: Tensor, memory: Tensor, settings: Settings, save: bool) -> Pair:
    if _unobserved(x, memory):
        return _compute(x, memory, settings, save)
    return _below_autograd(FORWARD, (x, memory), settings, save)


def _backward(
    grad: Tensor,
    x: Tensor,
    memory: Tensor,
    saved: Tensor,
    settings: Settings,
    needs: Sequence[bool],
) -> Pair:
    if _unobserved(grad, x, memory, saved):
        return _compute_backward(grad, x, memory, saved, settings, needs)
    return _below_autograd(BACKWARD, (grad, x, memory, saved), settings, *needs)


def _below_autograd(
    operator: Any, tensors: Sequence[Tensor], settings: Settings, *flags: bool
) -> Pair:
    overload = operator.annealed if isinstance(settings.temperature, Tensor) else operator.default
    with torch._C._AutoDispatchBelowAutograd():
        found: Pair = overload(*tensors, *settings, *flags)
    return found


def _compute(x: Tensor, memory: Tensor, settings: Settings, save: bool) -> Pair:
    """Compute the new map, like `x`, and what the backend saves for the backward, if asked to."""
    shape, addressing = settings.block_shape, settings.addressing
    with no_autocast(x.device.type):
        return choice.forward(settings.backend, x, memory, shape, addressing, save)


def _compute_backward(
    grad: Tensor,
    x: Tensor,
    memory: Tensor,
    saved: Tensor,
    settings: Settings,
    needs: Sequence[bool],
) -> Pair:
    """Compute gradients like `x` and `memory`; one that is not needed is an empty tensor."""
    call = settings.block_shape, settings.addressing, (needs[0], needs[1])
    with no_autocast(x.device.type):
        grads = choice.backward(settings.backend, grad, x, memory, saved, *call)
    return _filled(grads, x, memory)


def _filled(grads: Sequence[Tensor | None], x: Tensor, memory: Tensor) -> Pair:
    grad_x, grad_memory = grads
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        memory.new_empty(0) if grad_memory is None else grad_memory,
    )


# What stands in where transforms see through


def _sees_through(*tensors: Tensor) -> bool:
    """Whether a transform is at work that wants the operations of the formula, not ours."""
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is not None:
        return True
    for tensor in tensors:
        if functorch.is_legacy_batchedtensor(tensor):  # of torch.autograd.functional
            return True
        # Not asked of torch.autograd.forward_ad, which knows no level that a graph enters
        if torch._VF._unpack_dual(tensor, level=0)[1] is not None:
            return True
        if type(tensor) not in PLAIN and is_dtensor(tensor):
            return True
    return False


def is_dtensor(tensor: Tensor) -> bool:
    """Whether every process holds a part of the tensor."""
    distributed = sys.modules.get("torch.distributed.tensor")  # costs seconds to import
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def _reference_forward(x: Tensor, memory: Tensor, settings: Settings) -> Pair:
    out = reference(x, memory, settings.block_shape, settings.addressing)
    return out, x.new_empty(0, dtype=compute_dtype(x.dtype))


def _reference_backward(
    grad: Tensor, x: Tensor, memory: Tensor, settings: Settings, needs: Sequence[bool]
) -> Pair:
    """Compute the gradients as `_compute_backward` does, but differentiable in all it is given."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not create_graph:  # else what is differentiated must lead on to what made it
            x, memory = x.detach().requires_grad_(), memory.detach().requires_grad_()
        out = reference(x, memory, settings.block_shape, settings.addressing)
        sources = [t for t, needed in zip((x, memory), needs, strict=True) if needed]
        found = iter(torch.autograd.grad(out, sources, grad, create_graph=create_graph))
    return _filled([next(found) if needed else None for needed in needs], x, memory)


def _annealed(x: Tensor, memory: Tensor, settings: Settings) -> Settings:
    """Put temperature and threshold into tensors, in operations that the compiler can rewrite.

    Whether the Triton backend takes the temperature is decided here, where it is known.
    """
    one = torch.ones((), dtype=torch.float64)
    return settings._replace(
        temperature=one * settings.temperature,
        threshold=None if settings.threshold is None else one * settings.threshold,
        backend=choice.traced(settings.backend, x, memory, settings.addressing),
    )


# What is registered: the functions above, with settings unpacked as in the schemas


def _fake(x: Tensor, memory: Tensor, settings: Settings, save: bool) -> Pair:
    if isinstance(settings.temperature, Tensor):  # `_annealed` has chosen, so any will do
        settings = settings._replace(temperature=1.0, threshold=0.0)
    chosen = choice.choose(settings.backend, x, memory, settings.addressing)
    count = choice.saved_size(chosen, x, memory) if save else 0
    return torch.empty_like(x), x.new_empty(count, dtype=compute_dtype(x.dtype))


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    memory: Tensor,
    saved: Tensor,
    settings: Settings,
    needs: Sequence[bool],
) -> Pair:
    likes = [torch.empty_like(t) if n else None for t, n in zip((x, memory), needs, strict=True)]
    return _filled(likes, x, memory)


def _register(key: str, forward: Callable[..., Pair], backward: Callable[..., Pair] | None) -> None:
    def unpacked_forward(x: Tensor, memory: Tensor, *rest: Any) -> Pair:
        return forward(x, memory, Settings(*rest[:-1]), rest[-1])

    def unpacked_backward(
        grad: Tensor, x: Tensor, memory: Tensor, saved: Tensor, *rest: Any
    ) -> Pair:
        assert backward is not None
        return backward(grad, x, memory, saved, Settings(*rest[:-2]), rest[-2:])

    for overload in NUMBERS:
        names: dict[str, Callable[..., Pair]] = {f"blockwise_memory{overload}": unpacked_forward}
        if backward is not None:
            names[f"blockwise_memory_backward{overload}"] = unpacked_backward
        for name, function in names.items():
            if key == "fake":
                torch.library.register_fake(f"blockmem::{name}", function, lib=library)
            else:
                library.impl(name, function, key)


_register("CompositeExplicitAutograd", _compute, _compute_backward)
_register("fake", _fake, _fake_backward)
_register("Autograd", _differentiable, None)
_register(
    "FuncTorchBatched",
    lambda x, memory, settings, save: _reference_forward(x, memory, settings),
    lambda grad, x, memory, saved, settings, needs: _reference_backward(
        grad, x, memory, settings, needs
    ),
)


def _tell_flop_counters() -> None:
    """Give the formulas below to PyTorch, and to counters that count already.

    This is not done when blockmem is imported: the counters' module imports Triton.
    """
    counters = sys.modules.get("torch.utils.flop_counter")
    if counters is None:
        return
    for operator, flops in ((FORWARD, _flops), (BACKWARD, _flops_backward)):
        if operator not in counters.flop_registry:
            counters.register_flop_formula(operator)(flops)
        for mode in _get_current_dispatch_mode_stack():
            own = getattr(getattr(mode, "counter", mode), "flop_registry", {})
            own.setdefault(operator, counters.flop_registry[operator])


def _flops(x: Sequence[int], memory: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the FLOPs of two products of all queries and items, whatever a backend repeats."""
    return 2 * 2 * math.prod(x) * memory[0]


def _flops_backward(
    grad: Sequence[int], x: Sequence[int], memory: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Return the FLOPs of g M^T, of one product for the map, and of two for the memory."""
    needs_x, needs_memory = rest[-2:]
    return int(2 * math.prod(x) * memory[0] * (1 + needs_x + 2 * needs_memory))
