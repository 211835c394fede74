"""Curves over time: what is shaded, and what is drawn."""

import pytest
import torch
from matplotlib.figure import Figure

from daad.curves import intervals, score_curve
from daad.plotting import save_figure


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
