"""The battery every backend must pass: values and gradients against the formula in float64.

Inputs keep clear of the kink (see `clear_threshold`), so that what is left is rounding.
"""

import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from blockmem import blockwise_memory, divide
from blockmem.addressing import Addressing, address, combine
from tests.helpers.layers import INTERPRETED, clear_threshold, places, reference_gradients

# Relative to the largest entry: rounding of inputs and results in the dtype, sums in float32.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}


def skip_unless_taken(place, dtype=torch.float32, temperature=1.0):
    """Triton's edges; what it refuses is a test of its own."""
    if place.backend != "triton":
        return
    if dtype == torch.float64 or temperature < 1 / 64:
        pytest.skip("not of the Triton backend")
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter does not multiply bfloat16")


CASES = {  # name: map shape, block shape, items
    "pixels": ((2, 32, 6, 10), (32, 1, 1), 70),
    "blocks": ((2, 6, 8, 12), (6, 4, 3), 33),
    "channel groups": ((3, 8, 4, 4), (2, 2, 2), 20),
    "one block": ((2, 4, 6, 6), (4, 6, 6), 17),
    "wide blocks": ((1, 8, 32, 32), (8, 16, 16), 40),
    "1-d": ((2, 6, 35), (3, 7), 21),
    "3-d": ((1, 4, 4, 6, 6), (2, 2, 3, 2), 19),
    "odd sizes": ((3, 5, 7, 9), (5, 7, 3), 13),
    "one item": ((2, 4, 4, 4), (4, 2, 2), 1),
    "empty batch": ((0, 4, 4, 4), (4, 2, 2), 5),
}


def run(x, memory, grad, block, addressing, place):
    x, grad = (move(t, place.device) for t in (x.detach(), grad))
    x, memory = x.requires_grad_(), memory.detach().to(place.device).requires_grad_()
    with place(), poisoned():
        out = blockwise_memory(x, memory, block, backend=place.backend, **addressing._asdict())
        return out, *torch.autograd.grad(out, (x, memory), grad)


def move(x, device):
    """To a device, with the strides it has."""
    if device == "cpu":
        return x
    base = torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    return base.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


@contextmanager
def poisoned():
    """Memory that was allocated and not written is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check(x, memory, grad, block, addressing, place):
    found = run(x, memory, grad, block, addressing, place)
    expected = reference_gradients(x, memory, grad, block, addressing)
    for value, truth, like in zip(found, expected, (x, x, memory), strict=True):
        assert value.dtype == like.dtype
        scale = truth.abs().max().item() if truth.numel() else 0.0
        rounding = TOLERANCE[x.dtype] * max(1, 0.05 / addressing.temperature)  # of logits
        tolerance = rounding * max(scale, 0.1)  # some gradients are exactly 0
        assert_close(value.cpu().double(), truth, rtol=0, atol=tolerance)
    return found


@places
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.005])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, dtype, temperature, renormalize, place):
    skip_unless_taken(place, dtype, temperature)
    shape, block, items = CASES[case]
    generator = torch.Generator().manual_seed(len(case))
    x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    memory = torch.randn(items, math.prod(block), generator=generator).to(dtype)
    threshold = clear_threshold(x, memory, block, temperature)
    check(x, memory, grad, block, Addressing(temperature, threshold, renormalize), place)


@places
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES)
def test_dot_products(case, dtype, temperature, renormalize, place):
    if place.backend == "triton":
        pytest.skip("the Triton backend has cosines alone")
    shape, block, items = CASES[case]
    temperature *= math.sqrt(math.prod(block))  # logits of about 1
    generator = torch.Generator().manual_seed(len(case))
    x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    memory = torch.randn(items, math.prod(block), generator=generator).to(dtype)
    threshold = clear_threshold(x, memory, block, temperature, "dot")
    check(x, memory, grad, block, Addressing(temperature, threshold, renormalize, "dot"), place)


def channels_last(x):
    return x.to(memory_format=torch.channels_last)


def sliced(x):
    wide = torch.full((x.shape[0], x.shape[1] + 3, *(2 * n for n in x.shape[2:])), math.nan)
    view = wide[:, 1 : 1 + x.shape[1], ::2, 1::2]
    return view.copy_(x)


def expanded(x):
    return x[:1, :, :, :1].expand(x.shape)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": channels_last,
    "sliced": sliced,
    "expanded": expanded,
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@places
@pytest.mark.parametrize("layout_of_grad", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_of_input_and_upstream_gradient(layout, layout_of_grad, place):
    block, addressing = (4, 2, 3), Addressing(0.5, 0.0, False)
    generator = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(2, 8, 6, 6, generator=generator) for _ in range(2))
    memory = torch.randn(11, 24, generator=generator)
    x, grad = LAYOUTS[layout](x), LAYOUTS[layout_of_grad](grad)
    out, *_ = check(x, memory, grad, block, addressing, place)
    assert out.stride() == torch.empty_like(x).stride()  # the memory format of the input


@places
@settings(max_examples=20 if INTERPRETED else 100)
@given(data=st.data())
def test_any_shape(place, data):
    dims = data.draw(st.integers(1, 3))
    block = tuple(data.draw(st.integers(1, 4)) for _ in range(dims + 1))
    shape = tuple(n * data.draw(st.integers(1, 4)) for n in block)
    items = data.draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))

    def draw(*sizes):  # away from 0, since gradients grow with 1/norm, and their rounding with them
        tensor = torch.randn(sizes, generator=generator)
        return tensor + tensor.sign() / 2

    batch = data.draw(st.integers(0, 3))
    x, grad, memory = draw(batch, *shape), draw(batch, *shape), draw(items, math.prod(block))
    temperature = data.draw(st.sampled_from([2.0, 1.0, 0.2]))
    threshold = clear_threshold(x, memory, block, temperature)
    addressing = Addressing(temperature, threshold, data.draw(st.booleans()))
    check(x, memory, grad, block, addressing, place)


@places
@pytest.mark.parametrize("leaf", ["x", "memory"])
def test_a_frozen_side_gets_no_gradient_and_changes_nothing(leaf, place):
    x, memory = (torch.randn(n, device=place.device) for n in ((2, 4, 4, 4), (9, 16)))
    both = run(x, memory, torch.ones_like(x), (4, 2, 2), Addressing(1.0, 1 / 9, False), place)
    tensors = {
        "x": x.requires_grad_(leaf == "x"),
        "memory": memory.requires_grad_(leaf == "memory"),
    }
    with place():
        out = blockwise_memory(**tensors, block_shape=(4, 2, 2), backend=place.backend)
        out.sum().backward()
    (frozen,) = set(tensors) - {leaf}
    assert tensors[frozen].grad is None
    assert torch.equal(tensors[leaf].grad, both[1 if leaf == "x" else 2])


@places
def test_twice_the_same_bits(place):
    x, memory = torch.randn(2, 16, 8, 8), torch.randn(100, 16)
    addressing = Addressing(1.0, 0.01, False)
    first, second = (run(x, memory, x, (16, 1, 1), addressing, place) for _ in range(2))
    assert all(map(torch.equal, first, second))


@places
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flips_at_the_kink_are_bounded(dtype, place):
    """At 1/N itself, only an item whose weight is within rounding of it may be kept or dropped
    otherwise than in float64: it moves an answer by that item over N, and other answers agree."""
    skip_unless_taken(place, dtype)
    items, block = 200, (32, 1, 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 32, 16, 16, generator=generator).to(dtype)
    memory = torch.randn(items, 32, generator=generator).to(dtype)
    with place():
        there = (t.to(place.device) for t in (x, memory))
        out = blockwise_memory(*there, block, backend=place.backend).cpu()
    out = divide(out, block).double()
    queries, memory, addressing = (
        divide(x, block).double(),
        memory.double(),
        Addressing(1.0, 0.0, False),
    )
    weights = address(queries, memory, addressing)
    truth = combine(address(queries, memory, Addressing(1.0, 1 / items, False)), memory)
    close = (weights * items - 1).abs() < 1e-5
    assert 0 < close.any(dim=-1).double().mean() < 0.02  # of the answers could differ at all
    allowed = close.double() @ memory.abs() / items * (1 + 1e-5)
    assert ((out - truth).abs() <= allowed + TOLERANCE[dtype] * truth.abs().max()).all()


@places
@pytest.mark.parametrize("block", [(8, 1, 1), (8, 3, 2)])
def test_any_strides_of_the_memory(block, place):
    generator = torch.Generator().manual_seed(2)
    x, grad = (torch.randn(2, 8, 6, 6, generator=generator) for _ in range(2))
    memory = torch.randn(math.prod(block), 11, generator=generator).T
    check(x, memory, grad, block, Addressing(0.5, 0.0, False), place)
