"""One class as the normal one: what is learned and tested, and how its pictures are framed."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from daad.classes import load_labelled, one_class, to_square
from daad.form import Form
from daad.io import UserError
from tests.helpers.labelled_files import write_cifar10, write_mnist


def test_one_class_is_learned_and_all_are_tested(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    dataset = load_labelled("mnist", tmp_path)
    category = one_class(dataset, "8")
    learned = dataset.splits["train"].labels[[row.index for row in category.train]]
    assert learned.tolist() == [8] * 4
    assert [row.label for row in category.test] == [0] * 2 + [1] * 18
    assert sorted(row.index for row in category.test) == list(range(20))
    for row in category.test:
        label = dataset.splits["test"].labels[row.index]
        assert row.defect == ("good" if label == 8 else str(label))
        assert row.name == f"test/{label}/{row.index:05}"
    assert Counter(row.defect for row in category.test)["0"] == 2


@pytest.mark.parametrize(("split", "channels"), [("train", 1), ("test", 3)])
def test_pictures_are_those_of_their_rows(split: str, channels: int, tmp_path: Path) -> None:
    if channels == 1:
        write_mnist(tmp_path)
    else:
        write_cifar10(tmp_path)
    dataset = load_labelled("mnist" if channels == 1 else "cifar10", tmp_path)
    category = one_class(dataset, dataset.classes[3])
    samples = getattr(category, split)[1:4]
    batch = category.pictures(samples, Form(32)).batch(torch.tensor([2, 0]), "cpu")
    assert batch.shape == (2, 3, 32, 32)
    frame = 0 if channels == 3 else 2
    for picture, sample in zip(batch, (samples[2], samples[0]), strict=True):
        raw = dataset.splits[split].pixels[sample.index]
        expected = np.full((3, 32, 32), -1.0)
        expected[:, frame : 32 - frame, frame : 32 - frame] = raw / 127.5 - 1
        torch.testing.assert_close(picture.double(), torch.tensor(expected), atol=1e-6, rtol=0)


def test_an_odd_frame_is_wider_at_the_end() -> None:
    square = to_square(torch.ones(1, 1, 2, 2, dtype=torch.uint8), 5)
    assert square.shape == (1, 3, 5, 5)
    assert square.sum() == 3 * 4
    assert (square[0, :, 1:3, 1:3] == 1).all()
    with pytest.raises(UserError, match="--image-size 1: the pictures have 2x2 pixels"):
        to_square(torch.ones(1, 1, 2, 2, dtype=torch.uint8), 1)
