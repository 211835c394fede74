"""Pictures in MVTec layout: what is found, what is refused, and how files become numbers."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from daad import data
from daad.data import (
    TABLE_ORDER,
    Pictures,
    Sample,
    list_categories,
    load_category,
    load_masks,
)
from daad.errors import UserError

REAL = Path(os.environ.get("BLOCKMEM_DATA", Path(__file__).parents[3] / "shared" / "data"))


def save(path: Path, color: object = (10, 20, 30), size: int = 8, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size), color).save(path)
    return path


def save_noise(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_category(folder: Path) -> Path:
    """Two pictures to train on; one good and one scratched to test, with its mask."""
    for name in ("train/good/0.png", "train/good/1.png", "test/good/0.png", "test/scratch/0.png"):
        save(folder / name)
    save(folder / "ground_truth/scratch/0_mask.png", 255, mode="L")
    return folder


def pixel(path: Path) -> list[int]:
    """The top left pixel as the network sees it, back in 0 to 255."""
    values = Pictures([path], 4).batch(torch.tensor([0]), "cpu")[0, :, 0, 0]
    return ((values + 1) * 127.5).round().int().tolist()


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


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


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
    ("there", "complaint"),
    [
        ([], "no pictures; expected good/ and one folder a defect"),
        (["scratch"], "no good pictures; put some in {good} to rank against"),
        (["good"], "only good pictures; put anomalous ones in a folder a defect"),
    ],
)
def test_a_test_set_without_both_classes(tmp_path: Path, there: list[str], complaint: str) -> None:
    folder = tmp_path / "toy"
    for place in ("train/good", *(f"test/{name}" for name in there)):
        save(folder / place / "0.png")
    assert one_line(lambda: load_category(tmp_path, "toy")) == (
        f"{folder / 'test'}: " + complaint.format(good=folder / "test/good")
    )


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
    text = one_line(lambda: Pictures([whole, broken], 8))
    assert text.startswith(f"{broken}: cannot be read as a picture (")
    assert text.endswith("); replace or remove it")


def test_a_broken_picture_is_named_when_decoded_by_the_batch(tmp_path: Path) -> None:
    broken = tmp_path / "0.png"
    broken.write_text("text")
    pictures = Pictures([broken], 8, memory_limit=0)
    assert f"{broken}: cannot be read" in one_line(lambda: pictures.batch(torch.tensor([0]), "cpu"))


def test_a_broken_mask_is_named(tmp_path: Path) -> None:
    mask = tmp_path / "0_mask.png"
    mask.write_bytes(b"\x89PNG")
    sample = Sample(tmp_path / "0.png", "scratch", mask)
    assert f"{mask}: cannot be read" in one_line(lambda: load_masks([sample], 8))


# From files to numbers


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "expected"),
    [
        ("RGB", (10, 20, 30), "png", [10, 20, 30]),
        ("L", 77, "png", [77, 77, 77]),
        ("1", 1, "png", [255, 255, 255]),
        ("I;16", 0x4D00, "png", [77, 77, 77]),
        ("I;16", 0x4D00, "tif", [77, 77, 77]),
        ("I", 0x4D00, "tif", [77, 77, 77]),
        ("LA", (0, 0), "png", [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), "png", [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), "png", [255, 255, 255]),
        ("CMYK", (0, 255, 255, 0), "tif", [255, 0, 0]),
    ],
)
def test_odd_formats(
    tmp_path: Path, mode: str, color: object, suffix: str, expected: list[int]
) -> None:
    assert pixel(save(tmp_path / f"0.{suffix}", color, mode=mode)) == expected


def test_palettes_and_their_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "0.png")
    image.save(tmp_path / "1.png", transparency=bytes([255, 0]))
    assert pixel(tmp_path / "0.png") == [200, 100, 50]
    assert pixel(tmp_path / "1.png") == [255, 255, 255]


@pytest.mark.parametrize(("mode", "color"), [("F", 0.5), ("I", 70000), ("I", -1)])
def test_values_without_a_known_range_are_refused(tmp_path: Path, mode: str, color: float) -> None:
    path = save(tmp_path / "0.tif", color, mode=mode)
    assert "save it with 8 or 16 bits" in one_line(lambda: Pictures([path], 4))


def test_exif_orientation_is_obeyed(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 16), "black")
    image.paste("white", (0, 0, 8, 8))  # white on top; turned by 180 degrees, at the bottom
    exif = Image.Exif()
    exif[0x0112] = 3
    image.save(tmp_path / "0.png", exif=exif)
    seen = Pictures([tmp_path / "0.png"], 8).batch(torch.tensor([0]), "cpu")
    assert seen[0, 0, 0, 0] == -1
    assert seen[0, 0, 7, 0] == 1


def test_batches_are_what_pil_makes_of_the_files(tmp_path: Path) -> None:
    paths = [save_noise(tmp_path / f"{seed}.png", seed=seed) for seed in range(5)]
    pictures = Pictures(paths, 16)
    assert len(pictures) == 5
    batch = pictures.batch(torch.tensor([3, 0, 3]), "cpu")
    assert batch.shape == (3, 3, 16, 16)
    assert batch.dtype == torch.float32
    for row, index in enumerate((3, 0, 3)):
        image = Image.open(paths[index]).resize((16, 16), Image.Resampling.BICUBIC)
        expected = torch.tensor(np.asarray(image), dtype=torch.float64).permute(2, 0, 1)
        torch.testing.assert_close(batch[row].double(), expected / 127.5 - 1, atol=1e-6, rtol=0)


def test_a_batch_is_the_callers_own(tmp_path: Path) -> None:
    pictures = Pictures([save(tmp_path / "0.png", "white")], 4)
    pictures.batch(torch.tensor([0]), "cpu").zero_()
    assert (pictures.batch(torch.tensor([0]), "cpu") == 1).all()


def test_the_memory_limit_changes_when_files_are_read_but_not_what_comes_out(
    tmp_path: Path,
) -> None:
    paths = [save_noise(tmp_path / f"{seed}.png", seed=seed) for seed in range(4)]
    size = len(paths) * 3 * 16 * 16
    kept = Pictures(paths, 16, memory_limit=size)
    read = Pictures(paths, 16, memory_limit=size - 1)
    indices = torch.tensor([2, 1, 1])
    assert torch.equal(kept.batch(indices, "cpu"), read.batch(indices, "cpu"))
    for path in paths:
        path.unlink()
    assert kept.batch(indices, "cpu").shape == (3, 3, 16, 16)
    with pytest.raises(UserError):
        read.batch(indices, "cpu")


def test_half_of_theavailable_memory_is_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "0.png")
    monkeypatch.setattr(data, "available_memory", lambda: 2 * 3 * 4 * 4)
    kept = Pictures([path], 4)
    monkeypatch.setattr(data, "available_memory", lambda: 2 * 3 * 4 * 4 - 1)
    read = Pictures([path], 4)
    path.unlink()
    assert len(kept.batch(torch.tensor([0]), "cpu")) == 1
    with pytest.raises(UserError):
        read.batch(torch.tensor([0]), "cpu")


def test_the_machines_memory_is_a_sensible_number() -> None:
    assert 2**26 < data.available_memory() < 2**50


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory_limit", [None, 0])
def test_batches_on_a_gpu(tmp_path: Path, memory_limit: int | None) -> None:
    paths = [save_noise(tmp_path / f"{seed}.png", seed=seed) for seed in range(4)]
    pictures = Pictures(paths, 16, memory_limit=memory_limit)
    indices = torch.tensor([2, 0, 2])
    expected = pictures.batch(indices, "cpu")
    seen = pictures.batch(indices, "cuda")
    assert seen.device.type == "cuda"
    torch.testing.assert_close(seen.cpu(), expected, atol=1e-6, rtol=0)
    assert torch.equal(pictures.batch(indices.cuda(), "cuda"), seen)


# Masks


def test_masks_and_whether_they_are_known(tmp_path: Path) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:2, :4] = 1  # nonzero is anomalous, however dark
    Image.fromarray(mask).save(tmp_path / "0_mask.png")
    picture = tmp_path / "0.png"
    samples = [
        Sample(picture, "good", None),
        Sample(picture, "scratch", tmp_path / "0_mask.png"),
        Sample(picture, "scratch", None),
    ]
    masks, known = load_masks(samples, 4)
    assert masks.dtype == known.dtype == torch.bool
    assert known.tolist() == [True, True, False]
    assert masks.sum((1, 2)).tolist() == [0, 2, 0]
    assert masks[1, 0].tolist() == [True, True, False, False]


def test_no_pictures_no_masks() -> None:
    masks, known = load_masks([], 4)
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
    masks, _ = load_masks([Sample(path, "scratch", path)], 4)
    assert masks.all() == masks.any() == anomalous


def test_a_palette_mask_is_judged_by_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.paste(0, (0, 0, 4, 8))
    image.save(tmp_path / "0_mask.png")
    masks, _ = load_masks([Sample(tmp_path / "0.png", "scratch", tmp_path / "0_mask.png")], 8)
    assert masks[0, 0].tolist() == [True] * 4 + [False] * 4


# Photographs


@pytest.mark.skipif(not (REAL / "mvtec").is_dir(), reason=f"no MVTec AD pictures at {REAL}")
def test_real_categories() -> None:
    root = REAL / "mvtec"
    assert list_categories(root) == ["grid", "bottle", "screw"]
    bottle = load_category(root, "bottle")
    assert len(bottle.train) == 209
    assert [sum(s.label == label for s in bottle.test) for label in (0, 1)] == [20, 63]
    masks, known = load_masks(bottle.test, 64)
    assert known.all()
    labels = torch.tensor([sample.label for sample in bottle.test])
    assert torch.equal(masks.any(-1).any(-1), labels.bool())
