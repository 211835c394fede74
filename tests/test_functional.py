import numpy as np
import pytest
import torch
from torch.testing import assert_close

from blockmem import BlockwiseMemory, blockwise_memory
from blockmem.addressing import Addressing, reference


def call(
    x=(1, 4, 4, 4), memory=(10, 16), block=(4, 2, 2), x_dtype=None, memory_dtype=None, **settings
):
    return blockwise_memory(
        torch.zeros(x, dtype=x_dtype), torch.zeros(memory, dtype=memory_dtype), block, **settings
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"memory": (10, 15)}, r"memory of shape \(10, 15\) .* expected \(N, D\) .* D = 16"),
        ({"memory": (0, 16)}, r"memory of shape \(0, 16\) .* N at least 1"),
        ({"memory": (16,)}, r"memory of shape \(16,\)"),
        ({"temperature": 0}, "temperature 0: expected a finite number above 0"),
        ({"temperature": float("nan")}, "temperature nan: expected a finite number above 0"),
        (
            {"threshold": -0.1},
            r"threshold -0.1: expected None \(for 1/N\) or a number of at least 0",
        ),
        ({"threshold": float("nan")}, "threshold nan: expected None"),
        ({"backend": "cuda"}, "backend 'cuda': expected one of 'auto', 'torch'"),
        ({"x": (4, 4, 4)}, r"needs a map \(B, C, \*S\) of 4 dimensions, got 3"),
        (
            {"x": (4, 4), "block": (4, 1)},
            r"got 2; vectors \(B, C\) are maps of length 1: pass x\[..., None\]",
        ),
        ({"similarity": "l2"}, "similarity 'l2': expected 'cosine' or 'dot'"),
    ],
)
def test_values_out_of_range_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        call(**arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"x_dtype": torch.float16},
            "x is torch.float16 and memory torch.float32: .* or use autocast",
        ),
        (
            {"x_dtype": torch.int64, "memory_dtype": torch.int64},
            "expected one dtype of float64, float32, bfloat16 and float16",
        ),
        ({"x_dtype": torch.float8_e5m2, "memory_dtype": torch.float8_e5m2}, "float8_e5m2 .* of"),
        ({"temperature": torch.tensor(1.0)}, "temperature is a tensor: expected a number"),
        ({"threshold": torch.tensor(0.1)}, "threshold is a tensor: expected a number"),
    ],
)
def test_what_is_of_another_type_is_named(arguments, text):
    with pytest.raises(TypeError, match=text):
        call(**arguments)


def test_a_map_that_is_no_tensor_is_named():
    with pytest.raises(TypeError, match=r"x is of <class 'numpy.ndarray'>: expected a tensor"):
        blockwise_memory(np.zeros((1, 4, 4, 4)), torch.zeros(10, 16), (4, 2, 2))


def test_devices_that_differ_are_named():
    with pytest.raises(ValueError, match="x is on meta and memory on cpu: expected one device"):
        blockwise_memory(torch.zeros(1, 4, 4, 4, device="meta"), torch.zeros(10, 16), (4, 2, 2))


def test_shapes_on_the_meta_device():
    layer = BlockwiseMemory(10, (4, 2, 2), device="meta")
    out = layer(torch.zeros(2, 4, 8, 8, device="meta"))
    assert out.shape == (2, 4, 8, 8)
    assert out.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_both_and_returns_its_dtype(dtype):
    x = torch.randn(2, 4, 4, 4, requires_grad=True)
    memory = torch.randn(10, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        out = blockwise_memory(x, memory, (4, 2, 2), threshold=0.0)
    assert out.dtype == dtype
    addressing = Addressing(1.0, 0.0, False)
    expected = reference(x.to(dtype), memory.to(dtype), (4, 2, 2), addressing)
    assert_close(out, expected)  # weights in float32, not in the autocast dtype
    grads = torch.autograd.grad(out.float().sum(), (x, memory))
    expected = torch.autograd.grad(expected.float().sum(), (x, memory))
    for grad, truth in zip(grads, expected, strict=True):
        assert_close(grad, truth, rtol=0, atol=0.01 * truth.abs().max().item())
    assert {grad.dtype for grad in grads} == {torch.float32}


def test_backward_under_autocast_computes_in_float32():
    x, memory = torch.randn(2, 4, 4, 4, requires_grad=True), torch.randn(10, 16, requires_grad=True)
    expected = torch.autograd.grad(blockwise_memory(x, memory, (4, 2, 2)).sum(), (x, memory))
    out = blockwise_memory(x, memory, (4, 2, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(out.sum(), (x, memory))
    assert all(map(torch.equal, found, expected))


def test_autocast_leaves_float64():
    x, memory = torch.randn(2, 4, 4, 4).double(), torch.randn(10, 16).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert blockwise_memory(x, memory, (4, 2, 2)).dtype == torch.float64


def test_autocast_does_not_hide_a_mix_with_float64():
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(TypeError, match=r"x is torch.float64 and memory torch.bfloat16"),
    ):
        call(x_dtype=torch.float64)
