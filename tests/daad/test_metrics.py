"""Areas under curves against counted pairs, and other figures of a ranking by hand."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from daad.metrics import (
    auroc_interval,
    average_precision,
    best_f1,
    image_auroc,
    operating_points,
    pixel_areas,
    ranking,
    recall_at,
)

# Areas under the ROC curve


def count_pairs(scores: Tensor, labels: Tensor) -> float:
    """The share of pairs (anomalous, good) in order, ties counted half; O(n**2)."""
    anomalous, good = scores[labels.bool()][:, None], scores[~labels.bool()][None]
    return ((anomalous > good).double() + 0.5 * (anomalous == good).double()).mean().item()


def made_up_scores(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, generator=generator, dtype=torch.float64)
    return {
        "plain": noise,
        "differences of 1e-12": 1 + 1e-12 * noise,
        "magnitude of 1e6": 1e6 + 1e5 * noise,
        "far below zero": -1e6 + 1e5 * noise,
        "one outlier": torch.cat([1e-12 * noise[1:], torch.tensor([-1e12]).double()]),
        "ties": noise.round(),
        "float32": (1 + 1e-6 * noise).float(),
    }[kind]


KINDS = [
    "plain",
    "differences of 1e-12",
    "magnitude of 1e6",
    "far below zero",
    "one outlier",
    "ties",
    "float32",
]


@pytest.mark.parametrize("kind", KINDS)
def test_image_auroc_is_the_share_of_pairs_in_order(kind: str) -> None:
    scores = made_up_scores(kind)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    middle = scores.median()
    labels = (scores - middle) / scores[:-1].std() + noise > 0.5
    assert image_auroc(scores, labels) == pytest.approx(count_pairs(scores, labels), abs=1e-6)


def test_auroc_is_that_of_all_scores_equal() -> None:
    assert image_auroc(torch.full((6,), 3.0), torch.tensor([0, 1, 0, 1, 1, 0])) == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_auroc_of_one_class_is_none(label: int) -> None:
    assert image_auroc(torch.rand(4), torch.full((4,), label)) is None


def test_pixel_auroc_goes_over_the_pixels_of_all_pictures() -> None:
    maps = torch.tensor([[[4.0, 1.0], [2.0, 0.5]], [[3.0, 0.25], [0.0, 2.0]]])
    masks = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [0, 0]]], dtype=torch.bool)
    # Marked 4 beats all six others; marked 2 beats 1, 0.5, 0.25, 0, ties with 2, loses to 3.
    assert image_auroc(maps, masks) == pytest.approx((6 + 4.5) / 12, abs=1e-6)
    assert image_auroc(maps, torch.zeros_like(masks)) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=12))
def test_the_roc_curve_rises_and_has_the_area(pairs: list[tuple[int, bool]]) -> None:
    scores, labels = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assume(0 < labels.sum() < len(labels))
    false_rate, true_rate = operating_points(scores.double(), labels).rates
    for rates in (false_rate, true_rate):
        assert (rates[0].item(), rates[-1].item()) == (0, 1)
        assert (rates.diff() >= 0).all()
    area = torch.trapezoid(true_rate.double(), false_rate.double()).item()
    assert area == pytest.approx(image_auroc(scores.double(), labels), abs=1e-6)
    # Each threshold once: a point for each score there is, and the origin.
    assert len(false_rate) == len(scores.unique()) + 1


# Other figures of a ranking


def test_figures_of_a_ranking_by_hand() -> None:
    # From the highest: bad, good, bad, good. Precision at each bad one: 1 and 2/3.
    scores, labels = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 1, 0])
    points = operating_points(scores, labels)
    assert average_precision(points) == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)
    assert best_f1(points) == pytest.approx(0.8)  # three flagged: 2 * 2 / (3 + 2)
    assert [recall_at(points, rate) for rate in (0.0, 0.5, 1.0)] == [0.5, 1.0, 1.0]
    assert ranking(scores, labels)["image_auroc"] == 0.75
    assert ranking(scores, torch.zeros(4)) == {"image_auroc": None}


def test_the_interval_holds_the_area_and_narrows_with_more_pictures() -> None:
    widths = []
    for count in (20, 500):
        noise = torch.randn(2, count, generator=torch.Generator().manual_seed(0))
        scores = torch.cat([noise[0], noise[1] + 1])
        labels = torch.arange(2 * count) >= count
        low, high = auroc_interval(scores, labels)
        assert low < image_auroc(scores, labels) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


# Pixels


def test_pixel_areas_are_those_of_all_pixels_and_of_each_region() -> None:
    maps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = [np.zeros((8, 8), bool) for _ in range(3)]
    masks[0][1:3, 1:3] = True  # four pixels
    masks[0][6, 6] = True  # and one: each region counts as much
    masks[1][4:8, 0:4] = True
    found = pixel_areas(maps, masks)
    assert found.auroc == pytest.approx(image_auroc(maps, torch.tensor(np.stack(masks))), abs=1e-4)

    values, good = maps.numpy(), ~np.stack(masks)
    regions = [values[0, 1:3, 1:3], values[0, 6, 6], values[1, 4:8, 0:4]]
    thresholds = np.sort(values.ravel())[::-1]
    false = np.array([0.0, *((values[good] >= t).mean() for t in thresholds)])
    overlap = np.array([0.0, *(np.mean([(r >= t).mean() for r in regions]) for t in thresholds)])
    up_to = np.append(false[false < 0.3], 0.3)
    expected = np.trapezoid(np.interp(up_to, false, overlap), up_to) / 0.3
    assert found.aupro == pytest.approx(expected, abs=2e-3)


def test_masks_may_be_larger_than_the_maps_and_perfect_maps_have_all() -> None:
    masks = [np.zeros((40, 24), bool), np.zeros((16, 16), bool)]
    masks[0][:20] = True
    maps = torch.zeros(2, 8, 8)
    maps[0, :4] = 1.0
    assert pixel_areas(maps, masks).auroc > 0.99
    assert pixel_areas(maps, [np.zeros((4, 4), bool)] * 2) == (None, None)
