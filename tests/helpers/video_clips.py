"""What the tests of video share: small clips on disk, a moving square in which is what happens."""

from pathlib import Path

import numpy as np
from PIL import Image


def save_frame(path: Path, position: int = 0, size: int = 32, side: int = 6) -> Path:
    """A gray frame with a bright square at `position`, the lighter the further on that is."""
    pixels = np.full((size, size), 60 + 5 * position, dtype=np.uint8)
    start = 2 + position % (size - side - 2)
    pixels[start : start + side, start : start + side] = 200
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_clip(folder: Path, frames: int, suffix: str = ".png", side: int = 6) -> Path:
    for frame in range(frames):
        save_frame(folder / f"{frame}{suffix}", frame, side=side)
    return folder


def make_masks(folder: Path, labels: list[int], suffix: str = ".bmp") -> Path:
    """A mask a label, as UCSD's: one pixel set where it is 1."""
    for frame, label in enumerate(labels):
        mask = np.zeros((8, 8), dtype=np.uint8)
        mask[5, 2] = 255 * label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / f"{frame}{suffix}")
    return folder


def make_video(root: Path, lengths: dict[str, int], train: int = 2) -> Path:
    """A video with test clips of `lengths` frames and no labels yet."""
    for clip in range(train):
        make_clip(root / "training" / "frames" / f"{clip:02}", 4)
    for name, frames in lengths.items():
        make_clip(root / "testing" / "frames" / name, frames, side=12)
    return root
