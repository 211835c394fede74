"""What runs show, drawn as the paper does: Figure 1's toy, Figures 2 and 5, Figure 6."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.functional import max_pool2d

from blockmem import blockwise_memory, divide
from daad.config import Config
from daad.folder import read_settings
from daad.form import Form
from daad.io import UserError, read_csv
from daad.masks import load_masks
from daad.metrics import image_auroc
from daad.mvtec import Category
from daad.network import load_networks
from daad.pictures import Sample
from daad.report import BLUE, INK, ORANGE, PALE, Layout, calm, picture_grid
from daad.scoring import Raw, min_max, score_pictures

TITLE, EDGE = 0.17, 0.12  # inches: each line of the titles, the other margins
LAYOUT = Layout(cell=1.4, gap=0.09, caption=0.2, left=1.15, top=EDGE, right=EDGE, bottom=EDGE)
PANEL = (3.4, 3.1)  # inches, of a panel of Figure 6
MASK_SIZE = 256  # at which areas are compared; the paper's size of a picture
# Figure 1
SIZE = 32
# Blocks of 1 to 8 pixels begin at each of the 7 places in a period somewhere in a picture of 32.
# Larger ones do not: there are too few of them in it.
PERIOD, DARK, SHIFT = 7, 3, 3
BLOCKS = (1, 4, 8, 16, 32)
# Cosines tell colours apart by their direction: white and a grey would be one to them.
WHITE, DARK_BLUE = (1.0, 1.0, 1.0), (0.09, 0.16, 0.42)
TEMPERATURE = 1e-3  # the nearest pattern answers alone, or several that are equally near
NAMES = ("A\nlearnt", "B\nnormal", "C\nanomalous")


# Grids of pictures: a title above each column, words left of a row and beneath


def _grid(rows: int, titles: Sequence[str]) -> tuple[Figure, list[list[Axes]]]:
    """Make empty cells, one column a title; gives the axes of each by row and column."""
    lines = max(title.count("\n") + 1 for title in titles)
    return picture_grid(rows, titles, replace(LAYOUT, top=EDGE + TITLE * lines))


def _name_row(axes: Axes, name: str, colour: str = INK) -> None:
    """Write words left of the first picture of a row."""
    style: dict[str, Any] = {
        "fontsize": 9,
        "rotation": 0,
        "ha": "right",
        "va": "center",
        "parse_math": False,
    }
    axes.set_ylabel(name, color=colour, **style)


def _caption(axes: Axes, text: str) -> None:
    """Write words beneath a picture."""
    axes.set_xlabel(text, fontsize=8, color=INK, labelpad=3)


def _show(axes: Axes, pixels: Tensor) -> None:
    """Draw a picture (3, S, S), uint8 or in [0, 1]."""
    axes.imshow(np.asarray(pixels.movedim(0, -1)))


# Figure 1: stripes rebuilt from the blocks of other stripes


@dataclass(frozen=True)
class Rebuilt:
    """The three pictures as blocks of `block` pixels squared rebuild them.

    patterns: how many different blocks A consists of.
    pictures: (3, 3, S, S), A, B and C rebuilt. errors: (3,), the mean squared error of each.
    """

    block: int
    patterns: int
    pictures: Tensor
    errors: Tensor


def toy_pictures() -> Tensor:
    """Draw A and B with diagonal stripes, B's shifted, and C with vertical ones: (3, 3, S, S)."""
    x = torch.arange(SIZE).expand(SIZE, SIZE)
    diagonal = x + x.T
    places = torch.stack([diagonal, diagonal + SHIFT, x])
    dark = (places % PERIOD < DARK)[:, None]
    white, blue = (torch.tensor(colour).reshape(1, 3, 1, 1) for colour in (WHITE, DARK_BLUE))
    return torch.where(dark, blue, white)


def rebuild_toy() -> list[Rebuilt]:
    """Rebuild the three pictures from the blocks of A alone, for each size in `BLOCKS`.

    The memory holds every block of A once, and the nearest of them stands in for each block.
    """
    pictures = toy_pictures()
    found = []
    for block in BLOCKS:
        shape = (3, block, block)
        patterns = torch.unique(divide(pictures[:1], shape)[0], dim=0)
        rebuilt = blockwise_memory(pictures, patterns, shape, temperature=TEMPERATURE)
        errors = (rebuilt - pictures).square().mean(dim=(1, 2, 3))
        found.append(Rebuilt(block, len(patterns), rebuilt, errors))
    return found


def toy_figure() -> Figure:
    """Draw A, B and C as rows: the input, then what each size of a block makes of it.

    Blocks that came out otherwise than they were have an orange frame.
    """
    found = rebuild_toy()
    figure, grid = _grid(len(NAMES), ["input", *map(_title, found)])
    inputs = toy_pictures()
    for row, (name, cells) in enumerate(zip(NAMES, grid, strict=True)):
        _name_row(cells[0], name)
        _show(cells[0], inputs[row])
        for axes, rebuilt in zip(cells[1:], found, strict=True):
            # Rounding of the weights may leave a colour just above white.
            _show(axes, rebuilt.pictures[row].clamp(0, 1))
            _draw_blocks(axes, inputs[row], rebuilt.pictures[row], rebuilt.block)
            _caption(axes, f"error {rebuilt.errors[row].item():.3f}")
    return figure


def _title(rebuilt: Rebuilt) -> str:
    patterns = "1 pattern" if rebuilt.patterns == 1 else f"{rebuilt.patterns} patterns"
    return f"block {rebuilt.block} x {rebuilt.block}\n{patterns}"


def _draw_blocks(axes: Axes, picture: Tensor, rebuilt: Tensor, block: int) -> None:
    """Draw thin lines where blocks meet, thinner where there are many, and frames in those that differ."""
    for place in range(block, SIZE, block):
        style: dict[str, Any] = {"color": PALE, "linewidth": min(0.8, block / 4)}
        axes.axhline(place - 0.5, **style)
        axes.axvline(place - 0.5, **style)
    differences = divide((rebuilt - picture).abs()[None], (3, block, block))[0].amax(dim=1)
    inset = 0.2  # pixels, so that a frame is seen to be of one block and not of its neighbour
    for index in (differences > 1e-3).nonzero().flatten().tolist():
        row, column = divmod(index, SIZE // block)
        corner = (column * block - 0.5 + inset, row * block - 0.5 + inset)
        side = block - 2 * inset
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=ORANGE, linewidth=1.1))


# Figures 2 and 5: reconstructions


def pick_samples(category: Category, count: int) -> list[Sample]:
    """Pick at most `count` pictures of the test set to show, by no score of any run.

    The first is the first good one. Then each defect has one, in the order of the test set: that
    whose marked area is the median, the greater of the middle two. Where no picture of a defect has
    a mask, it is the one in the middle.
    """
    first = next(sample for sample in category.test if sample.label == 0)
    picked = [first]
    for defect in dict.fromkeys(sample.defect for sample in category.test if sample.label):
        members = [sample for sample in category.test if sample.defect == defect]
        members = [sample for sample in members if sample.mask] or members
        areas = load_masks(members, Form(MASK_SIZE))[0].sum(dim=(1, 2)).tolist()
        order = sorted(range(len(members)), key=lambda index: areas[index])
        picked.append(members[order[len(order) // 2]])
    return picked[:count]


def reconstruction_figure(
    category: Category, samples: Sequence[Sample], runs: Mapping[str, Path], device: torch.device
) -> Figure:
    """Draw a row for each sample: the picture, its defect outlined, then what each run makes of it.

    Beneath stands R(x) of Eq. 7 as it is before scaling. runs: folders of trained runs by the
    headings of their columns; each sees the pictures at its own size.
    """
    found = {heading: _rebuild(category, samples, run, device) for heading, run in runs.items()}
    size = max(raw.error_maps.shape[-1] for raw in found.values())
    inputs = category.pictures(samples, Form(size)).batch(torch.arange(len(samples)), "cpu")
    masks, _ = load_masks(samples, Form(size))
    figure, grid = _grid(len(samples), ["input", *found])
    for row, (sample, cells) in enumerate(zip(samples, grid, strict=True)):
        _name_row(cells[0], sample.defect.replace("_", "\n"), ORANGE if sample.label else BLUE)
        _show(cells[0], (inputs[row] + 1) / 2)
        _outline(cells[0], masks[row])
        for axes, raw in zip(cells[1:], found.values(), strict=True):
            _show(axes, raw.reconstructions[row])
            _caption(axes, f"R(x) {raw.reconstruction[row].item():.4f}")
    return figure


def _rebuild(category: Category, samples: Sequence[Sample], run: Path, device: torch.device) -> Raw:
    config, networks, _ = load_networks(run, device)
    return score_pictures(networks, category.pictures(samples, config.form), config)


def _outline(axes: Axes, mask: Tensor) -> None:
    """Draw a line round the mask (S, S), a little outside it, so that small defects are still seen."""
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
    """Draw the anomaly score of each test picture by the area of its anomaly, a panel for each run.

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
        masks, known = load_masks(category.test, config.form)
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
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK, "ncols": 2}
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", **style)
    return figure


def _scores(run: Path, samples: Sequence[Sample]) -> Tensor:
    """Read the column "eq7" of a run's scores.csv, (n,) float64; UserError where one is missing."""
    path = run / "scores.csv"
    if not path.is_file():
        raise UserError(f"{path}: no such file; evaluate the run first")
    scores = {row["path"]: float(row["eq7"]) for row in read_csv(path)}
    missing = [sample.name for sample in samples if sample.name not in scores]
    if missing:
        raise UserError(
            f"{path}: holds no score of {missing[0]}; it is of other pictures, "
            f"so evaluate the run on these"
        )
    return torch.tensor([scores[sample.name] for sample in samples], dtype=torch.float64)
