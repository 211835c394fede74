"""Pictures in MVTec layout: what is found, what is refused, and how files become numbers."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from daad.config import Config
from daad.form import Form
from daad.masks import load_masks, own_mask
from daad.mvtec import TABLE_ORDER, list_categories, load_again, load_category, load_folders
from daad.pictures import PictureFiles, Sample
from tests.helpers.picture_files import make_category, one_line, save, save_noise

REAL = Path(os.environ.get("BLOCKMEM_DATA", Path(__file__).parents[3] / "shared" / "data"))


# Finding files


def test_a_category_is_found_with_its_masks(tmp_path: Path) -> None:
    make_category(tmp_path / "toy")
    category = load_category(tmp_path, "toy")
    assert category.name == "toy"
    assert [sample.name for sample in category.train] == ["train/good/0.png", "train/good/1.png"]
    good, scratched = category.test
    assert (good.label, good.defect, good.mask) == (0, "good", None)
    assert (scratched.label, scratched.defect) == (1, "scratch")
    assert scratched.name == "test/scratch/0.png"
    assert scratched.mask == tmp_path / "toy/ground_truth/scratch/0_mask.png"


def test_the_order_is_natural_and_good_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_category(tmp_path / "toy")
    for name in ("10", "9", "09", "a2", "a10"):
        save(folder / f"train/good/{name}.png")
        save(folder / f"test/crack{name}/0.png")
    listed = Path.iterdir

    def shuffled(path: Path) -> list[Path]:
        return random.Random(0).sample(paths := list(listed(path)), len(paths))

    monkeypatch.setattr(Path, "iterdir", shuffled)
    category = load_category(tmp_path, "toy")
    assert [sample.path.stem for sample in category.train] == [
        *("0", "1", "09", "9", "10", "a2", "a10")
    ]
    assert [sample.defect for sample in category.test] == [
        *("good", "crack09", "crack9", "crack10", "cracka2", "cracka10", "scratch")
    ]


def test_only_visible_pictures_count(tmp_path: Path) -> None:
    folder = make_category(tmp_path / "toy")
    for name in (".hidden.png", "._0.png", "notes.txt", "Thumbs.db", "noextension"):
        (folder / "train/good" / name).write_text("not a picture")
    (folder / "train/good/folder.png").mkdir()
    (folder / "test/.cache").mkdir()
    save(folder / "test/.cache/0.png")
    save(folder / "train/good/2.JPG")
    save(folder / "train/good/3.Tiff")
    save(folder / "train/good/4.webp")
    save(folder / "train/good/5.BMP")
    category = load_category(tmp_path, "toy")
    names = [sample.path.name for sample in category.train]
    assert names == ["0.png", "1.png", "2.JPG", "3.Tiff", "4.webp", "5.BMP"]
    assert {sample.defect for sample in category.test} == {"good", "scratch"}


def test_masks_are_paired_by_stem(tmp_path: Path) -> None:
    folder = make_category(tmp_path / "toy")
    masks = folder / "ground_truth/hole"
    for stem in ("plain", "marked", "both", "none"):
        save(folder / f"test/hole/{stem}.jpg")
    plain = save(masks / "plain.bmp", 255, mode="L")
    marked = save(masks / "marked_mask.PNG", 255, mode="L")
    save(masks / "both.png", 255, mode="L")
    both = save(masks / "both_mask.png", 255, mode="L")
    save(folder / "ground_truth/good/0_mask.png", 255, mode="L")
    samples = load_category(tmp_path, "toy").test
    found = {sample.path.stem: sample.mask for sample in samples if sample.defect == "hole"}
    assert found == {"plain": plain, "marked": marked, "both": both, "none": None}
    assert samples[0].mask is None  # a good picture has no defect to mark


def test_categories_come_in_the_papers_order(tmp_path: Path) -> None:
    for name in ("zipper", "bottle", "carpet", "part10", "part9", "apple"):
        make_category(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden/train/good").mkdir(parents=True)
    (tmp_path / "license.txt").write_text("text")
    assert list_categories(tmp_path) == ["carpet", "bottle", "zipper", "apple", "part9", "part10"]
    assert len(TABLE_ORDER) == 15


# Each refusal is one line that names the folder and what to do.


def test_no_such_root(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    expected = f"{missing}: no such folder; give the one that holds the categories"
    assert one_line(lambda: list_categories(missing)) == expected
    assert one_line(lambda: load_category(missing, "toy")) == expected


def test_a_root_without_categories(tmp_path: Path) -> None:
    assert one_line(lambda: list_categories(tmp_path)) == (
        f"{tmp_path}: no category in it; expected folders NAME/train/good of pictures"
    )


def test_a_category_given_as_the_root(tmp_path: Path) -> None:
    folder = make_category(tmp_path / "toy")
    assert one_line(lambda: list_categories(folder)) == (
        f"{folder}: is a category itself; give the folder that holds it"
    )


def test_no_such_category(tmp_path: Path) -> None:
    make_category(tmp_path / "toy")
    make_category(tmp_path / "bottle")
    assert one_line(lambda: load_category(tmp_path, "botle")) == (
        f"{tmp_path / 'botle'}: no such category; in {tmp_path}: bottle, toy"
    )


@pytest.mark.parametrize("folder_is_there", [True, False])
def test_nothing_to_train_on(tmp_path: Path, folder_is_there: bool) -> None:
    (tmp_path / "toy" / ("train/good" if folder_is_there else "train")).mkdir(parents=True)
    assert one_line(lambda: load_category(tmp_path, "toy")) == (
        f"{tmp_path / 'toy/train/good'}: no pictures; put the normal ones for training there "
        "(png, jpg, jpeg, bmp, tif, tiff, webp)"
    )


@pytest.mark.parametrize(
    ("there", "tested"),
    [
        ([], []),
        (["scratch"], ["good", "scratch"]),  # those held out are the good ones
        (["good", "scratch"], ["good", "scratch"]),
    ],
)
def test_what_there_need_not_be(tmp_path: Path, there: list[str], tested: list[str]) -> None:
    folder = tmp_path / "toy"
    for index in range(4):
        save(folder / f"train/good/{index}.png")
    for name in there:
        save(folder / f"test/{name}/0.png")
    category = load_category(tmp_path, "toy")
    found = category.tested(Config(held_out=0.25))
    assert [sample.defect for sample in found] == tested
    if there == ["scratch"]:
        assert found[0] in category.train
        assert "--held-out above 0" in one_line(lambda: category.tested(Config()))


def test_a_test_set_of_good_pictures_alone_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    save(folder / "train/good/0.png")
    save(folder / "test/good/0.png")
    assert "only good pictures" in one_line(lambda: load_category(tmp_path, "toy"))


def test_masks_that_match_nothing_are_refused(tmp_path: Path) -> None:
    folder = make_category(tmp_path / "toy")
    (folder / "ground_truth/scratch/0_mask.png").rename(folder / "ground_truth/scratch/a_seg.png")
    assert "1 masks, and none belongs" in one_line(lambda: load_category(tmp_path, "toy"))


def test_masks_by_other_names_and_folders_of_masks(tmp_path: Path) -> None:
    folder = make_category(tmp_path / "toy")
    masks = folder / "ground_truth/hole"
    save(folder / "test/hole/0.png")
    save(folder / "test/hole/1.png")
    named = save(masks / "0_GT.png", 255, mode="L")
    for index, box in enumerate([(0, 0, 4, 4), (4, 4, 8, 8)]):
        image = Image.new("L", (8, 8))
        image.paste(255, box)
        (masks / "1").mkdir(exist_ok=True)
        image.save(masks / f"1/00{index}.png")
    holes = [one for one in load_category(tmp_path, "toy").test if one.defect == "hole"]
    assert [one.mask for one in holes] == [named, masks / "1"]
    joined = own_mask(holes[1])
    assert joined.sum() == 32
    assert joined[:4, :4].all()
    assert joined[4:, 4:].all()


# Any folders


def test_what_is_no_picture_is_counted_by_kind(tmp_path: Path) -> None:
    make_category(tmp_path / "part")
    for name in ("train/good/a.HEIC", "test/scratch/b.heic", "test/notes", "test/good/.hidden"):
        (tmp_path / "part" / name).touch()
    counted = load_category(tmp_path, "part").passed_over()
    assert counted == {".heic": 2, "without a suffix": 1}
    good = tmp_path / "part" / "train" / "good"
    assert load_folders(good).passed_over() == {".heic": 1}


def test_folders_are_taken_with_all_below(tmp_path: Path) -> None:
    for name in ("10", "9", "deep/1"):
        save(tmp_path / f"good/{name}.png")
    save(tmp_path / "bad/scratch/0.png")
    save(tmp_path / "bad/1.png")
    category = load_folders(tmp_path / "good", tmp_path / "bad")
    assert [sample.name for sample in category.train] == ["9.png", "10.png", "deep/1.png"]
    assert [sample.defect for sample in category.test] == ["bad", "scratch"]
    assert category.name == "good"
    again = load_again(category.source, None)
    assert again == category
    assert load_folders(tmp_path / "good").test == []
    inside = one_line(lambda: load_folders(tmp_path, tmp_path / "bad"))
    assert "lies in the other" in inside


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("kept", [0.0, 0.6])
def test_a_broken_picture_is_named(
    tmp_path: Path, suffix: str, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some libraries leave it
    whole = save_noise(tmp_path / "0.png")
    broken = save_noise(tmp_path / f"1.{suffix}")
    content = broken.read_bytes()
    broken.write_bytes(content[: int(kept * len(content))])
    text = one_line(lambda: PictureFiles([whole, broken], Form(8)))
    assert text.startswith(f"{broken}: cannot be read as a picture (")
    assert text.endswith("); replace or remove it")


def test_a_broken_picture_is_named_when_decoded_by_the_batch(tmp_path: Path) -> None:
    broken = tmp_path / "0.png"
    broken.write_text("text")
    pictures = PictureFiles([broken], Form(8), memory_limit=0)
    assert f"{broken}: cannot be read" in one_line(lambda: pictures.batch(torch.tensor([0]), "cpu"))


def test_a_broken_mask_is_named(tmp_path: Path) -> None:
    mask = tmp_path / "0_mask.png"
    mask.write_bytes(b"\x89PNG")
    sample = Sample(tmp_path / "0.png", "scratch", mask)
    assert f"{mask}: cannot be read" in one_line(lambda: load_masks([sample], Form(8)))


# Masks


def test_masks_and_whether_they_are_known(tmp_path: Path) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:2, :4] = 1  # above half of the brightest, however dark
    Image.fromarray(mask).save(tmp_path / "0_mask.png")
    picture = tmp_path / "0.png"
    samples = [
        Sample(picture, "good", None),
        Sample(picture, "scratch", tmp_path / "0_mask.png"),
        Sample(picture, "scratch", None),
    ]
    masks, known = load_masks(samples, Form(4))
    assert masks.dtype == known.dtype == torch.bool
    assert known.tolist() == [True, True, False]
    assert masks.sum((1, 2)).tolist() == [0, 2, 0]
    assert masks[1, 0].tolist() == [True, True, False, False]


def test_no_pictures_no_masks() -> None:
    masks, known = load_masks([], Form(4))
    assert masks.shape == (0, 4, 4)
    assert known.shape == (0,)
    assert known.dtype == torch.bool


@pytest.mark.parametrize(
    ("mode", "color", "anomalous"),
    [
        ("L", 1, True),
        ("1", 1, True),
        ("I;16", 1, True),
        ("RGB", (0, 0, 1), True),
        ("RGB", (0, 0, 0), False),
        ("RGBA", (0, 0, 0, 255), False),
        ("RGBA", (255, 255, 255, 0), False),
        ("RGBA", (255, 255, 255, 255), True),
        ("LA", (255, 0), False),
    ],
)
def test_what_counts_as_marked(tmp_path: Path, mode: str, color: object, anomalous: bool) -> None:
    path = save(tmp_path / "0.png", color, mode=mode)
    masks, _ = load_masks([Sample(path, "scratch", path)], Form(4))
    assert masks.all() == masks.any() == anomalous


def test_a_palette_mask_is_judged_by_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.paste(0, (0, 0, 4, 8))
    image.save(tmp_path / "0_mask.png")
    masks, _ = load_masks([Sample(tmp_path / "0.png", "scratch", tmp_path / "0_mask.png")], Form(8))
    assert masks[0, 0].tolist() == [True] * 4 + [False] * 4


# Photographs


@pytest.mark.skipif(not (REAL / "mvtec").is_dir(), reason=f"no MVTec AD pictures at {REAL}")
def test_real_categories() -> None:
    root = REAL / "mvtec"
    assert list_categories(root) == ["grid", "bottle", "screw"]
    bottle = load_category(root, "bottle")
    assert len(bottle.train) == 209
    assert [sum(s.label == label for s in bottle.test) for label in (0, 1)] == [20, 63]
    masks, known = load_masks(bottle.test, Form(64))
    assert known.all()
    labels = torch.tensor([sample.label for sample in bottle.test])
    assert torch.equal(masks.any(-1).any(-1), labels.bool())
