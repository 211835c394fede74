"""How the figures look: two colours, calm axes, and files that are whole or absent."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from daad.files import write_atomically

# Two of the Okabe and Ito colours, told apart in every common kind of colour blindness.
BLUE, ORANGE = "#0072B2", "#D55E00"
INK, PALE = "#26323d", "#8a949e"
DPI = 144


def save_figure(path: Path, figure: Figure) -> None:
    """Write `figure` to `path`, whole or not at all, in the format that the suffix names."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=DPI))


def calm(axes: Axes) -> None:
    """Take the box, the ink and the weight out of what surrounds the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    axes.tick_params(colors=PALE, labelcolor=INK, labelsize=9)
    axes.grid(color="#e8ebee", linewidth=0.8)
    axes.set_axisbelow(True)
