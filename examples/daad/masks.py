"""Where pictures are anomalous, by mask files: at the files' own size, and at the network's."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from daad.form import Form, Mask
from daad.machine import count_cores
from daad.pictures import Sample, list_pictures, read_picture


def find_masks(folder: Path) -> dict[str, Path]:
    """Find the masks of one kind of defect by the stem of their pictures.

    A mask is STEM_mask, STEM_GT or STEM, or a folder STEM of masks that belong together (as MVTec LOCO
    has them).
    """
    found: dict[str, Path] = {}
    paths = list_pictures(folder)
    for ending in ("_mask", "_GT", ""):  # the first counts most
        for path in paths:
            if path.stem.endswith(ending):
                found.setdefault(path.stem.removesuffix(ending), path)
    inside = folder.iterdir() if folder.is_dir() else ()
    return found | {path.name: path for path in inside if path.is_dir() and list_pictures(path)}


def own_mask(sample: Sample) -> Mask:
    """Read where a picture is anomalous, (h, w), in the size of its mask; nowhere where it is good.

    UserError with its path for a mask that cannot be read.
    """
    if sample.mask is None:
        return read_picture(sample.path, lambda image: np.zeros(image.size[::-1], np.bool_))
    files = mask_files(sample)
    joined = read_picture(files[0], marked_pixels)
    for file in files[1:]:
        joined = joined | read_picture(file, marked_pixels)
    return joined


def mask_files(sample: Sample) -> list[Path]:
    """List the files that a sample's mask consists of; none where it has no mask."""
    if sample.mask is None:
        return []
    return list_pictures(sample.mask) if sample.mask.is_dir() else [sample.mask]


def marked_pixels(image: Image.Image) -> Mask:
    """Mark (h, w) what is brighter than half of the brightest; transparent pixels count as black.

    So masks of 0 and 1 or of 0 and 255 are alike, and the noise of a JPEG around black marks nothing.
    """
    if image.mode == "P":
        image = image.convert("RGBA")
    values = np.asarray(image).astype(np.float32)
    if image.mode in ("RGBA", "LA"):
        values = values[..., :-1] * (values[..., -1:] > 0)
    values = values.max(-1) if values.ndim == 3 else values
    return values > values.max() / 2


def load_masks(samples: Sequence[Sample], form: Form) -> tuple[Tensor, Tensor]:
    """Read where each picture is anomalous, bool (n, S, S), and whether that is known, bool (n,).

    A pixel is anomalous where any part of it is, so that a thin scratch does not vanish. A good
    picture is known to be anomalous nowhere. UserError with its path for a mask that cannot be read.
    """
    masks = torch.zeros(len(samples), form.size, form.size, dtype=torch.bool)
    known = torch.tensor([sample.label == 0 or sample.mask is not None for sample in samples])
    rows = [(row, sample) for row, sample in enumerate(samples) if sample.mask is not None]
    with ThreadPoolExecutor(count_cores()) as workers:
        read = workers.map(lambda item: form.mask(own_mask(item[1])), rows)
        for (row, _), mask in zip(rows, read, strict=True):
            masks[row] = torch.from_numpy(mask)
    return masks, known.to(torch.bool)
