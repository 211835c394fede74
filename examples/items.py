"""What the items of a memory look like: each one through the decoder, with its share of the weights.

Trains the autoencoder of `drop_in.py` on stripes at 45 degrees, some seconds on a CPU, and draws its
items into one picture.
"""

from pathlib import Path

import torch
import tyro
from torch import Tensor

from blockmem import BlockwiseMemory, Usage, fill_memories, usage
from daad.report import INK, Layout, picture_grid, save_figure
from drop_in import autoencoder, stripes, train

COLUMNS = 8


def draw(pictures: Tensor, used: Usage, path: Path) -> None:
    """Write pictures (N, 1, h, w) of N items as a grid, each under its share."""
    rows = -(-len(pictures) // COLUMNS)
    layout = Layout(cell=0.9, gap=0.15, left=0.1, top=0.3, right=0.1, bottom=0, caption=0.2)
    figure, grid = picture_grid(rows, [""] * COLUMNS, layout)
    places = [place for row in grid for place in row]
    for place in places:
        place.set_axis_off()
    for place, picture, share in zip(places, pictures, used.shares, strict=False):
        place.imshow(picture[0].numpy(), cmap="gray", vmin=-1, vmax=1)
        place.set_title(f"{share:.1%}", fontsize=9, color=INK)
    save_figure(path, figure, description="Items of a memory, decoded, and their shares")


def main(picture: Path = Path("items.png"), steps: int = 300) -> None:
    """Draw what the items of a memory look like.

    Args:
        picture: Where to write the picture.
        steps: Training steps.
    """
    torch.manual_seed(0)
    model = autoencoder(with_memory=True)
    fill_memories(model, stripes(16, angle=45))
    train(model, steps)
    (place,) = (i for i, layer in enumerate(model) if isinstance(layer, BlockwiseMemory))
    encoder, memory, decoder = model[:place], model[place], model[place + 1 :]
    assert isinstance(memory, BlockwiseMemory)
    with torch.no_grad():
        used = usage(memory.address(encoder(stripes(64, angle=45))))
        draw(decoder(memory.items()), used, picture)
    print(f"{used}\n{picture}")


if __name__ == "__main__":
    tyro.cli(main)
