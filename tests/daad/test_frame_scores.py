"""Frame scores as MNAD has them, against numbers worked by hand."""

import math

import pytest
import torch
from torch import nn

from daad.config import Config
from daad.frame_scores import HIGHEST_PSNR, combine, frame_auroc, psnr, scaled, score_frames
from tests.helpers.stand_ins import Halve, MeanFeature, TensorPictures

CPU = torch.device("cpu")

# Three clips. An error of 0.4 in [-1, 1] is one of 0.1 in [0, 1], and 10 log10(1 / 0.1) = 10 dB.
LENGTHS = [3, 2, 2]
ERROR = torch.tensor([0.4, 0.04, 0.004, 0.04, 0.0004, 0.004, 0.004], dtype=torch.float64)
PSNR = [10, 20, 30, 20, 40, 30, 30]
# MNAD takes (p - min) / (max - min) within a clip for normality; one minus that is the anomaly.
BY_CLIP = [1, 0.5, 0, 1, 0, 0, 0]
OVER_ALL = [1, 2 / 3, 1 / 3, 2 / 3, 0, 1 / 3, 1 / 3]
LABELS = [torch.tensor(labels).bool() for labels in ([1, 0, 0], [0, 1], [0, 1])]


def test_psnr_by_hand() -> None:
    assert psnr(ERROR).tolist() == pytest.approx(PSNR, abs=1e-12)


def test_psnr_of_a_perfect_reconstruction_is_finite_and_the_highest() -> None:
    values = psnr(torch.tensor([0.0, 1e-30, 4e-9], dtype=torch.float64)).tolist()
    assert values == pytest.approx([HIGHEST_PSNR, HIGHEST_PSNR, 90])
    # beyond the error of rounding to 8 bits, so that no two frames that differ in earnest tie
    step = 1 / 255
    assert 10 * math.log10(12 / step**2) < 60 < HIGHEST_PSNR


def test_scores_by_hand() -> None:
    found = combine(ERROR, None, LENGTHS, gamma=0.9)
    assert found.score["clip"].tolist() == pytest.approx(BY_CLIP, abs=1e-12)
    assert found.score["global"].tolist() == pytest.approx(OVER_ALL, abs=1e-12)
    assert found.fused is None
    assert [part.tolist() for part in found.by_clip(found.error)] == [
        *(ERROR[:3].tolist(), ERROR[3:5].tolist(), ERROR[5:].tolist())
    ]


def test_areas_by_counted_pairs() -> None:
    # By clip: 1 against 0.5, 0, 1, 0 wins 3.5; each 0 wins 1. Over all: 1 wins 4, 0 none, 1/3 one.
    found = combine(ERROR, None, LENGTHS, gamma=0.9)
    areas = frame_auroc(found.score, LABELS)
    assert areas == pytest.approx({"clip": 5.5 / 12, "global": 5 / 12}, abs=1e-6)


def test_a_frame_is_judged_within_its_own_clip() -> None:
    # The second clip is harder throughout: only scaling by clip ranks all four frames rightly.
    error = torch.tensor([1e-4, 1e-3, 1e-2, 1e-1], dtype=torch.float64)
    labels = [torch.tensor([False, True])] * 2
    areas = frame_auroc(combine(error, None, [2, 2], 0.9).score, labels)
    assert areas == {"clip": 1.0, "global": 0.75}


def test_constant_scores_are_zero() -> None:
    found = combine(
        torch.full((5,), 0.01, dtype=torch.float64), torch.ones(5).double(), [4, 1], 0.5
    )
    for scores in (*found.score.values(), *found.fused.values()):
        assert scores.tolist() == [0.0] * 5
    assert frame_auroc(found.score, [torch.tensor([0, 1, 0, 1]), torch.tensor([1])]) == {
        "clip": 0.5, "global": 0.5
    }  # fmt: skip


def test_frames_of_one_kind_have_no_area() -> None:
    areas = frame_auroc(combine(ERROR, None, LENGTHS, 0.9).score, [torch.ones(7).bool()])
    assert areas == {"clip": None, "global": None}


def test_equation_7_on_frames_by_hand() -> None:
    alignment = torch.tensor([2, 2, 4, 0, 8, 6, 6], dtype=torch.float64)
    found = combine(ERROR, alignment, LENGTHS, gamma=0.75)
    assert scaled(alignment, LENGTHS, "clip").tolist() == [0, 0, 1, 0, 1, 0, 0]
    by_clip = [0.75, 0.375, 0.25, 0.75, 0.25, 0, 0]
    over_all = [0.8125, 0.5625, 0.375, 0.5, 0.25, 0.4375, 0.4375]
    assert found.fused["clip"].tolist() == pytest.approx(by_clip, abs=1e-12)
    assert found.fused["global"].tolist() == pytest.approx(over_all, abs=1e-12)


# From networks


@pytest.mark.parametrize("distance", ["squared", "l2"])
def test_errors_are_mean_squares_whatever_the_losses(distance: str) -> None:
    # x is c everywhere and x_hat c / 2: the squared difference is c**2 / 4.
    values = torch.tensor([0.2, -0.4, 0.8, 1.0, 0.0])
    frames = TensorPictures(values[:, None, None, None].expand(5, 3, 4, 4))
    distances = {"distance": distance, "alignment_distance": distance}
    config = Config(variant="daad+", batch_size=2, **distances)
    found = score_frames(Halve(), MeanFeature(), frames, [3, 2], config, CPU)
    squares = values.double() ** 2 / 4
    assert found.error.dtype == torch.float64
    assert found.error.tolist() == pytest.approx(squares.tolist(), rel=1e-6)
    assert found.psnr[3].item() == pytest.approx(10 * math.log10(1 / (0.25 / 4)), rel=1e-6)
    assert found.psnr[4].item() == HIGHEST_PSNR
    expected = squares if distance == "squared" else (3 * squares).sqrt()
    assert found.alignment.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert found.score["clip"][[0, 2, 3, 4]].tolist() == [0, 1, 1, 0]
    assert found.score["global"][[3, 4]].tolist() == [1, 0]


def test_no_batch_holds_frames_of_two_clips() -> None:
    # BatchNorm over the batch at hand would otherwise let one clip change another's scores.
    torch.manual_seed(0)
    network = nn.BatchNorm2d(3)
    config = Config(batch_norm="batch", batch_size=4)
    x = torch.rand(4, 3, 4, 4)
    alone = score_frames(network, None, TensorPictures(x[:2]), [2], config, CPU)
    both = score_frames(network, None, TensorPictures(x), [2, 2], config, CPU)
    assert torch.equal(both.error[:2], alone.error)
