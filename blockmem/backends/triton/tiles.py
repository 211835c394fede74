"""Tile sizes: a static table for each family of GPUs, so that no first call spends time on tuning.

A tile is rows (blocks of the map) x items x elements (of a block), and how many warps and pipeline
stages work on it. Entries depend on the dtype and on D, never on batch or picture.

Each entry was compiled for its architecture: no register is spilled and its shared memory is there
(tests/kernels/test_compiled.py). None has been timed yet; `python -m benchmarks` on a GPU does that.
"""

from functools import cache
from typing import Any, NamedTuple

import torch

from blockmem._dtypes import tf32_allowed


class Tile(NamedTuple):
    """Sizes of a kernel's tile. Kernels for small blocks take all elements of a block."""

    rows: int
    items: int
    elements: int
    warps: int
    stages: int

    def arguments(self) -> dict[str, Any]:
        return {
            "ROWS": self.rows,
            "ITEMS": self.items,
            "ELEMENTS": self.elements,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def precision_of(dtype: torch.dtype) -> str:
    """How tensor cores multiply: "bf16", or for other dtypes "tf32" or "tf32x3", "ieee" on AMD.

    float32 follows PyTorch's own setting. float16 fits into tf32 with no loss, and gradients too
    small for float16 do too.
    """
    if dtype == torch.bfloat16:
        return "bf16"
    if torch.version.hip:
        return "ieee"
    if dtype == torch.float16 or tf32_allowed():
        return "tf32"
    return "tf32x3"


def largest_small(precision: str) -> int:
    """The largest D of the kernels for small blocks: beyond it their tiles leave the registers."""
    return 64 if precision == "tf32x3" else 128


@cache
def family_of(device: torch.device) -> str:
    """The entry of the table for a GPU; for the interpreter, on a CPU, any."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(device)[0]
    return {8: "sm_80", 9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


# family: {kernel: {precision: {largest D: tile}}}, where kernels for large blocks have one tile
TILES: dict[str, dict[str, dict[str, Tile | dict[int, Tile]]]] = {
    "sm_80": {  # with the shared memory of sm_86 and sm_89, less than sm_80's
        "small read": {
            "bf16": {64: Tile(128, 64, 0, 8, 3), 128: Tile(128, 32, 0, 8, 2)},
            "tf32": {64: Tile(128, 32, 0, 8, 2), 128: Tile(64, 32, 0, 4, 2)},
            "tf32x3": {64: Tile(32, 32, 0, 4, 2)},
        },
        "small grad_queries": {
            "bf16": {64: Tile(128, 32, 0, 8, 2), 128: Tile(128, 16, 0, 8, 2)},
            "tf32": {64: Tile(128, 16, 0, 8, 2), 128: Tile(32, 32, 0, 4, 2)},
            "tf32x3": {64: Tile(32, 16, 0, 4, 1)},
        },
        "small grad_items": {
            "bf16": {64: Tile(32, 128, 0, 8, 2), 128: Tile(32, 64, 0, 4, 2)},
            "tf32": {64: Tile(32, 128, 0, 8, 2), 128: Tile(16, 64, 0, 4, 2)},
            "tf32x3": {64: Tile(16, 32, 0, 4, 1)},
        },
        "large products": {
            "bf16": Tile(128, 128, 64, 8, 2),
            "tf32": Tile(128, 128, 64, 8, 2),
            "tf32x3": Tile(128, 64, 32, 8, 3),
        },
        "large read": {
            "bf16": Tile(128, 64, 64, 8, 3),
            "tf32": Tile(128, 32, 64, 8, 3),
            "tf32x3": Tile(32, 32, 64, 4, 2),
        },
        "large grad_items": {
            "bf16": Tile(32, 128, 128, 8, 1),
            "tf32": Tile(32, 128, 128, 8, 1),
            "tf32x3": Tile(32, 64, 64, 4, 1),
        },
    },
    "sm_90": {
        "small read": {
            "bf16": {128: Tile(128, 64, 0, 8, 3)},
            "tf32": {64: Tile(128, 64, 0, 8, 3), 128: Tile(128, 32, 0, 8, 2)},
            "tf32x3": {64: Tile(128, 32, 0, 8, 2)},
        },
        "small grad_queries": {
            "bf16": {128: Tile(128, 32, 0, 8, 2)},
            "tf32": {64: Tile(128, 32, 0, 8, 2), 128: Tile(64, 16, 0, 8, 2)},
            "tf32x3": {64: Tile(128, 16, 0, 8, 2)},
        },
        "small grad_items": {
            "bf16": {128: Tile(32, 128, 0, 8, 2)},
            "tf32": {64: Tile(32, 128, 0, 8, 2), 128: Tile(16, 128, 0, 8, 2)},
            "tf32x3": {64: Tile(16, 128, 0, 8, 2)},
        },
        "large products": {
            "bf16": Tile(128, 128, 64, 8, 3),
            "tf32": Tile(128, 128, 64, 8, 3),
            "tf32x3": Tile(128, 64, 64, 8, 3),
        },
        "large read": {
            "bf16": Tile(128, 64, 64, 8, 3),
            "tf32": Tile(128, 64, 64, 8, 3),
            "tf32x3": Tile(128, 64, 64, 8, 3),
        },
        "large grad_items": {
            "bf16": Tile(64, 128, 128, 8, 3),
            "tf32": Tile(32, 128, 128, 8, 1),
            "tf32x3": Tile(32, 128, 128, 8, 1),
        },
    },
    "sm_100": {
        "small read": {
            "bf16": {128: Tile(128, 64, 0, 8, 3)},
            "tf32": {64: Tile(128, 64, 0, 8, 3), 128: Tile(64, 16, 0, 4, 2)},
            "tf32x3": {64: Tile(32, 32, 0, 4, 2)},
        },
        "small grad_queries": {
            "bf16": {128: Tile(128, 32, 0, 8, 2)},
            "tf32": {64: Tile(128, 16, 0, 8, 2), 128: Tile(64, 16, 0, 4, 1)},
            "tf32x3": {64: Tile(64, 16, 0, 8, 1)},
        },
        "small grad_items": {
            "bf16": {128: Tile(32, 128, 0, 8, 2)},
            "tf32": {64: Tile(32, 128, 0, 8, 2), 128: Tile(16, 128, 0, 8, 2)},
            "tf32x3": {64: Tile(16, 64, 0, 8, 1)},
        },
        "large products": {
            "bf16": Tile(128, 128, 64, 8, 3),
            "tf32": Tile(128, 128, 64, 8, 3),
            "tf32x3": Tile(128, 64, 64, 8, 3),
        },
        "large read": {
            "bf16": Tile(64, 32, 64, 4, 3),
            "tf32": Tile(128, 64, 64, 8, 3),
            "tf32x3": Tile(128, 64, 64, 8, 3),
        },
        "large grad_items": {
            "bf16": Tile(64, 128, 128, 8, 3),
            "tf32": Tile(32, 128, 128, 8, 1),
            "tf32x3": Tile(32, 64, 64, 4, 1),
        },
    },
    "gfx942": {
        "small read": {
            "bf16": {128: Tile(128, 64, 0, 8, 2)},
            "ieee": {64: Tile(128, 64, 0, 8, 2), 128: Tile(64, 32, 0, 8, 2)},
        },
        "small grad_queries": {
            "bf16": {128: Tile(128, 32, 0, 8, 2)},
            "ieee": {64: Tile(128, 32, 0, 8, 2), 128: Tile(64, 32, 0, 8, 2)},
        },
        "small grad_items": {
            "bf16": {128: Tile(32, 128, 0, 8, 2)},
            "ieee": {64: Tile(32, 128, 0, 8, 2), 128: Tile(32, 64, 0, 8, 2)},
        },
        "large products": {"bf16": Tile(128, 128, 64, 8, 2), "ieee": Tile(128, 64, 32, 8, 2)},
        "large read": {"bf16": Tile(128, 64, 128, 8, 2), "ieee": Tile(128, 32, 64, 8, 2)},
        "large grad_items": {"bf16": Tile(64, 128, 128, 8, 2), "ieee": Tile(32, 64, 64, 8, 2)},
    },
}


def tile_for(family: str, kernel: str, precision: str, size: int) -> Tile:
    """The entry of a kernel, named "small ..." or "large ...", for blocks of D = `size` elements."""
    found = TILES[family][kernel][precision]
    if isinstance(found, Tile):
        return found
    return found[min((largest for largest in found if largest >= size), default=max(found))]
