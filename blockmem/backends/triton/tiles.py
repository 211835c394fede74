"""Tile sizes: a static table for each family of GPUs, so that no first call spends time on tuning.

The kernels for small blocks alone have tiles to choose: of large ones the GPU's own library takes
the products.

A tile is rows (blocks of the map) x items x elements (of a block), and how many warps and pipeline
stages work on it. Entries depend on the dtype and on D, never on batch or picture.

Each entry was compiled for its architecture: its shared memory is there, and no register is spilled
(tests/backends/triton/test_compiled.py). Those of sm_90 were timed on an H200; two of them do spill
and are faster than all that do not.
"""

from functools import cache
from typing import Any, NamedTuple

import torch

from blockmem._dtypes import tf32_allowed

PROCESSORS = 132


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


def largest_small(dtype: torch.dtype) -> int:
    """The largest D of the kernels for small blocks: beyond it their tiles leave the registers, or
    products by the library are faster."""
    return 128 if dtype == torch.bfloat16 else 64


@cache
def processors(device: torch.device) -> int:
    """How many multiprocessors a GPU has, or would have where there is none to ask."""
    if device.type != "cuda":
        return PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def family_of(device: torch.device) -> str:
    """The entry of the table for a GPU; for the interpreter, on a CPU, any."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(device)[0]
    return {8: "sm_80", 9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


# family: {kernel: {precision: {largest D: tile}}}
TILES: dict[str, dict[str, dict[str, dict[int, Tile]]]] = {
    "sm_80": {  # with the shared memory of sm_86 and sm_89, less than sm_80's
        "read": {
            "bf16": {128: Tile(128, 32, 0, 8, 2)},
            "tf32": {64: Tile(128, 32, 0, 8, 2)},
            "tf32x3": {64: Tile(32, 32, 0, 4, 2)},
        },
        "grad_queries": {
            "bf16": {64: Tile(128, 32, 0, 8, 2), 128: Tile(128, 16, 0, 8, 2)},
            "tf32": {64: Tile(128, 16, 0, 8, 2)},
            "tf32x3": {64: Tile(32, 16, 0, 4, 1)},
        },
        "grad_items": {
            "bf16": {64: Tile(32, 128, 0, 8, 2), 128: Tile(32, 64, 0, 4, 2)},
            "tf32": {64: Tile(16, 64, 0, 4, 2)},
            "tf32x3": {64: Tile(16, 32, 0, 4, 1)},
        },
    },
    "sm_90": {  # timed on an H200
        "read": {
            "bf16": {128: Tile(64, 128, 0, 4, 3)},
            "tf32": {64: Tile(128, 64, 0, 4, 3)},
            "tf32x3": {64: Tile(128, 64, 0, 8, 2)},
        },
        "grad_queries": {
            "bf16": {128: Tile(64, 64, 0, 4, 2)},
            "tf32": {64: Tile(64, 64, 0, 4, 3)},
            "tf32x3": {64: Tile(64, 32, 0, 4, 2)},
        },
        "grad_items": {
            "bf16": {64: Tile(32, 128, 0, 8, 2), 128: Tile(64, 128, 0, 8, 2)},
            "tf32": {64: Tile(16, 128, 0, 4, 2)},
            "tf32x3": {64: Tile(32, 64, 0, 4, 2)},
        },
    },
    "sm_100": {
        "read": {
            "bf16": {128: Tile(128, 64, 0, 8, 3)},
            "tf32": {64: Tile(128, 64, 0, 8, 3)},
            "tf32x3": {64: Tile(32, 32, 0, 4, 2)},
        },
        "grad_queries": {
            "bf16": {128: Tile(128, 32, 0, 8, 2)},
            "tf32": {64: Tile(128, 16, 0, 8, 2)},
            "tf32x3": {64: Tile(64, 16, 0, 8, 1)},
        },
        "grad_items": {
            "bf16": {128: Tile(32, 128, 0, 8, 2)},
            "tf32": {64: Tile(32, 128, 0, 8, 2)},
            "tf32x3": {64: Tile(16, 64, 0, 8, 1)},
        },
    },
    "gfx942": {
        "read": {"bf16": {128: Tile(128, 64, 0, 8, 2)}, "ieee": {64: Tile(128, 64, 0, 8, 2)}},
        "grad_queries": {
            "bf16": {128: Tile(128, 32, 0, 8, 2)},
            "ieee": {64: Tile(128, 32, 0, 8, 2)},
        },
        "grad_items": {
            "bf16": {128: Tile(32, 128, 0, 8, 2)},
            "ieee": {64: Tile(32, 128, 0, 8, 2)},
        },
    },
}


def tile_for(family: str, kernel: str, precision: str, size: int) -> Tile:
    """The entry of a kernel for blocks of D = `size` elements."""
    found = TILES[family][kernel][precision]
    return found[min((largest for largest in found if largest >= size), default=max(found))]
