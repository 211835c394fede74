"""How picture files become numbers, and batches of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from daad import machine
from daad import pictures as room
from daad.form import Form
from daad.io import UserError
from daad.pictures import PictureFiles, StoredPictures, to_floats
from tests.helpers.picture_files import one_line, save, save_noise


def pixel(path: Path) -> list[int]:
    """The top left pixel as the network sees it, back in 0 to 255."""
    values = PictureFiles([path], Form(4)).batch(torch.tensor([0]), "cpu")[0, :, 0, 0]
    return ((values + 1) * 127.5).round().int().tolist()


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
    assert "save it with 8 or 16 bits" in one_line(lambda: PictureFiles([path], Form(4)))


def test_exif_orientation_is_obeyed(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 16), "black")
    image.paste("white", (0, 0, 8, 8))  # white on top; turned by 180 degrees, at the bottom
    exif = Image.Exif()
    exif[0x0112] = 3
    image.save(tmp_path / "0.png", exif=exif)
    seen = PictureFiles([tmp_path / "0.png"], Form(8)).batch(torch.tensor([0]), "cpu")
    assert seen[0, 0, 0, 0] == -1
    assert seen[0, 0, 7, 0] == 1


def test_batches_are_what_pil_makes_of_the_files(tmp_path: Path) -> None:
    paths = [save_noise(tmp_path / f"{seed}.png", seed=seed) for seed in range(5)]
    pictures = PictureFiles(paths, Form(16))
    assert len(pictures) == 5
    batch = pictures.batch(torch.tensor([3, 0, 3]), "cpu")
    assert batch.shape == (3, 3, 16, 16)
    assert batch.dtype == torch.float32
    for row, index in enumerate((3, 0, 3)):
        image = Image.open(paths[index]).resize((16, 16), Image.Resampling.BICUBIC)
        expected = torch.tensor(np.asarray(image), dtype=torch.float64).permute(2, 0, 1)
        torch.testing.assert_close(batch[row].double(), expected / 127.5 - 1, atol=1e-6, rtol=0)


def test_a_batch_is_the_callers_own(tmp_path: Path) -> None:
    pictures = PictureFiles([save(tmp_path / "0.png", "white")], Form(4))
    pictures.batch(torch.tensor([0]), "cpu").zero_()
    assert (pictures.batch(torch.tensor([0]), "cpu") == 1).all()


def test_the_memory_limit_changes_when_files_are_read_but_not_what_comes_out(
    tmp_path: Path,
) -> None:
    paths = [save_noise(tmp_path / f"{seed}.png", seed=seed) for seed in range(4)]
    size = len(paths) * 3 * 16 * 16
    kept = PictureFiles(paths, Form(16), memory_limit=size)
    read = PictureFiles(paths, Form(16), memory_limit=size - 1)
    indices = torch.tensor([2, 1, 1])
    assert torch.equal(kept.batch(indices, "cpu"), read.batch(indices, "cpu"))
    for path in paths:
        path.unlink()
    assert kept.batch(indices, "cpu").shape == (3, 3, 16, 16)
    with pytest.raises(UserError):
        read.batch(indices, "cpu")


def test_half_of_the_available_memory_is_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "0.png")
    monkeypatch.setattr(room, "available_memory", lambda: 2 * 3 * 4 * 4)
    kept = PictureFiles([path], Form(4))
    monkeypatch.setattr(room, "available_memory", lambda: 2 * 3 * 4 * 4 - 1)
    read = PictureFiles([path], Form(4))
    path.unlink()
    assert len(kept.batch(torch.tensor([0]), "cpu")) == 1
    with pytest.raises(UserError):
        read.batch(torch.tensor([0]), "cpu")


def test_the_machines_memory_is_a_sensible_number() -> None:
    assert 2**26 < machine.available_memory() < 2**50


def test_the_cpu_waits_for_a_copy_that_it_reads() -> None:
    asked: list[object] = []

    class Noting(torch.Tensor):
        def to(self, *arguments: Any, **options: Any) -> torch.Tensor:
            asked.append(options.get("non_blocking", False))
            return self.as_subclass(torch.Tensor).to(*arguments, **options)

    pixels = torch.tensor([0, 255], dtype=torch.uint8)
    assert to_floats(pixels.as_subclass(Noting), torch.device("cpu")).tolist() == [-1, 1]
    store = StoredPictures(pixels[:, None, None, None].expand(2, 3, 4, 4))
    assert store.batch(torch.tensor([1]).as_subclass(Noting), "cpu").unique().tolist() == [1]
    assert asked == [False, False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pictures_come_back_whole_from_a_gpu() -> None:
    """Ten times, behind work that keeps the GPU from copying at once."""
    pixels = torch.randint(256, (64, 3, 256, 256), dtype=torch.uint8)
    store, indices = StoredPictures(pixels), torch.arange(64)
    expected = store.batch(indices, "cpu")
    busy = store.batch(indices, "cuda").flatten(1)
    for _ in range(10):
        for _ in range(20):
            torch.mm(busy, busy.T)
        assert torch.equal(store.batch(indices, "cpu"), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory_limit", [None, 0])
def test_batches_on_a_gpu(tmp_path: Path, memory_limit: int | None) -> None:
    paths = [save_noise(tmp_path / f"{seed}.png", seed=seed) for seed in range(4)]
    pictures = PictureFiles(paths, Form(16), memory_limit=memory_limit)
    indices = torch.tensor([2, 0, 2])
    expected = pictures.batch(indices, "cpu")
    seen = pictures.batch(indices, "cuda")
    assert seen.device.type == "cuda"
    torch.testing.assert_close(seen.cpu(), expected, atol=1e-6, rtol=0)
    assert torch.equal(pictures.batch(indices.cuda(), "cuda"), seen)
