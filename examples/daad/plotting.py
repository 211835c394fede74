"""How the figures look: two colours, calm axes, and files that are whole or absent."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from daad.files import write_atomically

# Two of the Okabe and Ito colours, told apart in every common kind of colour blindness.
BLUE, ORANGE = "#0072B2", "#D55E00"
INK, PALE = "#26323d", "#8a949e"
DPI = 144


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


def picture_grid(
    rows: int, titles: Sequence[str], layout: Layout
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of empty square cells, a title above each column; its axes by row and column."""
    across = layout.cell + layout.gap
    down = across + layout.caption
    width = layout.left + len(titles) * across - layout.gap + layout.right
    height = layout.top + rows * down - layout.gap + layout.bottom
    figure = Figure(figsize=(width, height), facecolor="white")
    grid = []
    for row in range(rows):
        y = height - layout.top - row * down - layout.cell
        xs = [layout.left + column * across for column in range(len(titles))]
        size = (layout.cell / width, layout.cell / height)
        boxes = [(x / width, y / height, *size) for x in xs]
        grid.append([figure.add_axes(box, xticks=[], yticks=[]) for box in boxes])
        for axes in grid[-1]:
            axes.spines[:].set(color="#d5dade", linewidth=0.6)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9, color=INK, pad=6, parse_math=False)
    return figure, grid


def calm(axes: Axes) -> None:
    """Take the box, the ink and the weight out of what surrounds the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=PALE, labelcolor=INK, labelsize=9)
    axes.grid(color="#e8ebee", linewidth=0.8)
    axes.set_axisbelow(True)
