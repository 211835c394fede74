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
import torch.autograd.forward_ad
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from blockmem._dtypes import compute_dtype, no_autocast
from blockmem.addressing import Addressing, reference
from blockmem.backends.choice import choose
from blockmem.backends.torch import chunks


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
        temperature, threshold = (n.item() if isinstance(n, Tensor) else n for n in self[1:3])
        return Addressing(temperature, threshold, self.renormalize, self.similarity)


# The compiler makes one graph for all values of a tensor, but one for each value of a number. So
# there is an overload whose temperature and threshold are tensors of one element, on the CPU. Only
# graphs call it, where a number has changed (see `_autograd`).
NUMBERS = {"": "Scalar", ".annealed": "Tensor"}

library: Any = torch.library.Library("blockmem", "DEF")  # type: ignore[no-untyped-call]
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
FORWARD = torch.ops.blockmem.blockwise_memory.default
BACKWARD = torch.ops.blockmem.blockwise_memory_backward.default
FORWARD_ANNEALED = torch.ops.blockmem.blockwise_memory.annealed
BACKWARD_ANNEALED = torch.ops.blockmem.blockwise_memory_backward.annealed


def _forward(x: Tensor, memory: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Compute the new map, like `x`, and what the backend saves for the backward, if asked to."""
    settings, save = Settings(*rest[:-1]), rest[-1]
    addressing = settings.addressing
    with no_autocast(x.device.type):
        found: tuple[Tensor, Tensor] = choose(settings.backend, x, memory, addressing).forward(
            x, memory, settings.block_shape, addressing, save
        )
    return found


def _backward(
    grad: Tensor, x: Tensor, memory: Tensor, saved: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Compute gradients like `x` and `memory`; one that is not needed is an empty tensor."""
    settings, needs = Settings(*rest[:-2]), rest[-2:]
    addressing = settings.addressing
    with no_autocast(x.device.type):
        grad_x, grad_memory = choose(settings.backend, x, memory, addressing).backward(
            grad, x, memory, saved, settings.block_shape, addressing, needs
        )
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        memory.new_empty(0) if grad_memory is None else grad_memory,
    )


def _fake_forward(x: Tensor, memory: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    settings, save = Settings(*rest[:-1]), rest[-1]
    if isinstance(settings.temperature, Tensor):  # `_annealed` has chosen, so any will do
        settings = settings._replace(temperature=1.0, threshold=0.0)
    chosen = choose(settings.backend, x, memory, settings.addressing)
    items, size = memory.shape
    count = chosen.saved_size(x.numel() // size, items, size, x.dtype) if save else 0
    return torch.empty_like(x), x.new_empty(count, dtype=compute_dtype(x.dtype))


def _fake_backward(
    grad: Tensor, x: Tensor, memory: Tensor, saved: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    needs_x, needs_memory = rest[-2:]
    return (
        torch.empty_like(x) if needs_x else x.new_empty(0),
        torch.empty_like(memory) if needs_memory else memory.new_empty(0),
    )


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, memory: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            annealed = isinstance(settings.temperature, Tensor)
            forward = FORWARD_ANNEALED if annealed else FORWARD
            out, saved = forward(x, memory, *settings, True)
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
            return (*_reference_backward(grad, x, memory, ctx.settings, needs), None)
        with torch._C._AutoDispatchBelowAutograd():
            annealed = isinstance(ctx.settings.temperature, Tensor)
            backward = BACKWARD_ANNEALED if annealed else BACKWARD
            grads = backward(grad, x, memory, saved, *ctx.settings, *needs)
        return (*(g if needed else None for g, needed in zip(grads, needs, strict=True)), None)


def _autograd(x: Tensor, memory: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    if _sees_through(x, memory):
        return _reference_forward(x, memory, *rest)
    settings = Settings(*rest[:-1])
    if any(isinstance(number, torch.SymFloat) for number in settings):
        settings = _annealed(x, memory, settings)
    if torch.is_grad_enabled() and (x.requires_grad or memory.requires_grad):
        found: tuple[Tensor, Tensor] = _Function.apply(x, memory, settings)  # type: ignore[no-untyped-call]
        return found
    with torch._C._AutoDispatchBelowAutograd():
        annealed = isinstance(settings.temperature, Tensor)
        forward = FORWARD_ANNEALED if annealed else FORWARD
        return forward(x, memory, *settings, rest[-1])  # type: ignore[no-any-return]


def _annealed(x: Tensor, memory: Tensor, settings: Settings) -> Settings:
    """Put temperature and threshold into tensors, in operations that the compiler can rewrite.

    Whether the Triton backend takes the temperature is decided here, where it is known.
    """
    chosen = choose(settings.backend, x, memory, settings.addressing)
    one = torch.ones((), dtype=torch.float64)
    return settings._replace(
        temperature=one * settings.temperature,
        threshold=None if settings.threshold is None else one * settings.threshold,
        backend="torch" if chosen is chunks else "triton",
    )


def _sees_through(*tensors: Tensor) -> bool:
    """Whether a transform is at work that wants the operations of the formula, not ours."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or any(map(_is_dtensor, tensors))
    )


def _is_dtensor(tensor: Tensor) -> bool:
    if type(tensor) in (Tensor, torch.nn.Parameter):
        return False
    distributed = sys.modules.get("torch.distributed.tensor")  # costs seconds to import
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def _reference_forward(x: Tensor, memory: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    settings = Settings(*rest[:-1])
    out = reference(x, memory, settings.block_shape, settings.addressing)
    return out, x.new_empty(0, dtype=compute_dtype(x.dtype))


def _reference_backward(
    grad: Tensor, x: Tensor, memory: Tensor, settings: Settings, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients as `_backward` does, but differentiable for all it is given."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Cut off from what made them, so that the formula's graph ends here; but for
        # create_graph, where what is differentiated must lead on to it
        if not create_graph:
            x, memory = x.detach().requires_grad_(), memory.detach().requires_grad_()
        out = reference(x, memory, settings.block_shape, settings.addressing)
        sources = [t for t, needed in zip((x, memory), needs, strict=True) if needed]
        found = iter(torch.autograd.grad(out, sources, grad, create_graph=create_graph))
    grad_x, grad_memory = (next(found) if needed else None for needed in needs)
    return grad_x, grad_memory


def _vmap_backward(
    grad: Tensor, x: Tensor, memory: Tensor, saved: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    settings, needs = Settings(*rest[:-2]), rest[-2:]
    grad_x, grad_memory = _reference_backward(grad, x, memory, settings, needs)
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        memory.new_empty(0) if grad_memory is None else grad_memory,
    )


def _register(
    name: str, compute: Callable[..., Any], fake: Callable[..., Any], under_vmap: Callable[..., Any]
) -> None:
    for overload in NUMBERS:
        library.impl(name + overload, compute, "CompositeExplicitAutograd")
        library.impl(name + overload, under_vmap, "FuncTorchBatched")
        library.impl(name + overload, under_vmap, "Batched")  # of torch.autograd.functional
        torch.library.register_fake(f"blockmem::{name}{overload}", fake, lib=library)


_register("blockwise_memory", _forward, _fake_forward, _reference_forward)
_register("blockwise_memory_backward", _backward, _fake_backward, _vmap_backward)
library.impl("blockwise_memory", _autograd, "Autograd")


@register_flop_formula(torch.ops.blockmem.blockwise_memory)
def _forward_flops(x: Sequence[int], memory: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the FLOPs of two products of all queries and items, whatever a backend repeats."""
    return 2 * 2 * math.prod(x) * memory[0]


@register_flop_formula(torch.ops.blockmem.blockwise_memory_backward)
def _backward_flops(
    grad: Sequence[int], x: Sequence[int], memory: Sequence[int], saved: Sequence[int],
    *rest: Any, **_: Any,
) -> int:  # fmt: skip
    """Return the FLOPs of g M^T, of one product for the map, and of two for the memory."""
    needs_x, needs_memory = rest[-2:]
    return int(2 * math.prod(x) * memory[0] * (1 + needs_x + 2 * needs_memory))
