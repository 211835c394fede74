"""The picture of a memory's items."""

import numpy as np
import torch
from PIL import Image

import items
from blockmem import usage


def test_the_script_trains_and_draws_16_items(tmp_path, capsys):
    path = tmp_path / "items.png"
    items.main(path, steps=5)
    printed = capsys.readouterr().out
    assert printed.startswith("Usage(num_items=16, perplexity=")
    assert printed.endswith(f"{path}\n")
    with Image.open(path) as picture:
        assert picture.width > 3 * picture.height


def test_each_item_has_its_own_place_and_share(tmp_path):
    """Nine pictures, one of them white: it is the one place that changes, and so is its share."""
    used = usage(torch.eye(9))
    drawn = []
    for value in (-1, 1):
        pictures = -torch.ones(9, 1, 4, 4)
        pictures[8] = value
        items.draw(pictures, used, tmp_path / "items.png")
        with Image.open(tmp_path / "items.png") as picture:
            drawn.append(np.asarray(picture.convert("L")).astype(int))
    rows, columns = np.nonzero(drawn[1] - drawn[0])
    height, width = drawn[0].shape
    assert rows.min() > height / 2  # the ninth item is the first of the second row
    assert columns.max() < width / 8
