"""The verdict: p by counting, and that normal pictures are called anomalous as rarely as was asked for."""

import pytest
import torch

from daad.scoring import Scale
from daad.verdict import ANOMALOUS, NORMAL, Reference


def reference_of(scores: torch.Tensor, source: str = "held-out") -> Reference:
    size = 4
    return Reference(
        torch.zeros(size, size),
        torch.ones(size, size),
        scores.double().sort().values,
        Scale((0.0, 1.0), None),
        source,
    )


def test_p_counts_normal_pictures_at_least_as_high() -> None:
    reference = reference_of(torch.tensor([1.0, 2.0, 2.0, 4.0]))
    p = reference.p_values(torch.tensor([0.0, 2.0, 3.0, 4.0, 5.0]))
    assert p.tolist() == [5 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5]


@pytest.mark.parametrize("count", [1, 7, 19, 20, 99, 100])
@pytest.mark.parametrize("asked", [0.01, 0.05, 0.2])
def test_the_threshold_says_what_p_says(count: int, asked: float) -> None:
    scores = torch.randn(count, generator=torch.Generator().manual_seed(count))
    reference = reference_of(scores)
    threshold = reference.threshold(asked)
    smallest = 1 / (count + 1)
    assert threshold.rate == max(asked, smallest)
    shown = torch.cat([scores, scores + 1e-6, torch.tensor([-9.0, 9.0])]).double()
    for score, p in zip(shown.tolist(), reference.p_values(shown).tolist(), strict=True):
        expected = ANOMALOUS if p <= threshold.rate + 1e-12 else NORMAL
        assert threshold.verdict(score) == expected


@pytest.mark.parametrize(("count", "asked"), [(99, 0.01), (99, 0.05), (40, 0.01), (19, 0.05)])
def test_normal_pictures_are_flagged_as_rarely_as_was_asked(count: int, asked: float) -> None:
    """Over 2,000 draws of normal pictures, 200 new ones each: the mean rate within four errors."""
    random = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(2000):
        reference = reference_of(torch.randn(count, generator=random))
        threshold = reference.threshold(asked)
        new = torch.randn(200, generator=random)
        rates.append((new > threshold.value).double().mean())
    found = torch.stack(rates)
    error = found.std().item() / 2000**0.5
    assert found.mean().item() == pytest.approx(threshold.rate, abs=4 * error)


def test_few_normal_pictures_are_said() -> None:
    few = reference_of(torch.arange(6))
    words = few.words(few.threshold(0.01))
    assert "6 normal picture(s) held out" in words
    assert "would need 99 of them; 0.14 is used" in words
    assert "trained on" in reference_of(torch.arange(99), "train").words(few.threshold(0.5))
