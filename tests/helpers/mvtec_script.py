"""The script for photographs on small drawn pictures, in this process."""

from pathlib import Path
from typing import Any

import daad_mvtec
from daad.drawn import make_dataset
from tests.helpers.scripts import Done, call

# Small enough for seconds: four levels of a 32-pixel picture, the last 2x2
SMALL = "--image-size 32 --width 4 --division 2,2,1 --num-items 4 --lr 1e-3 --device cpu"
TINY = f"{SMALL} --preset paper --epochs 2"


def script(*arguments: Any, cwd: Path) -> Done:
    return call(daad_mvtec.main, *arguments, cwd=cwd)


def make_data(root: Path) -> Path:
    make_dataset(root, image_size=32, train=12, test_good=4, test_per_defect=3)
    return root
