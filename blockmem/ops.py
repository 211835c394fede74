"""The operator `blockmem::read_blocks`: its schema, shapes, gradients, and what computes it.

`torch.library.custom_op` makes it one node for autograd, torch.compile and torch.export. Nothing of
its output is kept for the backward, so an in-place activation may follow it. The backward is an
operator too; its own gradient, for double backward, comes from the straight formula.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from blockmem import addressing, chunked, kernels
from blockmem.addressing import Addressing, no_autocast
from blockmem.division import assemble, divide

SETTINGS = "SymInt[] block_shape, float temperature, float threshold, bool renormalize, str backend"


def straight(x: Tensor, memory: Tensor, block_shape: Sequence[int], how: Addressing) -> Tensor:
    """The layer as its definition: divide, address, read, assemble. All weights at once."""
    with no_autocast(x.device.type):
        return assemble(addressing.read(divide(x, block_shape), memory, how), block_shape, x.shape)


def choose(backend: str, x: Tensor, memory: Tensor, how: Addressing) -> ModuleType:
    """The module that computes; ValueError where "triton" is asked for and cannot."""
    if backend == "torch" or (backend == "auto" and x.device.type != "cuda"):
        return chunked
    refusal = kernels.refusal(x, memory, how)
    if not refusal:
        return kernels.load()
    if backend == "auto":
        return chunked
    raise ValueError(f"backend 'triton': {refusal}; use 'auto' or 'torch'")


@torch.library.custom_op(
    "blockmem::read_blocks",
    mutates_args=(),
    schema=f"(Tensor x, Tensor memory, {SETTINGS}, bool keep) -> (Tensor, Tensor)",
)
def read_blocks(
    x: Tensor,
    memory: Tensor,
    block_shape: Sequence[int],
    temperature: float,
    threshold: float,
    renormalize: bool,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The new map, like `x`, and what the backend keeps for the backward, if asked to `keep`."""
    how = Addressing(temperature, threshold, renormalize)
    with no_autocast(x.device.type):
        found: tuple[Tensor, Tensor] = choose(backend, x, memory, how).read_blocks(
            x, memory, block_shape, how, keep
        )
    return found


@torch.library.custom_op(
    "blockmem::read_blocks_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor memory, Tensor kept, {SETTINGS}, "
    "bool needs_x, bool needs_memory) -> (Tensor, Tensor)",
)
def read_blocks_backward(
    grad: Tensor,
    x: Tensor,
    memory: Tensor,
    kept: Tensor,
    block_shape: Sequence[int],
    temperature: float,
    threshold: float,
    renormalize: bool,
    backend: str,
    needs_x: bool,
    needs_memory: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients like `x` and `memory`; an empty tensor in place of one that is not needed."""
    how = Addressing(temperature, threshold, renormalize)
    with no_autocast(x.device.type):
        grad_x, grad_memory = choose(backend, x, memory, how).read_blocks_backward(
            grad, x, memory, kept, block_shape, how, (needs_x, needs_memory)
        )
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        memory.new_empty(0) if grad_memory is None else grad_memory,
    )


@read_blocks.register_fake
def _(x: Tensor, memory: Tensor, block_shape: Sequence[int], *rest: Any) -> tuple[Tensor, Tensor]:
    *settings, backend, keep = rest
    chosen = choose(backend, x, memory, Addressing(*settings))
    items, size = memory.shape
    kept = chosen.kept_size(x.numel() // size, items, size, x.dtype, keep)
    return torch.empty_like(x), x.new_empty(kept, dtype=addressing.compute_dtype(x.dtype))


@read_blocks_backward.register_fake
def _(grad: Tensor, x: Tensor, memory: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    needs_x, needs_memory = settings[-2:]
    return (
        torch.empty_like(x) if needs_x else x.new_empty(0),
        torch.empty_like(memory) if needs_memory else memory.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, memory, *ctx.settings, _ = inputs
    ctx.save_for_backward(x, memory, output[1])
    # Or each backward would be given zeros as large as what is kept, which has no gradient.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * (3 + len(ctx.settings))
    x, memory, kept = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    grads = read_blocks_backward(grad, x, memory, kept, *ctx.settings, *needs)
    given = (value if needed else None for value, needed in zip(grads, needs, strict=True))
    return (*given, *(None for _ in ctx.settings), None)


read_blocks.register_autograd(_backward, setup_context=_setup_context)


def _setup_context_of_backward(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
) -> None:
    grad, x, memory, _, *ctx.settings = inputs
    ctx.save_for_backward(grad, x, memory)


def _double_backward(
    ctx: Any, grad_of_x: Tensor | None, grad_of_memory: Tensor | None
) -> tuple[Tensor | None, ...]:
    block_shape, temperature, threshold, renormalize, _, *needs = ctx.settings
    how = Addressing(temperature, threshold, renormalize)
    with torch.enable_grad():
        grad, x, memory = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        out = straight(x, memory, block_shape, how)
        sources = [tensor for tensor, needed in zip((x, memory), needs, strict=True) if needed]
        first = torch.autograd.grad(out, sources, grad, create_graph=True)
        upstream = [
            given
            for given, needed in zip((grad_of_x, grad_of_memory), needs, strict=True)
            if needed
        ]
        second = torch.autograd.grad(first, (grad, x, memory), upstream, allow_unused=True)
    return (*second, None, *(None for _ in ctx.settings))


read_blocks_backward.register_autograd(_double_backward, setup_context=_setup_context_of_backward)
