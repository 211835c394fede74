"""The paper's figures of runs: which pictures they show, and what is drawn at which place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from daad.config import Config
from daad.folder import Hardware, write_settings
from daad.form import Form
from daad.io import UserError, save_checkpoint, write_csv
from daad.mvtec import Category, load_category
from daad.network import CHECKPOINT, Generator, load_networks
from daad.report import BLUE, INK, ORANGE, save_figure
from reproduction.drawings import COLOURS, Series, curve_figure
from reproduction.figures import area_figure, pick_samples, reconstruction_figure

CPU = torch.device("cpu")
SIZE = 64
# By defect, the sides of the squares that are marked in its pictures; None has no mask.
SQUARES = {"good": [None, None], "hole": [16, 4, 8, None, 12], "scratch": [None, None, None]}


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Category:
    """Two good pictures, five holes, of which four are marked, and three scratches, unmarked."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)

    def save(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    noise = random.integers(90, 130, (11, SIZE, SIZE, 3), dtype=np.uint8)
    save(root / "toy" / "train" / "good" / "0.png", noise[0])
    rest = iter(noise[1:])
    for defect, sides in SQUARES.items():
        for index, side in enumerate(sides):
            save(root / "toy" / "test" / defect / f"{index}.png", next(rest))
            if side is not None:
                mask = np.zeros((SIZE, SIZE), np.uint8)
                mask[-side:, -side:] = 255  # up to the edge of the picture
                save(root / "toy" / "ground_truth" / defect / f"{index}_mask.png", mask)
    return load_category(root, "toy")


def make_run(run: Path, category: Category, variant: str = "ae", image_size: int = 32) -> Path:
    """The checkpoint and the settings of an untrained network."""
    network: dict[str, Any] = {"width": 4, "levels": 2, "num_items": 4, "batch_size": 3}
    if variant == "daad":
        network["division"] = (2, 2, 1)
    config = Config(variant=variant, image_size=image_size, **network).resolve()
    torch.manual_seed(0)
    state = {"config": config.to_dict(), "epoch": 0, "generator": Generator(config).state_dict()}
    save_checkpoint(run / CHECKPOINT, state)
    write_settings(run, config, category.source, Hardware())
    return run


def write_scores(run: Path, category: Category, scores: list[float]) -> None:
    header = ("path", "label", "defect", "reconstruction", "alignment", "eq7")
    rows = [
        (sample.name, sample.label, sample.defect, 0.5, "", score)
        for sample, score in zip(category.test, scores, strict=True)
    ]
    write_csv(run / "scores.csv", header, rows[::-1])  # found by name, in whatever order


def is_drawn(figure: Figure, path: Path) -> bool:
    save_figure(path, figure)
    return path.stat().st_size > 0


# Figures 2 and 5


def test_picked_samples_are_of_median_area(category) -> None:
    names = [sample.name for sample in pick_samples(category, 3)]
    # Holes of 4, 8, 12 and 16: the greater of the middle two is 12. Scratches: the second of three.
    assert names == ["test/good/0.png", "test/hole/4.png", "test/scratch/1.png"]
    assert [sample.name for sample in pick_samples(category, 2)] == names[:2]
    assert [sample.name for sample in pick_samples(category, 9)] == names


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, category: Category) -> dict[str, Path]:
    """Two runs of other sizes of pictures."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "AE": make_run(folder / "ae", category),
        "DAAD": make_run(folder / "daad", category, "daad", image_size=64),
    }


def test_reconstructions_stand_beside_their_input(tmp_path, category, runs) -> None:
    samples = pick_samples(category, 3)
    figure = reconstruction_figure(category, samples, runs, CPU)
    assert len(figure.axes) == 9
    rows = [figure.axes[start : start + 3] for start in (0, 3, 6)]
    assert [axes.get_title() for axes in rows[0]] == ["input", "AE", "DAAD"]
    assert [row[0].get_ylabel() for row in rows] == ["good", "hole", "scratch"]
    assert [row[0].yaxis.label.get_color() for row in rows] == [BLUE, ORANGE, ORANGE]
    for row, sample in zip(rows, samples, strict=True):
        with Image.open(sample.path) as image:
            pixels = np.asarray(image) / 255
        assert np.allclose(row[0].images[0].get_array(), pixels, atol=1e-6)
    assert is_drawn(figure, tmp_path / "reconstructions.png")


def test_each_run_sees_pictures_of_its_own_size_and_says_its_error(category, runs) -> None:
    samples = pick_samples(category, 3)
    figure = reconstruction_figure(category, samples, runs, CPU)
    for column, (run, size) in enumerate(zip(runs.values(), (32, 64), strict=True), start=1):
        generator = load_networks(run)[1].generator
        x = category.pictures(samples, Form(size)).batch(torch.arange(3), "cpu")
        with torch.inference_mode():
            x_hat = generator(x)
        for row in range(3):
            axes = figure.axes[3 * row + column]
            error = (x_hat[row] - x[row]).square().mean().item()
            assert axes.get_xlabel() == f"R(x) {error:.4f}"
            shown = torch.tensor(axes.images[0].get_array()).movedim(-1, 0)
            assert torch.allclose(shown / 127.5 - 1, x_hat[row].clamp(-1, 1), atol=0.01)


def test_the_defect_is_outlined_in_the_input(category, runs) -> None:
    samples = pick_samples(category, 3)
    good, *_, hole = reconstruction_figure(category, samples, runs, CPU).axes[:4]
    assert not good.collections
    (line,) = hole.collections
    assert to_hex(line.get_edgecolor()[0]).upper() == ORANGE
    box = line.get_paths()[0].get_extents()
    # A square of 12 in the last corner of 64, one pixel wider, and closed along the edges.
    assert box.get_points().flatten() == pytest.approx([50.5, 50.5, 63.5, 63.5], abs=1e-6)
    assert (hole.get_xlim(), hole.get_ylim()) == ((-0.5, 63.5), (63.5, -0.5))


# Figure 6


def points(axes: Any, kind: int) -> list[tuple[float, float]]:
    dots = [one for one in axes.collections if isinstance(one, PathCollection)]
    return [tuple(point) for point in dots[kind].get_offsets().tolist()]


def error_bars(axes: Any) -> list[list[list[float]]]:
    bars = [one for one in axes.collections if isinstance(one, LineCollection)]
    return [end.tolist() for one in bars for end in one.get_segments()]


def test_scores_stand_at_their_areas(tmp_path, category, runs) -> None:
    scores = [1.0, 3.0, 5.0, 2.0, 3.0, 6.0, 4.0, 5.0, 6.0, 11.0]
    write_scores(runs["AE"], category, scores)
    write_scores(runs["DAAD"], category, [-score for score in scores])
    figure = area_figure(category, runs)
    one, other = figure.axes
    assert points(one, 0) == [(0, 0), (0, pytest.approx(0.2))]
    # Sides of 16, 4, 8 and 12 of 64; the fourth hole and the scratches have no mask.
    marked = [(6.25, 0.4), (0.390625, 0.1), (1.5625, 0.2), (3.515625, 0.3)]
    assert points(one, 1) == [pytest.approx(point) for point in marked]
    assert points(other, 1) == [pytest.approx((area, 1 - score)) for area, score in marked]
    # Of 2 good and 8 anomalous pictures: one pair in the wrong order, one tie.
    assert one.get_title(loc="left") == f"AE, AUROC {14.5 / 16:.3f}"
    assert other.get_title(loc="left") == f"DAAD, AUROC {1.5 / 16:.3f}"
    assert one.get_xlabel() == other.get_xlabel() == "area of the anomaly, % of the picture"
    assert one.get_ylabel() == "anomaly score"
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["good", "anomalous (without 4 of unknown area)"]
    assert is_drawn(figure, tmp_path / "area.png")


def test_a_run_without_scores_is_refused(tmp_path, category) -> None:
    run = make_run(tmp_path / "run", category)
    with pytest.raises(UserError, match=r"scores\.csv: no such file; evaluate the run first"):
        area_figure(category, {"AE": run})
    write_csv(run / "scores.csv", ("path", "eq7"), [("test/good/0.png", 1.0)])
    with pytest.raises(UserError, match=r"holds no score of test/good/1\.png; .* evaluate the run"):
        area_figure(category, {"AE": run})


# Figure 7 and Table 4


def test_a_curve_has_means_seeds_and_the_papers_figures(tmp_path) -> None:
    bottle = Series("bottle", {8: [0.9, 0.96], 2: [0.8], 4: [0.7, 0.8]})
    grid = Series("grid", {2: [0.6], 4: [0.65]})
    figure = curve_figure("r", [bottle, grid], {16: 0.813, 4: 0.821})
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["bottle", "grid", "the paper, 15 categories"]
    drawn = {name: list(zip(*line.get_data(), strict=True)) for name, line in lines.items()}
    assert drawn["bottle"] == [(2, 0.8), (4, pytest.approx(0.75)), (8, pytest.approx(0.93))]
    assert drawn["grid"] == [(2, 0.6), (4, 0.65)]
    assert drawn["the paper, 15 categories"] == [(4, 0.821), (16, 0.813)]
    assert points(axes, 0) == [(2, 0.8), (4, 0.7), (4, 0.8), (8, 0.9), (8, 0.96)]
    assert points(axes, 1) == [(2, 0.6), (4, 0.65)]
    deviation = pytest.approx(np.std([0.7, 0.8], ddof=1))
    (low, high), _ = error_bars(axes)  # of bottle at 4 and 8, where there are two seeds
    assert (low[0], high[0], high[1] - 0.75, 0.75 - low[1]) == (4, 4, deviation, deviation)
    assert [line.get_linestyle() for line in lines.values()] == ["-", "-", "--"]
    assert [line.get_color() for line in lines.values()] == [*COLOURS[:2], INK]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(lines)
    assert is_drawn(figure, tmp_path / "curve.png")


def test_a_category_with_one_number_is_dots_without_a_line() -> None:
    figure = curve_figure(
        "N", [Series("bottle", {2: [0.8], 4: [0.7]}), Series("grid", {4: [0.6]})], {}
    )
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["bottle"]
    assert points(axes, 1) == [(4, 0.6)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["bottle", "grid"]


def labels(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.axes[0].get_xticklabels()]


def test_of_many_categories_the_mean_stands_out(tmp_path) -> None:
    several = [Series(f"c{n}", {4: [n / 10, n / 10], 8: [n / 20]}) for n in range(1, 8)]
    several[0] = Series("c1", {4: [0.1, 0.3]})  # not run yet at 8
    figure = curve_figure("r", [*several, Series("not run", {})], {4: 0.8})
    *thin, paper = figure.axes[0].get_lines()
    mean = figure.axes[0].collections[0]  # of one number: a dot and no line
    assert len(thin) == 7
    assert len({line.get_color() for line in thin}) == 1
    assert mean.get_label() == "their mean"
    assert points(figure.axes[0], 0) == [(4, pytest.approx((0.2 + sum(range(2, 8)) / 10) / 7))]
    assert paper.get_label() == "the paper, 15 categories"
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["7 categories", "their mean", "the paper, 15 categories"]
    apart = [Series(f"c{n}", {2**n: [0.5]}) for n in range(7)]
    assert len(curve_figure("r", apart, {}).axes[0].get_lines()) == 7
    assert is_drawn(figure, tmp_path / "curve.png")


def test_the_axis_names_the_numbers_there_are() -> None:
    figure = curve_figure("number of items N", [Series("bottle", {31: [0.9], 500: [0.9]})], {})
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == (
        *("log", "number of items N", "AUROC"),
    )
    assert labels(figure) == ["31", "500"]
    # 100 is too close to 124 for both to be read; ours is named.
    ours = Series("bottle", {6: [0.9], 124: [0.9]})
    assert labels(curve_figure("N", [ours], {100: 0.9, 2000: 0.9})) == ["6", "124", "2000"]
    assert labels(curve_figure("N", [Series("bottle", {500: [0.9]})], {})) == ["500"]
