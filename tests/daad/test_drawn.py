"""The drawn data set: its layout, its masks, and that a seed means the same pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from daad import drawn
from daad.drawn import DEFECTS, PRODUCTS, draw, make_dataset
from daad.form import Form
from daad.io import UserError
from daad.masks import load_masks
from daad.mvtec import list_categories, load_category

SMALL = {"image_size": 32, "train": 3, "test_good": 2, "test_per_defect": 2}


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_layout_is_mvtecs(tmp_path: Path) -> None:
    names = make_dataset(tmp_path / "new", **SMALL)
    assert sorted(names) == list_categories(tmp_path / "new") == ["gear", "weave"]
    for name in names:
        category = load_category(tmp_path / "new", name)
        assert len(category.train) == 3
        assert [sample.defect for sample in category.test] == [
            *("good", "good", "missing_part", "missing_part"),
            *("scratch", "scratch", "spot", "spot"),
        ]
        masks, known = load_masks(category.test, Form(32))
        assert known.all()
        labels = torch.tensor([sample.label for sample in category.test])
        assert torch.equal(masks.any(-1).any(-1), labels.bool())
        for sample in category.test:
            assert pixels(sample.path).shape == (32, 32, 3)
            if sample.mask is not None:
                assert sample.mask.name == f"{sample.path.stem}_mask.png"
                assert np.unique(pixels(sample.mask)).tolist() == [0, 255]


def test_one_draws_what_one_asks_for_and_it_is_the_same_alone(tmp_path: Path) -> None:
    assert make_dataset(tmp_path / "alone", **SMALL, categories=["cloth"]) == ["cloth"]
    make_dataset(tmp_path / "all", **SMALL, categories=list(PRODUCTS))
    alone, together = (contents(tmp_path / name / "cloth") for name in ("alone", "all"))
    assert alone == together


def test_a_seed_means_the_same_bytes_and_another_seed_other_pictures(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_dataset(tmp_path / name, **SMALL, seed=seed)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    pictures = [name for name in first if "ground_truth" not in name]
    assert all(first[name] != other[name] for name in pictures)
    assert len({first[name] for name in pictures}) == len(pictures)  # no two alike


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("category", PRODUCTS)
def test_the_mask_is_where_a_picture_differs_from_its_flawless_twin(
    category: str, defect: str
) -> None:
    for index in range(4):
        clean, nowhere = draw(category, (5, index), 96)
        seen, mask = draw(category, (5, index), 96, defect)
        difference = np.abs(seen.astype(int) - clean.astype(int)).max(-1)
        assert not nowhere.any()
        assert difference[~mask].max() <= 5  # below the sensor's noise
        assert difference[mask].mean() > 5
        assert 10 <= mask.sum() < 0.06 * mask.size


@pytest.mark.parametrize("category", PRODUCTS)
def test_pictures_are_exposed_like_photographs(category: str) -> None:
    pictures = np.stack([draw(category, (6, index), 96)[0] for index in range(4)])
    assert pictures.dtype == np.uint8
    assert ((pictures == 0) | (pictures == 255)).mean() < 1e-3
    assert 60 < pictures.mean() < 200
    assert (pictures.std((1, 2)) > 5).all()


@pytest.mark.parametrize("category", PRODUCTS)
def test_normal_pictures_differ_by_more_than_noise(category: str) -> None:
    one, other = (draw(category, (7, index), 96)[0].astype(float) for index in range(2))
    blocks = [image.reshape(12, 8, 12, 8, 3).mean((1, 3)) for image in (one, other)]
    assert np.abs(blocks[0] - blocks[1]).mean() > 1


def test_the_set_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(category: str, *arguments: object) -> object:
        if category == "weave":
            raise OSError("no space left")
        return draw(category, *arguments)

    monkeypatch.setattr(drawn, "draw", fail)
    with pytest.raises(OSError, match="no space left"):
        make_dataset(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "weave").mkdir()
    (tmp_path / "weave" / "mine.txt").write_text("keep")
    with pytest.raises(UserError) as caught:
        make_dataset(tmp_path, **SMALL)
    assert str(caught.value) == (
        f"{tmp_path / 'weave'}: is there already; give a new folder, or remove it"
    )
    assert list(contents(tmp_path)) == ["weave/mine.txt"]
