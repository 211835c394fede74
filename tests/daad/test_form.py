"""Pictures of other proportions and depths: what becomes of them, and of their masks and maps."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from daad.form import Form, enlarge, find_white
from daad.metrics import pixel_areas
from daad.overlay import blend
from daad.pictures import read_rgb
from tests.helpers.picture_files import one_line, save


def save_gray16(path: Path, *values: int) -> Path:
    Image.fromarray(np.array([values] * 2, np.uint16)).save(path)
    return path


def save_colours16(path: Path, values: np.ndarray) -> Path:
    """A PNG of 16 bits a colour, (h, w, 3), which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


# Depth


@pytest.mark.parametrize(
    ("highest", "white"),
    [
        *((200, 255), (255, 255), (256, 1023), (1000, 1023), (1024, 4095), (4095, 4095)),
        *((4096, 16383), (16384, 65535), (65535, 65535)),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_white_is_that_of_the_bits_that_are_used(
    highest: int, white: int, suffix: str, tmp_path: Path
) -> None:
    paths = [
        save_gray16(tmp_path / f"0.{suffix}", 0, 10),
        save_gray16(tmp_path / f"1.{suffix}", 5, highest),
        save(tmp_path / "2.png", "white"),  # of 8 bits: says nothing
    ]
    assert find_white(paths) == white
    form = Form(2, white=white)
    pixels = np.asarray(read_rgb(paths[1], form))
    assert pixels[0, 1].tolist() == [round(255 * highest / white)] * 3
    assert np.asarray(read_rgb(paths[2], form)).min() == 255


def test_pictures_of_8_bits_have_no_other_white(tmp_path: Path) -> None:
    paths = [save(tmp_path / name, "white") for name in ("0.png", "1.jpg", "2.bmp")]
    assert find_white(paths) is None


def test_more_bits_than_the_normal_pictures_have_are_refused(tmp_path: Path) -> None:
    path = save_gray16(tmp_path / "0.png", 0, 60000)
    text = one_line(lambda: read_rgb(path, Form(2, white=4095)))
    assert "it holds the value 60000, and white is 4095" in text


def test_colours_of_16_bits_are_read_where_they_use_them(tmp_path: Path) -> None:
    bright = save_colours16(tmp_path / "0.png", np.full((4, 4, 3), 40000))
    assert np.asarray(read_rgb(bright, Form(4))).max() == 40000 >> 8
    dark = save_colours16(tmp_path / "1.png", np.full((4, 4, 3), 4000))
    text = one_line(lambda: read_rgb(dark, Form(4)))
    assert "save it with 8 bits a colour" in text


def test_a_broken_file_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no picture")
    assert "0.png: cannot be read" in one_line(lambda: find_white([tmp_path / "0.png"]))


# Proportions


def test_padding_keeps_proportions_and_adds_black() -> None:
    wide = Image.new("RGB", (40, 20), "white")
    padded = Form(8, "pad").square(wide)
    assert padded[:2].max() == padded[6:].max() == 0
    assert padded[2:6].min() == 255
    assert Form(8).square(wide).min() == 255
    high = Form(8, "pad").square(Image.new("RGB", (10, 40), "white"))
    assert high[:, 3:5].min() == 255
    assert high[:, :3].max() == high[:, 5:].max() == 0


@pytest.mark.parametrize("fit", ["squeeze", "pad"])
@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (33, 33), (7, 90)])
def test_a_mask_goes_where_its_picture_goes_and_a_map_comes_back(
    fit: str, shape: tuple[int, int]
) -> None:
    """A bright square is found again at its own place, at its own size."""
    marked = np.zeros(shape, bool)
    top, left = shape[0] // 3, shape[1] // 2
    marked[top : top + 6, left : left + 6] = True
    picture = Image.fromarray(np.where(marked, 255, 0).astype(np.uint8)).convert("RGB")
    form = Form(64, fit)
    seen = form.square(picture)[..., 0]
    mask = form.mask(marked)
    assert seen[~mask].max() < 128
    assert mask.sum() < 3 * (seen > 64).sum() + 64
    back = enlarge(torch.from_numpy(seen.astype(np.float32)), shape, fit)
    assert back.shape == shape
    places = np.argwhere(back.numpy() > 128).mean(axis=0)
    assert np.abs(places - np.argwhere(marked).mean(axis=0)).max() < 1
    areas = pixel_areas(torch.from_numpy(seen.astype(np.float32))[None], [marked], fit)
    assert areas.auroc > 0.98


def test_a_thin_scratch_does_not_vanish() -> None:
    mask = np.zeros((1000, 1400), bool)
    mask[500:502, 300:900] = True
    for fit in ("squeeze", "pad"):
        assert Form(128, fit).mask(mask).sum() > 30


def test_heat_is_laid_over_the_picture_and_not_over_the_padding() -> None:
    scores = torch.zeros(32, 32)
    scores[8:12, 16:20] = 10  # the upper part of what a picture of 64x32 has of the square
    shown = np.asarray(blend(Image.new("RGB", (64, 32), "gray"), scores, 5.0, "pad"))
    changed = np.abs(shown.astype(int) - 128).max(axis=2) > 20
    rows, columns = np.nonzero(changed)
    assert rows.min() == 0
    assert rows.max() < 12
    assert 28 < columns.min() < columns.max() < 44
