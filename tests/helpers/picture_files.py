"""Picture files that tests make, and the one line that a refusal says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daad.io import UserError


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


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text
