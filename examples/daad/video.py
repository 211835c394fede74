"""Video as clips of single frames, in the layout that MNAD gave UCSD Ped2 and CUHK Avenue.

    ROOT/training/frames/<clip>/*   frames of normal clips, to learn from
    ROOT/testing/frames/<clip>/*    frames to score

UCSD's own folders, ROOT/Train/<clip> and ROOT/Test/<clip>, are taken too.

Which of these are abnormal is said in one of three forms:

    frame_labels.npz            for each clip an array of 0 and 1 under its name
    frame_labels.npy            MNAD's, which it names frame_labels_<video>.npy: one array (1, T) or
                                (T,) for all clips, one after the other
    a folder of <clip>_gt/*     UCSD's masks, one a frame; a frame is abnormal where any pixel is set

A frame alone is what the network gets: the paper resizes "each frame of the video", and says that
its model "has not been tailored for video data" (appendix, "Experiments on Video Datasets", the
second and the sixth sentence), which leaves no stack of frames to feed it.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from daad.config import Config
from daad.form import find_white
from daad.frames import Clip, FrameScores, draw_curves, score_frames, write_scores
from daad.io import UserError, fingerprint
from daad.machine import count_cores
from daad.masks import marked_pixels
from daad.network import Networks
from daad.pictures import (
    TYPES,
    Normals,
    PictureFiles,
    Pictures,
    list_folders,
    list_pictures,
    natural_order,
    read_picture,
)
from daad.verdict import Reference

# Where clips to learn from and clips to score are: as MNAD has them, and as UCSD published them
LAYOUTS = (("training/frames", "testing/frames"), ("Train", "Test"))
FILES = ("frame_labels.npz", "frame_labels.npy")
MASKS = "_gt"  # ends the name of a clip's folder of masks


@dataclass(frozen=True)
class Video:
    """Clips to learn from and clips to score, in natural order: a task, see `task.Task`.

    labels: for each test clip bool (frames,), True where a frame is abnormal.
    label_source: the file or folder that says so.
    """

    root: Path
    train: list[Clip]
    test: list[Clip]
    labels: list[Tensor]
    label_source: Path

    subject: ClassVar[str] = "video"
    has_reference: ClassVar[bool] = False
    part: ClassVar[str] = "labels"
    area: ClassVar[str] = "frame_auroc"
    kind: ClassVar[str] = "video"

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

    def completed(self, config: Config) -> Config:
        """Decide the value of white, where frames have 16 bits and it is not given."""
        if config.white is not None:
            return config
        return dataclasses.replace(config, white=find_white(all_frames(self.train)))

    def normal_pictures(self, config: Config) -> Normals:
        """Read the training frames; UserError where some are to be held out.

        Scores are scaled over test frames, as MNAD does it. There is no other scale to make.
        """
        if config.held_out or config.scaling != "test":
            raise UserError(
                f"--held-out {config.held_out:g}, --scaling {config.scaling}: a video's scores are "
                f"scaled over its test frames alone; leave both options out"
            )
        return Normals(PictureFiles(all_frames(self.train), config.form))

    def test_pictures(self, config: Config) -> Pictures:
        """Read the test frames."""
        return PictureFiles(all_frames(self.test), config.form)

    def judge(
        self,
        networks: Networks,
        pictures: Pictures,
        config: Config,
        reference: Reference | None = None,
    ) -> FrameScores:
        """Score the test frames by their PSNR; `reference` plays no part."""
        return score_frames(networks, pictures, self.test, self.labels, config)

    def write(
        self, folder: Path, found: FrameScores | None, metrics: Mapping[str, Any], config: Config
    ) -> None:
        """Write scores.csv, a row a frame, and figures/curves/CLIP.png into a run's folder."""
        assert found is not None, "a video has test frames"
        write_scores(folder / "scores.csv", found)
        draw_curves(folder / "figures" / "curves", found)


def load_video(root: Path, labels: Path | None = None) -> Video:
    """Find the clips in `root`, and the label of each test frame.

    labels: the file or folder that says which test frames are abnormal, where it is not the one
    that `find_labels` finds. UserError where clips or labels are missing, where they do not fit
    each other, or where the test frames are all normal or all abnormal.
    """
    there = (one for one in LAYOUTS if any((root / part).is_dir() for part in one))
    training, testing = next(there, LAYOUTS[0])
    train = list_clips(root, training)
    test = list_clips(root, testing)
    source = labels or find_labels(root, root / testing)
    known = load_labels(source, {clip.name: len(clip.frames) for clip in test})
    abnormal = torch.cat(known)
    if abnormal.all() or not abnormal.any():
        kind = "abnormal" if abnormal.all() else "normal"
        raise UserError(
            f"{source}: all {len(abnormal)} test frames are {kind}; an AUROC needs frames of both "
            f"kinds, so add clips or correct the labels"
        )
    return Video(root, train, test, known, source)


def list_clips(root: Path, part: str) -> list[Clip]:
    """List the clips in ROOT/PART, clips and frames in natural order (2 before 10).

    Folders of masks (`<clip>_gt`) are none. UserError where there is no clip, or one without frames.
    """
    folder = root / part
    names = [name for name in list_folders(folder) if not name.endswith(MASKS)]
    if not names:
        raise UserError(
            f"{folder}: no clips; expected {' and '.join(f'{one}/CLIP' for one in LAYOUTS[0])} in "
            f"{root}, or UCSD's {' and '.join(LAYOUTS[1])}, each CLIP a folder of frames ({TYPES})"
        )
    clips = [Clip(name, list_pictures(folder / name)) for name in sorted(names, key=natural_order)]
    for clip in clips:
        if not clip.frames:
            raise UserError(
                f"{folder / clip.name}: no frames; put pictures there ({TYPES}), "
                f"or remove the folder"
            )
    return clips


def all_frames(clips: Sequence[Clip]) -> list[Path]:
    """List the frames of all clips, one clip after the other."""
    return [frame for clip in clips for frame in clip.frames]


# Labels


def find_labels(root: Path, testing: Path) -> Path:
    """Find the labels of a video: a file of `FILES` in `root`, one that is named for the folder `root`, or
    `testing` if it has folders of masks.

    UserError where there is none of them.
    """
    for name in (*FILES, f"frame_labels_{root.resolve().name}.npy"):
        if (root / name).is_file():
            return root / name
    if any(name.endswith(MASKS) for name in list_folders(testing)):
        return testing
    raise UserError(
        f"{root}: no labels of the test frames; expected {' or '.join(FILES)} in it, or folders "
        f"of masks {testing / f'CLIP{MASKS}'}; or name another place to daad_video.py by --labels"
    )


def load_labels(source: Path, lengths: Mapping[str, int]) -> list[Tensor]:
    """Read the labels of the frames of each clip, bool (frames,), in the order of `lengths`.

    lengths: the number of frames of each clip, by its name. UserError where the labels of a clip
    are missing, are not as many as its frames, or are not 0 and 1.
    """
    if source.is_dir():
        return _from_masks(source, lengths)
    if source.suffix not in (".npz", ".npy"):
        raise UserError(
            f"{source}: no labels of a known kind; --labels takes a .npz, a .npy or a folder "
            f"of CLIP{MASKS} folders"
        )
    content = _read(source)
    if isinstance(content, np.ndarray):
        return _split(source, _flat(source, "the array", content), lengths)
    labels = []
    for clip, frames in lengths.items():
        if clip not in content:
            raise UserError(
                f"{source}: no labels of clip {clip}; it has those of {', '.join(content) or 'none'}"
            )
        values = _flat(source, f"clip {clip}", content[clip])
        _check_count(source, clip, frames, len(values), "labels")
        labels.append(_to_bool(source, f"clip {clip}", values))
    return labels


def _read(source: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        with source.open("rb") as file:  # numpy itself would leave a broken one open
            content = np.load(file, allow_pickle=False)
            return content if isinstance(content, np.ndarray) else dict(content)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(
            f"{source}: cannot be read as labels ({error}); expected what numpy's savez or save "
            f"writes, arrays of 0 and 1"
        ) from error


def _flat(source: Path, where: str, values: np.ndarray) -> np.ndarray:
    """Make values (T,), (1, T) or (T, 1) a vector (T,)."""
    if values.size != max(values.shape, default=0):
        raise UserError(
            f"{source}: {where} has shape {values.shape}; expected one label a frame, (T,) or (1, T)"
        )
    return values.reshape(-1)


def _to_bool(source: Path, where: str, values: np.ndarray) -> Tensor:
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        found = ", ".join(map(str, np.unique(values)[:5]))
        raise UserError(
            f"{source}: {where} holds {found}; expected 0 for normal frames and 1 for abnormal ones"
        )
    return torch.tensor(values.astype(bool))


def _check_count(source: Path, clip: str, frames: int, found: int, kind: str) -> None:
    if found != frames:
        raise UserError(
            f"{source}: clip {clip} has {frames} frames, so {frames} {kind} are expected, and "
            f"{found} were found; give labels made for these very frames"
        )


def _split(source: Path, values: np.ndarray, lengths: Mapping[str, int]) -> list[Tensor]:
    """Cut one array for all clips into theirs; refuse it where it may have been joined otherwise."""
    if sorted(lengths) != list(lengths):
        raise UserError(
            f"{source}: clips {', '.join(lengths)} have another order by their text than by their "
            f"numbers, and one array cannot tell which it was joined in; write the numbers with "
            f"as many digits each, or save the labels by clip in a .npz"
        )
    total = sum(lengths.values())
    if len(values) != total:
        clips = ", ".join(f"{clip} has {frames}" for clip, frames in lengths.items())
        raise UserError(
            f"{source}: {total} labels are expected, as many as frames (clip {clips}), and "
            f"{len(values)} were found; give labels made for these very frames"
        )
    return list(_to_bool(source, "the array", values).split(list(lengths.values())))


def _from_masks(folder: Path, lengths: Mapping[str, int]) -> list[Tensor]:
    masks = []
    for clip, frames in lengths.items():
        paths = list_pictures(folder / f"{clip}{MASKS}")
        _check_count(folder / f"{clip}{MASKS}", clip, frames, len(paths), "masks")
        masks += paths
    with ThreadPoolExecutor(count_cores()) as workers:
        abnormal = list(workers.map(lambda path: read_picture(path, _any_pixel), masks))
    return list(torch.tensor(abnormal).split(list(lengths.values())))


def _any_pixel(mask: Image.Image) -> bool:
    return bool(marked_pixels(mask).any())
