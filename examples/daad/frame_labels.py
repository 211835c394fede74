"""Which test frames of a video are abnormal, in the three forms that Ped2 and Avenue come with.

frame_labels.npz            for each clip an array of 0 and 1 under its name
frame_labels.npy            MNAD's, which it names frame_labels_<video>.npy: one array (1, T) or (T,) for
                            all clips, one after the other
a folder of <clip>_gt/*     UCSD's masks, one a frame; a frame is abnormal where any pixel is set
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from daad.data import count_cores, list_folders, list_pictures, nonzero_pixels, read_picture
from daad.errors import UserError

FILES = ("frame_labels.npz", "frame_labels.npy")
MASKS = "_gt"  # ends the name of a clip's folder of masks


def find_labels(root: Path, testing: Path) -> Path:
    """The labels of a video: a file of `FILES` in `root`, one that is named for the folder `root`, or
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
    """Labels of the frames of each clip, bool (frames,), in the order of `lengths`.

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
    """Values (T,), (1, T) or (T, 1) as (T,)."""
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
    """One array for all clips, cut into theirs; refused where it may have been joined otherwise."""
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


def _any_pixel(mask: object) -> bool:
    return bool(nonzero_pixels(mask).any())
