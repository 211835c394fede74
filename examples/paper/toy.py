"""Figure 1: stripes rebuilt from the blocks of other stripes, at growing sizes of a block."""

from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from blockmem import blockwise_memory, divide
from daad.plotting import ORANGE, PALE
from paper.grid import caption, name_row, picture_grid, show

SIZE = 32
# Blocks of 1 to 8 pixels begin at each of the 7 places in a period somewhere in a picture of 32.
# Larger ones do not: there are too few of them in it.
PERIOD, DARK, SHIFT = 7, 3, 3
BLOCKS = (1, 4, 8, 16, 32)
# Cosines tell colours apart by their direction: white and a grey would be one to them.
WHITE, BLUE = (1.0, 1.0, 1.0), (0.09, 0.16, 0.42)
TEMPERATURE = 1e-3  # the nearest pattern answers alone, or several that are equally near
NAMES = ("A\nlearnt", "B\nnormal", "C\nanomalous")


@dataclass(frozen=True)
class Rebuilt:
    """What blocks of `block` pixels squared make of the three pictures.

    patterns: how many different blocks A consists of.
    pictures: (3, 3, S, S), A, B and C rebuilt. errors: (3,), the mean squared error of each.
    """

    block: int
    patterns: int
    pictures: Tensor
    errors: Tensor


def toy_pictures() -> Tensor:
    """A and B with diagonal stripes, B's shifted, and C with vertical ones: (3, 3, S, S)."""
    x = torch.arange(SIZE).expand(SIZE, SIZE)
    diagonal = x + x.T
    places = torch.stack([diagonal, diagonal + SHIFT, x])
    dark = (places % PERIOD < DARK)[:, None]
    white, blue = (torch.tensor(colour).reshape(1, 3, 1, 1) for colour in (WHITE, BLUE))
    return torch.where(dark, blue, white)


def rebuild_toy() -> list[Rebuilt]:
    """The three pictures rebuilt from the blocks of A alone, for each size in `BLOCKS`.

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
    """A, B and C as rows; the input, then what each size of a block makes of it.

    Blocks that came out otherwise than they were have an orange frame.
    """
    found = rebuild_toy()
    figure, grid = picture_grid(len(NAMES), ["input", *map(_title, found)])
    inputs = toy_pictures()
    for row, (name, cells) in enumerate(zip(NAMES, grid, strict=True)):
        name_row(cells[0], name)
        show(cells[0], inputs[row])
        for axes, rebuilt in zip(cells[1:], found, strict=True):
            # Rounding of the weights may leave a colour just above white.
            show(axes, rebuilt.pictures[row].clamp(0, 1))
            _draw_blocks(axes, inputs[row], rebuilt.pictures[row], rebuilt.block)
            caption(axes, f"error {rebuilt.errors[row].item():.3f}")
    return figure


def _title(rebuilt: Rebuilt) -> str:
    patterns = "1 pattern" if rebuilt.patterns == 1 else f"{rebuilt.patterns} patterns"
    return f"block {rebuilt.block} x {rebuilt.block}\n{patterns}"


def _draw_blocks(axes: Axes, picture: Tensor, rebuilt: Tensor, block: int) -> None:
    """Thin lines where blocks meet, thinner where there are many; frames in those that differ."""
    for place in range(block, SIZE, block):
        style = {"color": PALE, "linewidth": min(0.8, block / 4)}
        axes.axhline(place - 0.5, **style)
        axes.axvline(place - 0.5, **style)
    differences = divide((rebuilt - picture).abs()[None], (3, block, block))[0].amax(dim=1)
    inset = 0.2  # pixels, so that a frame is seen to be of one block and not of its neighbour
    for index in (differences > 1e-3).nonzero().flatten().tolist():
        row, column = divmod(index, SIZE // block)
        corner = (column * block - 0.5 + inset, row * block - 0.5 + inset)
        side = block - 2 * inset
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=ORANGE, linewidth=1.1))
