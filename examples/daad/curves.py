"""The score of a clip's frames over time, with the interval in which something is abnormal."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from daad.plotting import BLUE, INK, ORANGE, PALE, calm

SIZE = (7.2, 2.8)  # inches


def intervals(labels: Tensor) -> list[tuple[int, int]]:
    """Where labels (n,) are True: the first frame of each interval, and the one after its last."""
    found = []
    start = None
    for frame, abnormal in enumerate([*labels.tolist(), False]):
        if abnormal and start is None:
            start = frame
        elif not abnormal and start is not None:
            found.append((start, frame))
            start = None
    return found


def score_curve(clip: str, curves: dict[str, Tensor], labels: Tensor) -> Figure:
    """Scores (n,) of a clip's frames by the name of each curve; abnormal frames are shaded.

    The first curve is the one that counts; the others are thin. labels: bool (n,).
    """
    figure = Figure(figsize=SIZE, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    calm(axes)
    for number, (start, stop) in enumerate(intervals(labels)):
        # A frame is as wide as the step between two, so that a single one is seen too.
        label = None if number else "abnormal (true)"
        axes.axvspan(start - 0.5, stop - 0.5, color=ORANGE, alpha=0.18, linewidth=0, label=label)
    styles = [
        {"color": BLUE, "linewidth": 1.8, "zorder": 3},
        {"color": PALE, "linewidth": 1.2},
        {"color": INK, "linewidth": 1.0, "linestyle": "--"},
    ]
    marker = "o" if len(labels) == 1 else None  # a line through a single frame would not be seen
    for (name, scores), style in zip(curves.items(), styles, strict=False):
        axes.plot(range(len(labels)), scores.tolist(), label=name, marker=marker, **style)
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(-0.04, 1.04))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_title(f"clip {clip}", fontsize=10, color=INK, loc="left", parse_math=False)
    axes.set_xlabel("frame", fontsize=9, color=INK)
    axes.set_ylabel("anomaly score", fontsize=9, color=INK)
    figure.legend(
        frameon=False, fontsize=8, labelcolor=INK, loc="outside upper right", ncols=len(curves) + 1
    )
    return figure
