"""What runs show, drawn as the paper does: Figures 2 and 5, Figure 6, Figure 7 and Table 4."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor
from torch.nn.functional import max_pool2d

from daad.checkpoint import load_models
from daad.config import Config
from daad.data import Category, Sample, load_masks
from daad.errors import UserError
from daad.plotting import BLUE, INK, ORANGE, PALE, calm
from daad.runs import read_settings
from daad.scoring import Raw, image_auroc, min_max, score_pictures
from paper.grid import caption, name_row, picture_grid, show

PANEL = (3.4, 3.1)  # inches, of a panel of Figure 6
CURVE = (5.4, 3.3)
MASK_SIZE = 256  # at which areas are compared; the paper's size of a picture
# Two more of the Okabe and Ito colours: green and a purple.
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7")


# Figures 2 and 5: reconstructions


def pick_samples(category: Category, count: int) -> list[Sample]:
    """At most `count` pictures of the test set to show, by no score of any run.

    The first good one; then one of each defect, in the order of the test set: that whose marked
    area is the median, the greater of the middle two. Where no picture of a defect has a mask, it
    is the one in the middle.
    """
    first = next(sample for sample in category.test if sample.label == 0)
    picked = [first]
    for defect in dict.fromkeys(sample.defect for sample in category.test if sample.label):
        members = [sample for sample in category.test if sample.defect == defect]
        members = [sample for sample in members if sample.mask] or members
        areas = load_masks(members, MASK_SIZE)[0].sum(dim=(1, 2)).tolist()
        order = sorted(range(len(members)), key=lambda index: areas[index])
        picked.append(members[order[len(order) // 2]])
    return picked[:count]


def reconstruction_figure(
    category: Category, samples: Sequence[Sample], runs: Mapping[str, Path], device: torch.device
) -> Figure:
    """A row for each sample: the picture, its defect outlined, then what each run makes of it.

    Beneath stands R(x) of Eq. 7 as it is before scaling. runs: folders of trained runs by the
    headings of their columns; each sees the pictures at its own size.
    """
    found = {heading: _rebuild(category, samples, run, device) for heading, run in runs.items()}
    size = max(raw.error_maps.shape[-1] for raw in found.values())
    inputs = category.pictures(samples, size).batch(torch.arange(len(samples)), "cpu")
    masks, _ = load_masks(samples, size)
    figure, grid = picture_grid(len(samples), ["input", *found])
    for row, (sample, cells) in enumerate(zip(samples, grid, strict=True)):
        name_row(cells[0], sample.defect.replace("_", "\n"), ORANGE if sample.label else BLUE)
        show(cells[0], (inputs[row] + 1) / 2)
        _outline(cells[0], masks[row])
        for axes, raw in zip(cells[1:], found.values(), strict=True):
            show(axes, raw.reconstructions[row])
            caption(axes, f"R(x) {raw.reconstruction[row].item():.4f}")
    return figure


def _rebuild(category: Category, samples: Sequence[Sample], run: Path, device: torch.device) -> Raw:
    config, generator, discriminator, _ = load_models(run, device)
    pictures = category.pictures(samples, config.image_size)
    return score_pictures(generator, discriminator, pictures, config, device)


def _outline(axes: Axes, mask: Tensor) -> None:
    """A line round the mask (S, S), a little outside it, so that small defects are still seen."""
    if not mask.any():
        return
    size = len(mask)
    margin = size // 64
    wide = max_pool2d(mask[None].float(), 2 * margin + 1, stride=1, padding=margin)[0]
    # With a border of nothing, the line is closed where the mask meets the edge of the picture.
    places = np.arange(-1, size + 1)
    axes.contour(places, places, np.pad(wide, 1), levels=[0.5], colors=ORANGE, linewidths=1)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))


# Figure 6: score by area


def area_figure(category: Category, runs: Mapping[str, Path]) -> Figure:
    """Anomaly score of each test picture by the area of its anomaly, with a panel for each run.

    runs: folders of evaluated runs by the titles of their panels. Scores are those of scores.csv,
    scaled to [0, 1]; areas are taken at the run's image size, 0 for good pictures. Anomalous
    pictures without a mask are left out, which the legend says; the AUROC is over all.
    """
    labels = torch.tensor([sample.label for sample in category.test], dtype=torch.bool)
    size = (len(runs) * PANEL[0], PANEL[1])
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for axes, (title, run) in zip(panels, runs.items(), strict=True):
        scores = _scores(run, category.test)
        config = Config.from_dict(read_settings(run, "category")["config"])
        masks, known = load_masks(category.test, config.image_size)
        areas = 100 * masks.double().mean(dim=(1, 2))
        left_out = int((~known).sum())
        anomalous = f"anomalous (without {left_out} of unknown area)" if left_out else "anomalous"
        kinds = [(~labels, BLUE, "good"), (labels & known, ORANGE, anomalous)]
        calm(axes)
        for members, colour, name in kinds:
            places = (areas[members].tolist(), min_max(scores)[members].tolist())
            axes.scatter(*places, s=18, color=colour, alpha=0.6, linewidth=0, label=name)
        area = image_auroc(scores, labels)
        words = title if area is None else f"{title}, AUROC {area:.3f}"
        axes.set_title(words, fontsize=10, color=INK, loc="left", parse_math=False)
        axes.set_xlabel("area of the anomaly, % of the picture", fontsize=9, color=INK)
    panels[0].set_ylabel("anomaly score", fontsize=9, color=INK)
    style = {"frameon": False, "fontsize": 9, "labelcolor": INK, "ncols": 2}
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", **style)
    return figure


def _scores(run: Path, samples: Sequence[Sample]) -> Tensor:
    """The column "score" of a run's scores.csv, (n,) float64; UserError where one is missing."""
    path = run / "scores.csv"
    if not path.is_file():
        raise UserError(f"{path}: no such file; evaluate the run first")
    with path.open(encoding="utf-8", newline="") as file:
        scores = {row["path"]: float(row["score"]) for row in csv.DictReader(file)}
    missing = [sample.name for sample in samples if sample.name not in scores]
    if missing:
        raise UserError(
            f"{path}: holds no score of {missing[0]}; it is of other pictures, "
            f"so evaluate the run on these"
        )
    return torch.tensor([scores[sample.name] for sample in samples], dtype=torch.float64)


# Figure 7 and Table 4: AUROC by a number


@dataclass(frozen=True)
class Series:
    """A curve: AUROCs by a number such as N or r, for each number those of all seeds."""

    name: str
    values: Mapping[float, Sequence[float]]


def curve_figure(x_label: str, series: Sequence[Series], paper: Mapping[float, float]) -> Figure:
    """AUROC by a number on a logarithmic axis: a line of means with a dot for each seed.

    Of more series than there are colours each is a thin line, and their mean stands out.
    paper: the paper's means over its categories, squares on a dashed line.
    """
    figure = Figure(figsize=CURVE, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    calm(axes)
    drawn = [one for one in series if one.values]
    if len(drawn) <= len(COLOURS):
        for one, colour in zip(drawn, COLOURS, strict=False):
            _draw_values(axes, one, colour)
    else:
        for one in drawn:
            label = None if one is not drawn[0] else f"{len(drawn)} categories"
            axes.plot(*_means(one), color=PALE, linewidth=0.7, alpha=0.6, label=label)
        mean = _mean_series(drawn)
        if mean.values:
            _draw_values(axes, mean, BLUE)
    if paper:
        numbers = sorted(paper)
        style = {"linestyle": "--", "linewidth": 1.2, "marker": "s", "markersize": 4.5}
        figures = [paper[place] for place in numbers]
        label = "the paper, 15 categories"
        axes.plot(numbers, figures, color=INK, mfc="white", label=label, **style)
    _log_axis(axes, [number for one in series for number in one.values] + list(paper))
    axes.set_xlabel(x_label, fontsize=9, color=INK)
    axes.set_ylabel("AUROC", fontsize=9, color=INK)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _means(series: Series) -> tuple[list[float], list[float]]:
    numbers = sorted(series.values)
    return numbers, [float(np.mean(series.values[number])) for number in numbers]


def _mean_series(several: Sequence[Series]) -> Series:
    """The mean of the series' means, at the numbers that all of them have."""
    common = set.intersection(*(set(one.values) for one in several))
    means = {
        number: [float(np.mean([np.mean(one.values[number]) for one in several]))]
        for number in common
    }
    return Series("their mean", means)


def _draw_values(axes: Axes, series: Series, colour: str) -> None:
    numbers, means = _means(series)
    line = len(numbers) > 1  # else the legend would show one that there is not
    if line:
        axes.plot(numbers, means, color=colour, linewidth=1.8, label=series.name)
    dots = [(number, value) for number in numbers for value in series.values[number]]
    label = None if line else series.name
    style = {"s": 16, "color": colour, "alpha": 0.6, "linewidth": 0, "zorder": 3}
    axes.scatter(*zip(*dots, strict=True), label=label, **style)


def _log_axis(axes: Axes, numbers: Sequence[float]) -> None:
    """A logarithmic x axis with the numbers themselves at it, less those too near to one before."""
    nearest = (max(numbers) / min(numbers)) ** 0.07  # of two labels that stand clear of each other
    shown: list[float] = []
    for number in numbers:
        if all(max(number, other) / min(number, other) > nearest for other in shown):
            shown.append(number)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(shown)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
