"""The losses against Eq. 4 to 6 in plain arithmetic, and at the ends of their range."""

import math

import pytest
import torch

from daad.network import (
    alignment_loss,
    discriminator_loss,
    distances,
    generator_adversarial_loss,
    reconstruction_loss,
)

X = torch.tensor([[[[1.0, 2.0], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 5.0]]]])
X_HAT = torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]], [[[0.0, 0.0], [0.0, 1.0]]]])


@pytest.mark.parametrize(("distance", "expected"), [("squared", [9 / 4, 4.0]), ("l2", [3.0, 4.0])])
def test_distances_are_a_mean_of_squares_or_a_norm(distance: str, expected: list[float]) -> None:
    assert distances(X, X_HAT, distance).tolist() == expected
    assert reconstruction_loss(X, X_HAT, distance).item() == sum(expected) / 2
    # The same rule for features, which are flat
    assert alignment_loss(X.flatten(1), X_HAT.flatten(1), distance).item() == sum(expected) / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distance", ["squared", "l2"])
def test_half_precision_is_measured_in_float32(dtype: torch.dtype, distance: str) -> None:
    x = torch.full((2, 3, 8, 8), 300.0, dtype=dtype)  # its square is too large for float16
    result = distances(x, torch.zeros_like(x), distance)
    assert result.dtype == torch.float32
    expected = {"squared": 300.0**2, "l2": 300 * math.sqrt(192)}[distance]
    torch.testing.assert_close(result, torch.full((2,), expected))


def test_double_precision_stays() -> None:
    assert distances(X.double(), X_HAT.double(), "squared").dtype == torch.float64


@pytest.mark.parametrize("distance", ["squared", "l2"])
def test_perfect_reconstruction_has_a_gradient_of_zero(distance: str) -> None:
    x_hat = X.clone().requires_grad_()
    reconstruction_loss(X, x_hat, distance).backward()
    assert torch.equal(x_hat.grad, torch.zeros_like(X))


def test_adversarial_losses_are_eq_5() -> None:
    real, fake = torch.tensor([0.3, -1.2]), torch.tensor([0.8, -0.1])
    d_real, d_fake = torch.sigmoid(real), torch.sigmoid(fake)
    eq_5 = d_real.log().mean() + (1 - d_fake).log().mean()
    torch.testing.assert_close(discriminator_loss(real, fake), -eq_5)
    minimax = generator_adversarial_loss(fake, "minimax")
    torch.testing.assert_close(minimax, (1 - d_fake).log().mean())
    non_saturating = generator_adversarial_loss(fake, "non-saturating")
    torch.testing.assert_close(non_saturating, -d_fake.log().mean())


@pytest.mark.parametrize("form", ["non-saturating", "minimax"])
def test_generator_wants_larger_logits(form: str) -> None:
    logits = torch.tensor([-0.5, 0.5], requires_grad=True)
    generator_adversarial_loss(logits, form).backward()
    assert (logits.grad < 0).all()


def test_only_the_minimax_gradient_vanishes_where_d_is_sure() -> None:
    gradients = {}
    for form in ("non-saturating", "minimax"):
        logits = torch.tensor([-20.0], requires_grad=True)
        generator_adversarial_loss(logits, form).backward()
        gradients[form] = logits.grad.item()
    assert gradients["non-saturating"] == pytest.approx(-1)
    assert abs(gradients["minimax"]) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    logits = torch.tensor([-6e4, 6e4], dtype=dtype, requires_grad=True)
    losses = [
        discriminator_loss(logits, logits),
        generator_adversarial_loss(logits, "minimax"),
        generator_adversarial_loss(logits, "non-saturating"),
    ]
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses)
    sum(losses).backward()
    assert logits.grad.isfinite().all()
