"""Frame scores as MNAD has them, against numbers worked by hand."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from daad.config import Config
from daad.frames import (
    HIGHEST_PSNR,
    Clip,
    FrameScores,
    combine,
    intervals,
    psnr,
    scaled,
    score_curve,
    score_frames,
)
from daad.network import Networks
from daad.report import save_figure
from tests.helpers.stand_ins import Halve, MeanFeature, TensorPictures

# Three clips. An error of 0.4 in [-1, 1] is one of 0.1 in [0, 1], and 10 log10(1 / 0.1) = 10 dB.
LENGTHS = [3, 2, 2]
ERROR = torch.tensor([0.4, 0.04, 0.004, 0.04, 0.0004, 0.004, 0.004], dtype=torch.float64)
PSNR = [10, 20, 30, 20, 40, 30, 30]
# MNAD takes (p - min) / (max - min) within a clip for normality; one minus that is the anomaly.
BY_CLIP = [1, 0.5, 0, 1, 0, 0, 0]
OVER_ALL = [1, 2 / 3, 1 / 3, 2 / 3, 0, 1 / 3, 1 / 3]
LABELS = [torch.tensor(labels).bool() for labels in ([1, 0, 0], [0, 1], [0, 1])]


def clips_of(lengths: Sequence[int]) -> list[Clip]:
    return [
        Clip(str(number), [Path(f"{frame}.png") for frame in range(length)])
        for number, length in enumerate(lengths)
    ]


def combined(
    error: Tensor,
    alignment: Tensor | None,
    lengths: Sequence[int],
    gamma: float,
    labels: Sequence[Tensor] = (),
) -> FrameScores:
    return combine(clips_of(lengths), labels, error, alignment, gamma)


def test_psnr_by_hand() -> None:
    assert psnr(ERROR).tolist() == pytest.approx(PSNR, abs=1e-12)


def test_psnr_of_a_perfect_reconstruction_is_finite_and_the_highest() -> None:
    values = psnr(torch.tensor([0.0, 1e-30, 4e-9], dtype=torch.float64)).tolist()
    assert values == pytest.approx([HIGHEST_PSNR, HIGHEST_PSNR, 90])
    # beyond the error of rounding to 8 bits, so that no two frames that differ in earnest tie
    step = 1 / 255
    assert 10 * math.log10(12 / step**2) < 60 < HIGHEST_PSNR


def test_scores_by_hand() -> None:
    found = combined(ERROR, None, LENGTHS, gamma=0.9)
    assert found.score["clip"].tolist() == pytest.approx(BY_CLIP, abs=1e-12)
    assert found.score["global"].tolist() == pytest.approx(OVER_ALL, abs=1e-12)
    assert found.fused is None
    assert [part.tolist() for part in found.by_clip(found.error)] == [
        *(ERROR[:3].tolist(), ERROR[3:5].tolist(), ERROR[5:].tolist())
    ]


def test_areas_by_counted_pairs() -> None:
    # By clip: 1 against 0.5, 0, 1, 0 wins 3.5; each 0 wins 1. Over all: 1 wins 4, 0 none, 1/3 one.
    areas = combined(ERROR, None, LENGTHS, 0.9, LABELS).metrics()["frame_auroc"]
    assert areas == pytest.approx({"clip": 5.5 / 12, "global": 5 / 12}, abs=1e-6)


def test_a_frame_is_judged_within_its_own_clip() -> None:
    # The second clip is harder throughout: only scaling by clip ranks all four frames rightly.
    error = torch.tensor([1e-4, 1e-3, 1e-2, 1e-1], dtype=torch.float64)
    labels = [torch.tensor([False, True])] * 2
    areas = combined(error, None, [2, 2], 0.9, labels).metrics()["frame_auroc"]
    assert areas == {"clip": 1.0, "global": 0.75}


def test_constant_scores_are_zero() -> None:
    error = torch.full((5,), 0.01, dtype=torch.float64)
    labels = [torch.tensor([0, 1, 0, 1]).bool(), torch.tensor([1]).bool()]
    found = combined(error, torch.ones(5).double(), [4, 1], 0.5, labels)
    for scores in (*found.score.values(), *found.fused.values()):
        assert scores.tolist() == [0.0] * 5
    assert found.metrics()["frame_auroc"] == {"clip": 0.5, "global": 0.5}


def test_frames_of_one_kind_have_no_area() -> None:
    labels = [torch.ones(length).bool() for length in LENGTHS]
    found = combined(ERROR, None, LENGTHS, 0.9, labels)
    assert found.auroc is None
    assert found.metrics()["frame_auroc"] == {"clip": None, "global": None}


def test_equation_7_on_frames_by_hand() -> None:
    alignment = torch.tensor([2, 2, 4, 0, 8, 6, 6], dtype=torch.float64)
    found = combined(ERROR, alignment, LENGTHS, gamma=0.75)
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
    found = score_frames(Networks(Halve(), MeanFeature()), frames, clips_of([3, 2]), [], config)
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
    networks = Networks(nn.BatchNorm2d(3), None)
    config = Config(batch_norm="batch", batch_size=4)
    x = torch.rand(4, 3, 4, 4)
    alone = score_frames(networks, TensorPictures(x[:2]), clips_of([2]), [], config)
    both = score_frames(networks, TensorPictures(x), clips_of([2, 2]), [], config)
    assert torch.equal(both.error[:2], alone.error)


# Curves over time: what is shaded, and what is drawn


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0, 1, 1, 0, 1], [(1, 3), (4, 5)]),
        ([1, 0, 0], [(0, 1)]),
        ([1, 1], [(0, 2)]),
        ([0, 0], []),
    ],
)
def test_intervals(labels: list[int], found: list[tuple[int, int]]) -> None:
    assert intervals(torch.tensor(labels).bool()) == found


def shaded(figure: Figure) -> list[tuple[float, float]]:
    spans = figure.axes[0].patches
    return [(span.get_x(), span.get_x() + span.get_width()) for span in spans]


@pytest.mark.parametrize("clip", ["01", "a_$b$_c"])
def test_a_curve_shows_its_scores_and_the_true_intervals(tmp_path, clip: str) -> None:
    scores = torch.tensor([0.0, 0.5, 1.0, 0.25, 0.1], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 1]).bool()
    figure = score_curve(clip, {"by clip": scores, "over all": scores / 2}, labels)
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["by clip", "over all"]
    assert list(lines[0].get_xdata()) == [0, 1, 2, 3, 4]
    assert list(lines[0].get_ydata()) == scores.tolist()
    assert shaded(figure) == [(0.5, 2.5), (3.5, 4.5)]
    save_figure(tmp_path / "curve.png", figure)
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("abnormal (true)", "by clip", "over all")
    ]


def test_a_clip_of_one_frame_and_one_without_anything_abnormal(tmp_path) -> None:
    figure = score_curve("1", {"score": torch.zeros(1)}, torch.tensor([True]))
    assert shaded(figure) == [(-0.5, 0.5)]
    assert figure.axes[0].lines[0].get_marker() == "o"
    save_figure(tmp_path / "one.png", figure)
    figure = score_curve("2", {"score": torch.zeros(4)}, torch.zeros(4).bool())
    assert shaded(figure) == []
    save_figure(tmp_path / "none.png", figure)
