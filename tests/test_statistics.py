"""The entropy loss, right where weights are 0, and the usage of items."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blockmem import BlockwiseMemory, Usage, divide, entropy, usage

both_settings = pytest.mark.parametrize("renormalize", [False, True])


def formula(weights: Tensor) -> float:
    """Eq. 9 of MemAE, number by number, and its mean over rows."""
    rows = weights.double().reshape(-1, weights.shape[-1]).tolist()
    return math.fsum(-w * math.log(w) for row in rows for w in row if w > 0) / len(rows)


def shrunk(logits: Tensor, renormalize: bool, threshold: float = 0.15) -> Tensor:
    """Weights as the layer makes them, of logits one can choose."""
    weights = logits.softmax(dim=-1)
    weights = torch.where(weights < threshold, 0.0, weights)
    if renormalize:
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / torch.where(total == 0, 1.0, total)
    return weights


def some_logits(*shape: int, **settings: object) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(**settings)


@st.composite
def weight_rows(draw: st.DrawFn) -> Tensor:
    items = draw(st.integers(1, 6))
    number = st.one_of(st.just(0.0), st.floats(0, 1, width=32))
    rows = draw(st.lists(st.lists(number, min_size=items, max_size=items), min_size=1, max_size=5))
    return torch.tensor(rows)


@given(
    weight_rows(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
)
def test_entropy_is_the_formula(weights, dtype):
    weights = weights.to(dtype)
    found = entropy(weights)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.item() == pytest.approx(formula(weights), rel=1e-6, abs=1e-6)


@given(weight_rows())
def test_gradients_are_the_formulas_and_0_for_dropped_items(weights):
    weights = weights.double().requires_grad_()
    (grad,) = torch.autograd.grad(entropy(weights), weights)
    kept = weights.detach() > 0
    expected = -(weights.detach()[kept].log() + 1) / len(weights)
    torch.testing.assert_close(grad[kept], expected)
    assert not grad[~kept].any()


@both_settings
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_to_second_order_go_through_shrinkage(renormalize, dtype):
    """Against the gradients of -sum w log w over the kept items alone, which has no zeros."""

    def over_kept(logits: Tensor) -> Tensor:
        weights = shrunk(logits, renormalize)
        kept = weights[weights > 0]
        return -(kept * kept.log()).sum() / len(weights)

    def orders(loss) -> list[Tensor]:
        logits = some_logits(7, 9, dtype=dtype).requires_grad_()
        (first,) = torch.autograd.grad(loss(logits), logits, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), logits)
        return [first.detach(), second]

    weights = shrunk(some_logits(7, 9), renormalize)
    assert 0 < (weights == 0).sum() < weights.numel()
    torch.testing.assert_close(
        orders(lambda logits: entropy(shrunk(logits, renormalize))), orders(over_kept)
    )


@both_settings
def test_gradcheck_away_from_the_threshold(renormalize):
    logits = some_logits(3, 5).requires_grad_()
    clear = (logits.softmax(dim=-1) - 0.15).abs().min()
    assert clear > 1e-3
    loss = lambda logits: entropy(shrunk(logits, renormalize))  # noqa: E731
    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@both_settings
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_without_any_weight_are_0_with_finite_gradients(renormalize, dtype):
    logits = some_logits(4, 8, dtype=dtype).requires_grad_()
    weights = shrunk(logits, renormalize, threshold=0.99)
    loss = entropy(weights)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss == 0
    assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_too_small_to_divide_by_do_not_spoil_the_second_derivative(dtype):
    logits = torch.tensor([[0.0, 1.0, -95.0, -102.0, -730.0]], dtype=dtype, requires_grad=True)
    loss = entropy(logits.softmax(dim=-1))
    (first,) = torch.autograd.grad(loss, logits, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), logits)
    assert loss.isfinite()
    assert first.isfinite().all()
    assert second.isfinite().all()


@both_settings
def test_the_layers_weights_have_a_loss_that_both_sides_learn_from(renormalize):
    """The encoder's map and the memory get gradients, and a step along them lowers the entropy."""
    torch.manual_seed(0)
    memory = BlockwiseMemory(50, (8, 1, 1), temperature=0.1, renormalize=renormalize)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    weights = memory.address(x)
    loss = entropy(weights)
    assert loss.item() == pytest.approx(formula(weights.detach()), rel=1e-5)
    loss.backward()
    for tensor in (x, memory.memory):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()
    with torch.no_grad():
        x -= 1e-2 * x.grad / x.grad.norm()
    assert entropy(memory.address(x)) < loss


def test_transforms_and_compile_go_through_entropy():
    weights = shrunk(some_logits(4, 3, 6), True)
    each = torch.vmap(entropy)(weights)
    torch.testing.assert_close(each, torch.stack([entropy(w) for w in weights]))
    leaf = weights.clone().requires_grad_()
    (expected,) = torch.autograd.grad(entropy(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(entropy)(weights), expected)
    compiled = torch.compile(entropy, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(weights), entropy(weights))


def test_what_is_not_a_number_shows():
    assert entropy(torch.tensor([[0.5, math.nan], [0.5, 0.5]])).isnan()
    assert entropy(torch.tensor([[0.5, -0.5], [0.5, 0.5]])).isnan()
    assert entropy(torch.zeros(0, 4)).isnan()  # the mean of no rows, as in PyTorch's losses


@given(weight_rows())
def test_usage_is_the_sum_over_blocks(weights):
    used = usage(weights)
    rows = weights.double().tolist()
    totals = [math.fsum(column) for column in zip(*rows, strict=True)]
    everything = math.fsum(totals)
    shares = [total / everything if everything else 0.0 for total in totals]
    torch.testing.assert_close(
        used.shares, torch.tensor(shares, dtype=torch.float64), rtol=1e-6, atol=0
    )
    spread = math.exp(math.fsum(-s * math.log(s) for s in shares if s)) if everything else 0.0
    assert used.perplexity == pytest.approx(spread, rel=1e-5)
    assert used.never_used.tolist() == [total == 0 for total in totals]


@given(weight_rows(), st.integers(0, 5))
def test_usage_adds_up_over_batches(weights, cut):
    whole, parts = usage(weights), [usage(weights[:cut]), usage(weights[cut:])]
    for total in (parts[0] + parts[1], sum(parts)):
        torch.testing.assert_close(total.totals, whole.totals, rtol=1e-6, atol=0)
        assert total.never_used.equal(whole.never_used)


def test_usage_of_a_layer():
    torch.manual_seed(0)
    memory = BlockwiseMemory(20, (4, 2, 2), temperature=0.05)
    x = torch.randn(3, 8, 4, 4, requires_grad=True)
    with torch.no_grad():  # a third of the items as far from every block as a block can be
        memory.memory[14:] = -divide(x, memory.block_shape).mean(dim=(0, 1)) * 100
    weights = memory.address(x)
    used = usage(weights)
    kept = (weights > 0).flatten(end_dim=-2)
    assert used.never_used.equal(~kept.any(dim=0))
    assert used.never_used.any()
    assert not used.totals.requires_grad
    assert 1 < used.perplexity < 20


def test_usage_of_half_precision_is_summed_in_single():
    weights = torch.full((70_000, 2), 2.0**-10, dtype=torch.float16)
    assert usage(weights).totals.tolist() == [70_000 / 1024] * 2


@pytest.mark.parametrize(
    ("weights", "perplexity"),
    [
        (torch.full((5, 8), 0.125), 8),
        (torch.tensor([[0.0, 0.3, 0.0]]), 1),
        (torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), 2),
        (torch.zeros(3, 4), 0),
        (torch.zeros(0, 4), 0),
    ],
)
def test_perplexity_counts_items(weights, perplexity):
    assert usage(weights).perplexity == pytest.approx(perplexity)


def test_repr_says_what_matters():
    weights = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert repr(usage(weights)) == "Usage(num_items=4, perplexity=2.0, never_used=2)"


def test_usages_of_two_memories_do_not_add():
    with pytest.raises(ValueError, match="usage of 3 items and of 4 cannot be added"):
        usage(torch.ones(1, 3)) + usage(torch.ones(1, 4))
    with pytest.raises(TypeError, match="unsupported operand"):
        usage(torch.ones(1, 3)) + 1
    with pytest.raises(TypeError, match="unsupported operand"):
        1 + usage(torch.ones(1, 3))
    with pytest.raises(AttributeError):
        usage(torch.ones(1, 3)).totals = torch.ones(3)
    assert isinstance(sum([usage(torch.ones(1, 3))]), Usage)


@pytest.mark.parametrize("function", [entropy, usage])
@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        ([0.5, 0.5], TypeError, "weights are of <class 'list'>: expected a tensor"),
        ((torch.ones(2), torch.ones(2)), TypeError, "as memory.read(x)[1] and memory.address(x)"),
        (
            torch.ones(2, 3, dtype=torch.int64),
            TypeError,
            "weights are torch.int64: expected a floating",
        ),
        (torch.ones(2, 3, dtype=torch.bool), TypeError, "use weights.float()"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, "expected a floating-point dtype"),
        (torch.tensor(0.5), ValueError, "weights of shape (): expected (B, Q, N)"),
        (torch.zeros(2, 0), ValueError, "weights of shape (2, 0): expected (B, Q, N)"),
    ],
)
def test_errors_name_what_was_wrong(function, weights, error, text):
    with pytest.raises(error) as caught:
        function(weights)
    assert text in str(caught.value)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_usage_refuses_what_is_no_weight(bad):
    with pytest.raises(ValueError, match="negative, infinite or NaN: expected addressing weights"):
        usage(torch.tensor([[0.5, bad]]))
