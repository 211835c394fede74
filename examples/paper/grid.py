"""A grid of small square pictures: a title above each column, words left of a row and beneath."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from daad import plotting
from daad.plotting import INK, Layout

TITLE, EDGE = 0.17, 0.12  # inches: each line of the titles, the other margins
LAYOUT = Layout(cell=1.4, gap=0.09, caption=0.2, left=1.15, top=EDGE, right=EDGE, bottom=EDGE)


def picture_grid(rows: int, titles: Sequence[str]) -> tuple[Figure, list[list[Axes]]]:
    """Empty cells, one column a title, and the axes of each by row and column."""
    lines = max(title.count("\n") + 1 for title in titles)
    return plotting.picture_grid(rows, titles, replace(LAYOUT, top=EDGE + TITLE * lines))


def name_row(axes: Axes, name: str, colour: str = INK) -> None:
    """Words left of the first picture of a row."""
    style = {"fontsize": 9, "rotation": 0, "ha": "right", "va": "center", "parse_math": False}
    axes.set_ylabel(name, color=colour, **style)


def caption(axes: Axes, text: str) -> None:
    """Words beneath a picture."""
    axes.set_xlabel(text, fontsize=8, color=INK, labelpad=3)


def show(axes: Axes, pixels: Tensor) -> None:
    """Draw a picture (3, S, S), uint8 or in [0, 1]."""
    axes.imshow(np.asarray(pixels.movedim(0, -1)))
