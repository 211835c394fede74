"""A grid of small square pictures: a title above each column, words left of a row and beneath."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from daad.plotting import INK

CELL, GAP, CAPTION = 1.4, 0.09, 0.2  # inches: a picture, what is between two, the words beneath
LEFT, TITLE, EDGE = 1.15, 0.17, 0.12  # for the names of the rows, each line of the titles, all else


def picture_grid(rows: int, titles: Sequence[str]) -> tuple[Figure, list[list[Axes]]]:
    """A figure of empty cells, one column a title, and the axes of each by row and column."""
    top = EDGE + TITLE * max(title.count("\n") + 1 for title in titles)
    pitch = CELL + CAPTION + GAP  # from the top of a row to that of the next
    width = LEFT + len(titles) * (CELL + GAP) - GAP + EDGE
    height = top + rows * pitch - GAP + EDGE
    figure = Figure(figsize=(width, height), facecolor="white")
    grid = []
    for row in range(rows):
        y = height - top - row * pitch - CELL
        xs = [LEFT + column * (CELL + GAP) for column in range(len(titles))]
        boxes = [(x / width, y / height, CELL / width, CELL / height) for x in xs]
        grid.append([figure.add_axes(box, xticks=[], yticks=[]) for box in boxes])
        for axes in grid[-1]:
            axes.spines[:].set(color="#d5dade", linewidth=0.6)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9, color=INK, pad=6, parse_math=False)
    return figure, grid


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
