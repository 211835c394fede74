"""Video as clips of single frames, in the layout that MNAD gave UCSD Ped2 and CUHK Avenue.

    ROOT/training/frames/<clip>/*   frames of normal clips, to learn from
    ROOT/testing/frames/<clip>/*    frames to score; for their labels see `frame_labels`

A frame alone is what the network gets: the paper resizes "each frame of the video", and says that
its model "has not been tailored for video data" (appendix, "Experiments on Video Datasets", the
second and the sixth sentence), which leaves no stack of frames to feed it.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from daad.batches import Pictures
from daad.data import list_folders, list_pictures, natural_order, picture_suffixes
from daad.errors import UserError
from daad.files import fingerprint
from daad.frame_labels import MASKS, find_labels, load_labels

TRAINING, TESTING = Path("training", "frames"), Path("testing", "frames")


@dataclass(frozen=True)
class Clip:
    """The frames of one clip in their order in time."""

    name: str
    frames: list[Path]


@dataclass(frozen=True)
class Video:
    """Clips to learn from and clips to score, in natural order.

    labels: for each test clip bool (frames,), True where a frame is abnormal.
    label_source: the file or folder that says so.
    """

    root: Path
    train: list[Clip]
    test: list[Clip]
    labels: list[Tensor]
    label_source: Path

    @property
    def name(self) -> str:
        """The name of the root folder, such as `ped2`."""
        return os.path.basename(os.path.abspath(self.root))  # not that of what it is a link to

    @property
    def source(self) -> dict[str, str]:
        """What a run writes down to find the video again, and to know it by."""
        return {
            **{"root": str(self.root.absolute()), "labels": str(self.label_source.resolve())},
            "fingerprint": fingerprint(self.root, all_frames([*self.train, *self.test])),
        }


def load_video(root: Path, labels: Path | None = None) -> Video:
    """Find the clips in `root`, and the label of each test frame.

    labels: the file or folder that says which test frames are abnormal, where it is not the one
    that `find_labels` finds. UserError where clips or labels are missing, where they do not fit
    each other, or where the test frames are all normal or all abnormal.
    """
    train = list_clips(root, TRAINING)
    test = list_clips(root, TESTING)
    source = labels or find_labels(root, root / TESTING)
    known = load_labels(source, {clip.name: len(clip.frames) for clip in test})
    abnormal = torch.cat(known)
    if abnormal.all() or not abnormal.any():
        kind = "abnormal" if abnormal.all() else "normal"
        raise UserError(
            f"{source}: all {len(abnormal)} test frames are {kind}; an AUROC needs frames of both "
            f"kinds, so add clips or correct the labels"
        )
    return Video(root, train, test, known, source)


def list_clips(root: Path, part: Path) -> list[Clip]:
    """The clips in ROOT/PART, clips and frames in natural order (2 before 10).

    Folders of masks (`<clip>_gt`) are none. UserError where there is no clip, or one without frames.
    """
    folder = root / part
    names = [name for name in list_folders(folder) if not name.endswith(MASKS)]
    if not names:
        raise UserError(
            f"{folder}: no clips; expected {TRAINING}/CLIP and {TESTING}/CLIP in {root}, "
            f"each CLIP a folder of frames ({picture_suffixes()})"
        )
    clips = [Clip(name, list_pictures(folder / name)) for name in sorted(names, key=natural_order)]
    for clip in clips:
        if not clip.frames:
            raise UserError(
                f"{folder / clip.name}: no frames; put pictures there ({picture_suffixes()}), "
                f"or remove the folder"
            )
    return clips


def all_frames(clips: Sequence[Clip]) -> list[Path]:
    """The frames of all clips, one clip after the other."""
    return [frame for clip in clips for frame in clip.frames]


class Excerpt:
    """`length` pictures of `pictures` from `start` on: one clip of all."""

    def __init__(self, pictures: Pictures, start: int, length: int) -> None:
        self._pictures = pictures
        self._start = start
        self._length = length

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        """Pictures `indices` (b,) of the excerpt as (b, 3, S, S) in [-1, 1] on `device`."""
        return self._pictures.batch(indices + self._start, device)


def excerpts(pictures: Pictures, lengths: Sequence[int]) -> Iterator[Excerpt]:
    """`pictures` as consecutive excerpts of `lengths` pictures."""
    start = 0
    for length in lengths:
        yield Excerpt(pictures, start, length)
        start += length
