"""What a run found, in figures that look alike."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from daad.findings import Findings
from daad.io import write_atomically
from daad.metrics import image_auroc, operating_points
from daad.overlay import HEAT
from daad.pictures import GOOD, Sample, to_bytes
from daad.progress import LOSSES

# Two of the Okabe and Ito colours, told apart in every common kind of colour blindness.
BLUE, ORANGE = "#0072B2", "#D55E00"
INK, PALE = "#26323d", "#8a949e"
DPI = 144
MAX_ROWS = 10  # of the reconstructions: a good picture and up to nine defects
PLOT = (4.4, 4.0)  # inches
SPAN = 30  # times the lowest score, from which on the axis of scores is logarithmic


def save_figure(path: Path, figure: Figure, dpi: int = DPI, description: str = "") -> None:
    """Write `figure` to `path`, a PNG, whole or not at all; `description` goes into its metadata."""
    metadata = {"Description": description} if description else None
    write_atomically(path, lambda file: figure.savefig(file, dpi=dpi, metadata=metadata))


@dataclass(frozen=True)
class Layout:
    """Inches of a grid of square pictures: a cell, the gap between two, words beneath, margins."""

    cell: float
    gap: float
    left: float
    top: float
    right: float
    bottom: float
    caption: float = 0.0


# Room for row labels at the left, a colour bar at the foot
RECONSTRUCTIONS = Layout(cell=1.6, gap=0.07, left=1.5, top=0.35, right=0.15, bottom=0.6)


def picture_grid(
    rows: int, titles: Sequence[str], layout: Layout
) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure of empty square cells, a title above each column; its axes by row and column."""
    across = layout.cell + layout.gap
    down = across + layout.caption
    width = layout.left + len(titles) * across - layout.gap + layout.right
    height = layout.top + rows * down - layout.gap + layout.bottom
    figure = Figure(figsize=(width, height), facecolor="white")
    edges = {
        **{"left": layout.left / width, "right": 1 - layout.right / width},
        **{"top": 1 - layout.top / height, "bottom": (layout.bottom + layout.caption) / height},
        **{"wspace": layout.gap / layout.cell, "hspace": down / layout.cell - 1},
    }
    cell: dict[str, Any] = {"xticks": [], "yticks": []}
    grid = figure.subplots(rows, len(titles), squeeze=False, subplot_kw=cell, gridspec_kw=edges)
    for axes in grid.flat:
        axes.spines[:].set(color="#d5dade", linewidth=0.6)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9, color=INK, pad=6, parse_math=False)
    return figure, grid.tolist()


def calm(axes: Axes) -> None:
    """Take the box, the ink and the weight out of what surrounds the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=PALE, labelcolor=INK, labelsize=9)
    axes.grid(color="#e8ebee", linewidth=0.8)
    axes.set_axisbelow(True)


# The figures of a run


def draw_figures(folder: Path, findings: Findings) -> None:
    """Write reconstructions.png, scores.png and roc.png."""
    save_figure(folder / "reconstructions.png", reconstructions(findings))
    threshold = None if findings.threshold is None else findings.threshold.value
    save_figure(folder / "scores.png", histogram(findings.scores, findings.labels, threshold))
    save_figure(folder / "roc.png", roc(findings.scores, findings.labels))


def pick_rows(samples: Sequence[Sample], scores: Tensor) -> list[int]:
    """Pick typical pictures, by index: good ones, then of each defect those about its median score.

    They are at evenly spaced quantiles of the score, so neither the best nor the worst are chosen.
    """
    counts = Counter(sample.defect for sample in samples if sample.label)
    frequent = {defect for defect, _ in counts.most_common(MAX_ROWS - 1)}
    defects = [defect for defect in counts if defect in frequent]
    goods = 2 if len(defects) <= MAX_ROWS - 2 else 1
    each = max(1, min(3, 6 // max(1, len(defects))))
    picked: list[int] = []
    for defect, wanted in [(GOOD, goods), *((defect, each) for defect in defects)]:
        members = [index for index, sample in enumerate(samples) if sample.defect == defect]
        members.sort(key=lambda index: scores[index].item())
        wanted = min(wanted, len(members))
        picked += [members[int((i + 0.5) / wanted * len(members))] for i in range(wanted)]
    return picked


def reconstructions(findings: Findings) -> Figure:
    """Draw typical pictures, what became of them, where they differ, and the true defects."""
    rows = pick_rows(findings.samples, findings.scores)
    shown = findings.pictures.batch(torch.tensor(rows), "cpu")
    inputs = to_bytes(shown).permute(0, 2, 3, 1).numpy()
    outputs = findings.raw.reconstructions[rows].permute(0, 2, 3, 1).numpy()
    errors = findings.raw.error_maps[rows].numpy()
    truth = any(sample.mask for sample in findings.samples)
    masks, known = findings.truth
    titles = ["input", "reconstruction", "squared error"] + ["ground truth"] * truth
    figure, grid = picture_grid(len(rows), titles, RECONSTRUCTIONS)
    # A few glaring pixels would leave the rest of a scale up to the maximum in the dark.
    top = float(np.percentile(errors, 99.5)) or 1.0
    for row, index in enumerate(rows):
        sample, score = findings.samples[index], findings.scores[index].item()
        defect = sample.defect.replace("_", " ")
        defect = defect if len(defect) <= 20 else f"{defect[:19]}\u2026"
        grid[row][0].set_ylabel(
            f"{defect}\nscore {score:.3f}",
            color=ORANGE if sample.label else BLUE,
            fontsize=9,
            rotation=0,
            ha="right",
            va="center",
            parse_math=False,
        )
        grid[row][0].imshow(inputs[row])
        grid[row][1].imshow(outputs[row])
        grid[row][2].imshow(errors[row], cmap=HEAT, vmin=0, vmax=top)
        if truth:
            mask = masks[index].numpy() if known[index] else None
            _draw_mask(grid[row][3], inputs[row], mask)
    inch = 1 / figure.get_figheight()  # the colour bar lies below the error maps, as wide as they
    below = grid[-1][2].get_position()
    box = (below.x0, below.y0 - 0.2 * inch, below.width, 0.09 * inch)
    bar = figure.colorbar(
        grid[-1][2].images[0], cax=figure.add_axes(box), orientation="horizontal", extend="max"
    )
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_locator(MaxNLocator(3))
    bar.ax.tick_params(labelsize=7, length=2, color=PALE, labelcolor=INK)
    return figure


def _draw_mask(axes: Axes, picture: np.ndarray, mask: np.ndarray | None) -> None:
    """Show the defect in orange over a pale copy of the picture, or a word where there is none."""
    pale = 255 - (255 - picture.mean(axis=2)) * 0.45
    axes.imshow(pale, cmap="gray", vmin=0, vmax=255)
    if mask is None or not mask.any():
        word = "no defect" if mask is not None else "not known"
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 3}
        middle = picture.shape[0] / 2
        axes.text(middle, middle, word, fontsize=8, color=INK, ha="center", va="center", bbox=box)
        return
    fill = np.zeros((*mask.shape, 4))
    fill[mask] = (0.835, 0.369, 0.0, 0.55)
    axes.imshow(fill)
    if not mask.all():
        axes.contour(mask.astype(float), levels=[0.5], colors=ORANGE, linewidths=1)


def histogram(scores: Tensor, labels: Tensor, threshold: float | None = None) -> Figure:
    """Draw scores (n,), good above, anomalous below, in the same bins; each with its own counts.

    threshold: a line, above which scores are anomalous.
    """
    values, anomalous = scores.numpy(), labels.bool().numpy()
    count = int(np.clip(2 * np.sqrt(len(values)), 10, 50))
    low, high = values.min(), values.max()
    # Deviations may be thousands: on a linear axis all good ones would be in one bin.
    wide = low > 0 and high > SPAN * low
    bins = np.geomspace(low, high, count + 1) if wide else count
    edges = np.histogram_bin_edges(values, bins=bins).tolist()
    figure = Figure(figsize=PLOT, facecolor="white", layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    kinds = [(values[~anomalous], BLUE, "good"), (values[anomalous], ORANGE, "anomalous")]
    for axes, (part, colour, name) in zip(panels, kinds, strict=True):
        calm(axes)
        axes.hist(part, edges, color=colour, edgecolor="white", linewidth=0.6)
        axes.set_title(f"{name} ({len(part)})", fontsize=10, color=colour, loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("pictures", fontsize=9, color=INK)
    if threshold is not None:
        for axes in panels:
            axes.axvline(threshold, color=INK, linewidth=1, linestyle="--")
        place = panels[0].get_xaxis_transform()
        panels[0].text(
            threshold, 1.0, " threshold", transform=place, fontsize=8, color=INK, va="top"
        )
    if wide:
        panels[1].set_xscale("log")
        panels[1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[1].set_xlabel("anomaly score", fontsize=9, color=INK)
    return figure


def roc(scores: Tensor, labels: Tensor) -> Figure:
    """Draw the ROC curve of scores (n,) for labels (n,), where there are both kinds."""
    figure = Figure(figsize=PLOT, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    calm(axes)
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=1, linestyle="--", label="chance")
    area = image_auroc(scores, labels)
    if area is not None:
        rates = [rate.numpy() for rate in operating_points(scores, labels).rates]
        axes.plot(*rates, color=BLUE, linewidth=2, label=f"AUROC {area:.3f}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xlabel("false positive rate", fontsize=9, color=INK)
    axes.set_ylabel("true positive rate", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right", reverse=True)
    return figure


def losses_by_epoch(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each loss in a panel, logarithmic where one falls by much."""
    names = [name for name in LOSSES if history[0][name] is not None]
    # One above the other, so that the words can be read on a phone.
    size = (PLOT[0], 2.2 * len(names))
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    panels = figure.subplots(len(names), squeeze=False).flatten()
    epochs = [entry["epoch"] for entry in history]
    for axes, name in zip(panels, names, strict=False):
        values = [entry[name] for entry in history]
        calm(axes)
        # A line through a single epoch would not be seen.
        style = "o" if len(epochs) == 1 else "-"
        axes.plot(epochs, values, style, color=BLUE, linewidth=1.5, label="learned")
        held_out = [entry.get("held_out") for entry in history]
        if name == "reconstruction" and None not in held_out:
            axes.plot(epochs, held_out, style, color=PALE, linewidth=1.5, label="held out")
            axes.legend(frameon=False, fontsize=8, labelcolor=INK)
            values = values + held_out
        if min(values) > 0 and max(values) > 5 * min(values):
            _log_axis(axes, max(values) / min(values))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.set_title(f"{name} loss", fontsize=10, color=INK, loc="left")
        axes.set_xlabel("epoch", fontsize=9, color=INK)
    return figure


def _log_axis(axes: Axes, span: float) -> None:
    """Make a logarithmic y axis with plain numbers at 1, 2, 5, or at the powers of ten alone."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 1000 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
