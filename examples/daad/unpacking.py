"""Published videos as clips of frames, which `video` reads: CUHK Avenue's .avi files and .mat labels."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat

from daad.io import UserError
from daad.pictures import natural_order
from daad.video import FILES, LAYOUTS

PARTS = ("training_videos", "testing_videos")  # of Avenue, in the order of `LAYOUTS`
LABELS, VOLUME = "_label.mat", "volLabel"  # a file for each test video; its masks, one a frame


def unpack(source: Path, out: Path) -> dict[str, int]:
    """Write the frames of the videos in `source`, and the labels of the test frames, into `out`.

    source: SOURCE/training_videos/*.avi, SOURCE/testing_videos/*.avi, and below it N_label.mat, where N
    is the number in the test video's name. out: is made, whole or not at all.
    Return the number of frames of each video. UserError for what is missing or does not fit.
    """
    if out.exists():
        raise UserError(f"{out} exists; give another --out, or remove it")
    videos = {part: _videos(source / part) for part in PARTS}
    labels = {path: _label_file(source, path) for path in videos[PARTS[1]]}
    counts: dict[str, int] = {}
    known: dict[str, np.ndarray] = {}
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        for part, place in zip(PARTS, LAYOUTS[0], strict=True):
            for path in videos[part]:
                folder = temporary / place / path.stem
                folder.mkdir(parents=True)
                count = 0
                for count, frame in enumerate(read_frames(path), 1):
                    frame.save(folder / f"{count:05}.jpg", quality=95)
                counts[f"{part}/{path.name}"] = count
                if path in labels:
                    known[path.stem] = _read_labels(labels[path], path, count)
        np.savez(temporary / FILES[0], allow_pickle=False, **known)
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def _videos(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.avi"), key=lambda path: natural_order(path.name))
    if not found:
        raise UserError(
            f"{folder}: no .avi files; expected {' and '.join(PARTS)} as CUHK Avenue has them"
        )
    return found


def _label_file(source: Path, video: Path) -> Path:
    number = int(video.stem) if video.stem.isdecimal() else video.stem
    found = sorted(source.rglob(f"{number}{LABELS}"))
    if not found:
        raise UserError(
            f"{source}: no {number}{LABELS} below it, which says where {video.name} is abnormal; put "
            f"Avenue's ground_truth_demo there"
        )
    return found[0]


def read_frames(path: Path) -> Iterator[Image.Image]:
    """Decode a video, one picture after the other; UserError where that cannot be done."""
    try:
        import av
    except ImportError as error:
        raise UserError("videos need one package more: pip install av") from error
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_image()
    except av.FFmpegError as error:
        raise UserError(
            f"{path}: cannot be read as a video ({error}); get it from its source again"
        ) from error


def _read_labels(path: Path, video: Path, count: int) -> np.ndarray:
    """Read which frames are abnormal, (frames,) of 0 and 1: where any pixel of its mask is set."""
    try:
        masks = loadmat(path)[VOLUME].reshape(-1)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file fails in any way at all
        raise UserError(
            f"{path}: cannot be read as labels ({error}); expected Avenue's {VOLUME}, a mask a frame"
        ) from error
    if len(masks) != count:
        raise UserError(
            f"{path}: {len(masks)} masks, and {video.name} has {count} frames; get both from one "
            f"source again"
        )
    return np.array([np.asarray(mask).any() for mask in masks], dtype=np.uint8)
