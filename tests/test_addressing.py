"""The edges of the formula, each pinned."""

import math

import pytest
import torch
from torch.testing import assert_close

from blockmem import blockwise_memory
from blockmem.addressing import Addressing, address, combine, reference
from blockmem.functional import blockwise_address
from tests.helpers.layers import gradients

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def weights_of(x, memory, block_shape, **settings):
    return blockwise_address(x, memory, block_shape, Addressing(**settings))


temperatures = pytest.mark.parametrize("temperature", [1.0, 0.07, 0.005])


def test_the_formula_by_hand():
    queries = torch.tensor([[3.0, 4.0]])
    memory = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    cosine = [0.6, 0.8, -0.6]
    total = sum(math.exp(c / 0.5) for c in cosine)
    p = [math.exp(c / 0.5) / total for c in cosine]
    assert p[2] < 1 / 3 < p[0] < p[1]
    weights = address(queries, memory, Addressing(0.5, 1 / 3, False))
    assert_close(weights, torch.tensor([[p[0], p[1], 0.0]]))
    assert_close(combine(weights, memory), torch.tensor([[p[0], 2 * p[1]]]))
    renormalized = address(queries, memory, Addressing(0.5, 1 / 3, True))
    assert_close(renormalized, torch.tensor([[p[0], p[1], 0.0]]) / (p[0] + p[1]))


@dtypes
@temperatures
@pytest.mark.parametrize("items", [1, 3, 7, 100, 333, 2000])
def test_collapsed_memory_gives_a_uniform_row(items, temperature, dtype):
    """All items equal: every weight is 1/N up to rounding, and every item is kept."""
    generator = torch.Generator().manual_seed(items)
    item = torch.randn(48, generator=generator)
    memory, x = (
        item.expand(items, 48).to(dtype),
        torch.randn(2, 48, 3, 5, generator=generator).to(dtype),
    )
    weights = weights_of(x, memory, (48, 1, 1), temperature=temperature)
    assert (weights > 0).all()
    out = blockwise_memory(x, memory, (48, 1, 1), temperature=temperature)
    expected = memory[0].view(1, 48, 1, 1).expand(out.shape)
    assert_close(out, expected, rtol=1e-3 if dtype != torch.bfloat16 else 1e-2, atol=1e-3)


@dtypes
@temperatures
@pytest.mark.parametrize("items", [3, 500, 2000])
def test_a_block_of_zeros_reads_the_mean_item(items, temperature, dtype):
    memory = torch.randn(items, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = torch.zeros(1, 3, 2, 2, dtype=dtype)
    out, grad_x, grad_memory = gradients(x, memory, (3, 2, 2), temperature=temperature)
    mean = memory.to(torch.float64).mean(dim=0)
    assert_close(out.movedim(1, -1).flatten().double(), mean, rtol=1e-2, atol=1e-3)
    assert (grad_x == 0).all()
    assert_close(
        grad_memory.double(), torch.full((items, 12), 1 / items).double(), rtol=1e-2, atol=1e-6
    )


@dtypes
def test_an_item_of_zeros_has_cosine_zero(dtype):
    memory = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    memory[2] = 0
    x = torch.randn(1, 4, 6, 1, generator=torch.Generator().manual_seed(1)).to(dtype)
    out, grad_x, grad_memory = gradients(x, memory, (4, 1, 1), threshold=0.0)
    assert all(t.isfinite().all() for t in (out, grad_x, grad_memory))
    weights = weights_of(x, memory, (4, 1, 1), threshold=0.0).double()
    unit = torch.nn.functional.normalize(x.double().flatten(2).mT, dim=-1)
    cosine = unit @ torch.nn.functional.normalize(memory.double(), dim=-1).T
    assert (cosine[..., 2] == 0).all()
    assert_close(weights, cosine.softmax(dim=-1), rtol=0, atol=1e-6)


def test_the_smallest_float16_numbers_still_have_a_direction():
    x = torch.full((1, 4, 1, 1), 2.0**-24, dtype=torch.float16)
    memory = torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]], dtype=torch.float16)
    assert_close(
        weights_of(x, memory, (4, 1, 1), threshold=0.0).flatten(),
        torch.tensor([1.0, -1.0]).softmax(0),
    )


def test_an_item_at_the_threshold_is_kept_and_one_below_is_not():
    x, memory = torch.tensor([[1.0], [0.0]])[None], torch.eye(2)
    high = torch.tensor([1.0, 0.0]).softmax(0)[1].item()
    kept = weights_of(x, memory, (2, 1), threshold=high)
    dropped = weights_of(x, memory, (2, 1), threshold=high * (1 + 1e-5))
    assert (kept > 0).tolist() == [[[True, True]]]
    assert (dropped > 0).tolist() == [[[True, False]]]


@pytest.mark.parametrize("renormalize", [False, True])
def test_a_row_of_which_nothing_is_left_gives_zeros(renormalize):
    x, memory = torch.randn(2, 4, 4, 4), torch.randn(10, 16)
    settings = {"threshold": 0.9, "renormalize": renormalize}
    for tensor in gradients(x, memory, (4, 2, 2), **settings):
        assert (tensor == 0).all()
    assert (weights_of(x, memory, (4, 2, 2), **settings) == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [1.0, 0.005])
def test_what_is_not_finite_stays_in_its_block(bad, temperature):
    x, memory = torch.randn(2, 4, 6, 6), torch.randn(10, 16)
    spoiled = x.clone()
    spoiled[1, 2, 3, 1] = bad
    out = blockwise_memory(spoiled, memory, (4, 2, 2), temperature=temperature)
    expected = blockwise_memory(x, memory, (4, 2, 2), temperature=temperature)
    expected[1, :, 2:4, 0:2] = math.nan
    assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


def test_threshold_none_is_one_over_n_and_zero_is_plain_softmax():
    x, memory = torch.randn(1, 4, 4, 4), torch.randn(10, 16)
    none, explicit = (blockwise_memory(x, memory, (4, 2, 2), threshold=t) for t in (None, 0.1))
    assert torch.equal(none, explicit)
    total = weights_of(x, memory, (4, 2, 2), threshold=0).sum(dim=-1)
    assert_close(total, torch.ones_like(total))


def test_an_inplace_activation_may_follow():
    x, memory = torch.randn(1, 4, 4, 4, requires_grad=True), torch.randn(10, 16)
    blockwise_memory(x, memory, (4, 2, 2)).relu_().sum().backward()
    expected = torch.autograd.functional.vjp(
        lambda x: reference(x, memory, (4, 2, 2), Addressing(1.0, 0.1, False)).relu(),
        x.detach(),
        torch.ones_like(x),
    )[1]
    assert_close(x.grad, expected)
