"""Figures that show something."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from daad.metrics import operating_points
from daad.overlay import HEAT
from daad.pictures import to_bytes
from daad.report import (
    MAX_ROWS,
    draw_figures,
    histogram,
    losses_by_epoch,
    pick_rows,
    reconstructions,
    roc,
)
from tests.helpers.made_findings import make_findings, make_samples


def history_rows(**losses: list[float]) -> list[dict[str, Any]]:
    names = ("reconstruction", "adversarial", "alignment", "discriminator")
    count = len(losses["reconstruction"])
    empty = {name: [None] * count for name in names}
    columns = empty | losses
    return [
        {"epoch": row + 1, "auroc": None, "seconds": 1.0}
        | {name: column[row] for name, column in columns.items()}
        for row in range(count)
    ]


# Which pictures are shown


def test_picked_rows_are_typical() -> None:
    samples = make_samples({"good": 5, "scratch": 5})
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 10.0, 30.0, 20.0, 50.0, 40.0])
    # Of five in order of score: the second and fourth for two, and the first, third, fifth for
    # three (quantiles 1/6, 1/2 and 5/6).
    assert pick_rows(samples, scores) == [3, 2, 5, 6, 8]


def test_one_row_for_a_defect_is_the_median() -> None:
    counts = {"good": 3, "a": 3, "b": 3, "c": 3, "d": 3}
    samples = make_samples(counts)
    picked = pick_rows(samples, torch.arange(15, dtype=torch.float64))
    assert [samples[index].defect for index in picked] == ["good", "good", "a", "b", "c", "d"]
    assert picked[2:] == [4, 7, 10, 13]


@pytest.mark.parametrize("defects", [1, 2, 3, 5, 8, 9, 15])
def test_rows_have_a_limit_and_every_kind_that_fits(defects: int) -> None:
    counts = {"good": 4} | {f"defect {index}": 4 for index in range(defects)}
    samples = make_samples(counts)
    picked = pick_rows(samples, torch.rand(len(samples)))
    shown = Counter(samples[index].defect for index in picked)
    assert len(picked) <= MAX_ROWS
    assert len(picked) == len(set(picked))
    assert len(shown) == min(defects, MAX_ROWS - 1) + 1


def test_a_defect_with_one_picture_is_shown_once() -> None:
    samples = make_samples({"good": 1, "scratch": 1})
    assert pick_rows(samples, torch.tensor([0.0, 1.0])) == [0, 1]


# The figures


def image_of(axes: Axes) -> np.ndarray:
    """What the first picture in `axes` shows."""
    return np.asarray(axes.images[0].get_array())


@pytest.mark.parametrize("masks", [True, False])
def test_reconstructions_have_a_row_a_picture_and_a_column_a_kind(masks: bool) -> None:
    found = make_findings({"good": 4, "hole": 4, "a name that is far too long": 4}, masks=masks)
    figure = reconstructions(found)
    picked = pick_rows(found.samples, found.scores)
    columns = 4 if masks else 3
    cells = figure.axes[:-1]  # the last is the colour bar's
    assert len(cells) == columns * len(picked) == columns * 8
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    titles = ["input", "reconstruction", "squared error", "ground truth"][:columns]
    assert [axes.get_title() for axes in rows[0]] == titles
    shown = found.pictures.batch(torch.tensor(picked), "cpu")
    for row, index in enumerate(picked):
        pixels = to_bytes(shown[row]).permute(1, 2, 0)
        assert np.array_equal(image_of(rows[row][0]), pixels)
        rebuilt = found.raw.reconstructions[index].permute(1, 2, 0)
        assert np.array_equal(image_of(rows[row][1]), rebuilt)
        assert np.array_equal(image_of(rows[row][2]), found.raw.error_maps[index])
        assert f"score {found.scores[index]:.3f}" in rows[row][0].get_ylabel()
    assert rows[-1][0].get_ylabel().startswith("a name that is far …")
    if masks:  # nothing but a word over the good ones, an orange fill over the others
        assert [text.get_text() for text in rows[0][3].texts] == ["no defect"]
        assert np.array_equal(rows[-1][3].images[1].get_array()[..., 3] > 0, found.truth[0][-1])


def test_error_maps_share_one_colour_scale() -> None:
    found = make_findings({"good": 2, "hole": 1})
    found.raw.error_maps[:] = torch.tensor([0.0, 0.5, 1.0])[:, None, None]
    images = [axes.images[0] for axes in reconstructions(found).axes[2::4]]
    assert {image.get_clim() for image in images} == {(0.0, 1.0)}
    assert {image.get_cmap().name for image in images} == {HEAT}


def test_the_histogram_counts_both_kinds_in_the_same_bins() -> None:
    found = make_findings({"good": 20, "hole": 40})
    above, below = histogram(found.scores, found.labels).axes
    for axes, count, name in ((above, 20, "good (20)"), (below, 40, "anomalous (40)")):
        assert sum(bar.get_height() for bar in axes.patches) == count
        assert axes.get_title(loc="left") == name
    edges = [[bar.get_x() for bar in axes.patches] for axes in (above, below)]
    assert edges[0] == edges[1]
    assert above.patches[0].get_facecolor() != below.patches[0].get_facecolor()


def test_scores_that_span_much_are_on_a_logarithmic_axis() -> None:
    """Else one glaring defect would put all good pictures into one bin."""
    scores = torch.tensor([2.0, 3.0, 4.0, 5.0, 40.0, 3000.0])
    above, below = histogram(scores, torch.tensor([0, 0, 0, 0, 1, 1]), 6.0).axes
    assert below.get_xscale() == "log"
    assert sum(bar.get_height() > 0 for bar in above.patches) > 1
    assert sum(bar.get_height() for bar in below.patches) == 2
    above, _ = histogram(scores - 3, torch.tensor([0, 0, 0, 0, 1, 1])).axes  # some are negative
    assert above.get_xscale() == "linear"


def test_the_roc_figure_shows_the_curve_with_its_area() -> None:
    found = make_findings({"good": 20, "hole": 40})
    (axes,) = roc(found.scores, found.labels).axes
    chance, curve = axes.lines
    assert np.array_equal(chance.get_xydata(), [[0, 0], [1, 1]])
    rates = np.stack(operating_points(found.scores, found.labels).rates, axis=1)
    assert np.array_equal(curve.get_xydata(), rates)
    assert curve.get_label() == f"AUROC {found.auroc:.3f}"
    (axes,) = roc(found.scores, torch.zeros(60)).axes
    assert len(axes.lines) == 1


def test_history_has_a_panel_for_each_loss_there_is() -> None:
    falling = [1.0, 0.1, 0.01]
    (one,) = losses_by_epoch(history_rows(reconstruction=falling)).axes
    assert one.get_yscale() == "log"
    # Minimax makes the adversarial loss negative, where there is no logarithm.
    losses = {
        "reconstruction": falling,
        "adversarial": [-0.7, -0.8, -0.6],
        "alignment": [0.0, 0.0, 0.0],
        "discriminator": [1.4, 1.3, 1.2],
    }
    axes = losses_by_epoch(history_rows(**losses)).axes
    assert [one.get_title(loc="left") for one in axes] == [f"{name} loss" for name in losses]
    for one, values in zip(axes, losses.values(), strict=True):
        assert list(one.lines[0].get_xdata()) == [1, 2, 3]
        assert list(one.lines[0].get_ydata()) == values
    assert [one.get_yscale() for one in axes[1:]] == ["linear"] * 3


def test_the_held_out_loss_stands_beside_that_of_training() -> None:
    rows = history_rows(reconstruction=[0.5, 0.4], alignment=[1.0, 1.0])
    above, below = losses_by_epoch([row | {"held_out": 0.6} for row in rows]).axes
    assert [line.get_label() for line in above.lines] == ["learned", "held out"]
    assert len(below.lines) == 1


def test_history_of_a_single_epoch_is_a_point() -> None:
    (axes,) = losses_by_epoch(history_rows(reconstruction=[0.5])).axes
    assert axes.lines[0].get_marker() == "o"


def test_figures_are_drawn_and_names_are_text_and_not_formulas(tmp_path: Path) -> None:
    draw_figures(tmp_path, make_findings({"good": 2, "$\\frac$": 2}))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["reconstructions.png", "roc.png", "scores.png"]
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())
