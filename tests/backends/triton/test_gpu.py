"""What only a GPU shows: how exactly its tensor cores multiply, and CUDA graphs."""

import math

import pytest
import torch

from blockmem import blockwise_memory
from blockmem.addressing import Addressing, reference
from tests.helpers.layers import clear_threshold, reference_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block", [(64, 1, 1), (16, 2, 2), (128, 1, 1), (32, 8, 8)])
def test_as_exact_as_the_plain_formula(block, dtype, precision):
    """Values and gradients within twice the formula's own error, at PyTorch's precision; thrice in
    bfloat16, whose products the formula makes of float32."""
    most = 3 if dtype == torch.bfloat16 else 2
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(2, block[0], 32, 32, generator=generator).to(dtype) for _ in range(2))
    memory = torch.randn(300, math.prod(block), generator=generator).to(dtype)
    addressing = Addressing(0.1, clear_threshold(x, memory, block, 0.1))
    expected = reference_gradients(x, memory, grad, block, addressing)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        errors = {}
        for backend in ("formula", "triton"):
            leaves = [t.detach().cuda().requires_grad_() for t in (x, memory)]
            if backend == "formula":
                out = reference(*leaves, block, addressing)
            else:
                out = blockwise_memory(*leaves, block, backend=backend, **addressing._asdict())
            found = out, *torch.autograd.grad(out, leaves, grad.cuda())
            errors[backend] = [
                ((value.double().cpu() - truth).norm() / truth.norm()).item()
                for value, truth in zip(found, expected, strict=True)
            ]
    finally:
        torch.set_float32_matmul_precision(before)
    for ours, theirs in zip(errors["triton"], errors["formula"], strict=True):
        assert ours <= most * theirs + 2**-22, errors


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("block", [(64, 1, 1), (64, 8, 8)])
def test_a_cuda_graph_replays_forward_and_backward(block, channels_last):
    x = torch.randn(2, 64, 32, 32, device="cuda", dtype=torch.bfloat16)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    memory = torch.randn(100, math.prod(block), device="cuda", dtype=torch.bfloat16)
    grad = torch.randn_like(x)
    x, memory = x.requires_grad_(), memory.requires_grad_()

    def step():
        out = blockwise_memory(x, memory, block, backend="triton")
        return out, *torch.autograd.grad(out, (x, memory), grad)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for one, other in zip(found, step(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("block", [(64, 1, 1), (64, 8, 8)])
def test_what_is_launched_again_is_launched_right(block):
    """The second call goes by what the first one compiled; the third has misaligned maps."""
    settings = Addressing(0.1, 0.0)
    for offset in (0, 0, 1, 1, 0):
        x = torch.randn(2 * 64 * 32 * 32 + offset, device="cuda")[offset:].view(2, 64, 32, 32)
        memory = torch.randn(100, math.prod(block), device="cuda")
        found = blockwise_memory(x, memory, block, backend="triton", **settings._asdict())
        expected = reference(x.double(), memory.double(), block, settings)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
