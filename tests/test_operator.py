"""The operator itself: gradients, registration, and what a call imports."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from blockmem import blockwise_memory
from blockmem.addressing import Addressing, reference


class Operators(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


SHAPES = {
    "1-d": ((2, 4, 6), (2, 3)),
    "2-d": ((2, 4, 4, 3), (2, 2, 3)),
    "3-d": ((1, 2, 2, 4, 2), (2, 2, 2, 1)),
}


def inputs(name, dtype=torch.float64, items=5):
    shape, block = SHAPES[name]
    size = torch.Size(block).numel()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, dtype=dtype, generator=generator, requires_grad=True)
    memory = torch.randn(items, size, dtype=dtype, generator=generator, requires_grad=True)
    return x, memory, block


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_to_second_order(name, temperature, renormalize, similarity):
    x, memory, block = inputs(name)
    settings = {"temperature": temperature, "renormalize": renormalize, "similarity": similarity}

    def layer(x, memory):
        return blockwise_memory(x, memory, block, **settings)

    assert torch.autograd.gradcheck(layer, (x, memory))
    assert torch.autograd.gradgradcheck(layer, (x, memory), fast_mode=True)


@pytest.mark.parametrize("frozen", ["x", "memory"])
def test_second_order_with_one_side_frozen(frozen):
    x, memory, block = inputs("2-d")
    (x if frozen == "x" else memory).requires_grad_(False)
    assert torch.autograd.gradgradcheck(lambda x, m: blockwise_memory(x, m, block), (x, memory))


def test_a_gradient_penalty_trains():
    """Double backward as WGAN-GP uses it: the norm of an input gradient, differentiated."""
    x, memory, block = inputs("2-d")
    found, expected = [], []
    for layer, result in [
        (lambda: blockwise_memory(x, memory, block), found),
        (lambda: reference(x, memory, block, Addressing(1.0, 1 / 5, False)), expected),
    ]:
        (grad,) = torch.autograd.grad(layer().square().sum(), x, create_graph=True)
        result.extend(torch.autograd.grad(grad.square().sum(), (x, memory)))
    assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of what torch 2.14 checks with
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(dtype, similarity, needs):
    x, memory, block = inputs("2-d", dtype)
    x, memory = (t.detach().requires_grad_(n) for t, n in zip((x, memory), needs, strict=True))
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_(needs[0])
    settings = (block, 1.0, 1 / 5, False, similarity, "torch")
    inputs_of_forward = (x, memory, *settings, True)
    torch.library.opcheck(torch.ops.blockmem.blockwise_memory.default, inputs_of_forward)
    _, saved = torch.ops.blockmem.blockwise_memory(*inputs_of_forward)
    torch.library.opcheck(
        torch.ops.blockmem.blockwise_memory_backward.default,
        (torch.randn_like(x), x.detach(), memory.detach(), saved.detach(), *settings, *needs),
    )


@pytest.mark.parametrize("norm", [0.0, 1e-30, 5e-20, 1e-19, 2e-19, 1e-10])
@pytest.mark.parametrize("side", ["x", "memory"])
def test_rows_of_hardly_any_length_have_finite_gradients(side, norm):
    """A row whose squared norm is no normal number counts as zero, in value and gradient alike."""
    generator = torch.Generator().manual_seed(0)
    x, memory = (torch.randn(3, 4, generator=generator) for _ in range(2))
    short = x if side == "x" else memory
    short[1] *= norm / short[1].norm()
    results = []
    for compute in (blockwise_memory, lambda *args: reference(*args, Addressing())):
        leaves = x[..., None].clone().requires_grad_(), memory.clone().requires_grad_()
        out = compute(*leaves, (4, 1))
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        assert found.isfinite().all()
        assert_close(found, expected)
    if norm <= 1e-19:
        gradient = results[0][1 if side == "x" else 2][1]
        # No gradient by way of the cosine; an item has that of the answers it is part of
        assert side == "memory" or (gradient == 0).all()
        assert gradient.abs().max() < 10


def test_a_call_does_not_import_the_compiler():
    """Nor does its backward: torch._dynamo and sympy are 900 modules. Triton waits for a GPU."""
    code = """
import sys, torch, blockmem
layer = blockmem.BlockwiseMemory(4, (2, 1))
layer(torch.randn(1, 2, 3)).sum().backward()
print([name for name in ("torch._dynamo", "sympy", "triton") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("in_graph", [False, True])
def test_operators_are_seen_where_something_looks_on(in_graph):
    """By a profile and by a mode; elsewhere they are not called, which is faster."""
    x, memory = torch.randn(1, 4, 4, 4), torch.randn(5, 16)
    x.requires_grad_(in_graph)
    with torch.profiler.profile() as profile:
        blockwise_memory(x, memory, (4, 2, 2))
    assert "blockmem::blockwise_memory" in {event.key for event in profile.key_averages()}
    with Operators() as seen:
        out = blockwise_memory(x, memory, (4, 2, 2))
        if in_graph:
            out.sum().backward()
    assert [name for name in seen.names if name.startswith("blockmem")] == [
        "blockmem::blockwise_memory",
        "blockmem::blockwise_memory_backward",
    ][: 1 + in_graph]
