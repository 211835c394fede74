"""Standardised maps as files that other evaluations read."""

from pathlib import Path

import numpy as np
from PIL import Image

from daad.findings import Findings
from daad.form import enlarge
from daad.io import UserError, write_atomically
from daad.masks import own_mask


def write_maps(folder: Path, name: str, found: Findings | None) -> None:
    """Write each test picture's map as float32 at its own size: FOLDER/NAME/test/DEFECT/STEM.tiff.

    It is the tree that the evaluation script of MVTec AD reads. UserError where there is nothing to
    write, or the tree is there.
    """
    if found is None or found.reference is None:
        raise UserError("--maps: there are no test pictures with scores; give a run that has them")
    root = folder / name / "test"
    if root.exists():
        raise UserError(f"{root}: is there already; give another --maps, or remove it")
    for sample, one in zip(found.samples, found.maps, strict=True):
        large = enlarge(one, own_mask(sample).shape, found.fit).numpy()
        image = Image.fromarray(np.ascontiguousarray(large))
        write_atomically(root / sample.defect / f"{sample.path.stem}.tiff", image.save)
