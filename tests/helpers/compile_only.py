"""Compiles what the launchers launch, for a GPU that need not be there, and reads the machine code.

Nothing is launched: `triton`'s driver is replaced by one that only names a target, and launching by
compiling. So what is compiled is what would be launched, strides, dtypes and tile sizes included.
Nothing is multiplied either, since no code depends on the numbers.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from blockmem.backends.triton import launch_large, launch_small, launcher, tiles

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
FAMILIES = {"sm_86": "sm_80", "sm_89": "sm_80", "sm_120": "sm_80"}  # whose tiles a GPU takes
# What a program may have of it; of each family the smallest, which is not always its first chip
SHARED_MEMORY = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_120"), 99 * 1024),
    **{"sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 65536},
}
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class _TargetOnly:
    """As much of a driver as compiling needs. Each target is a device, with its own cache."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name]

    def get_current_device(self) -> int:
        return 1000 + list(TARGETS).index(self.name)

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass
class Compiled:
    """One kernel: its name, bytes of shared memory, and machine code."""

    name: str
    shared: int
    cubin: bytes | None

    @property
    def sass(self) -> str:
        return self._dump("-sass")

    @property
    def registers(self) -> int:
        return int(re.findall(r"REG:(\d+)", self._dump("--dump-resource-usage"))[-1])

    @property
    def stack(self) -> int:
        return int(re.findall(r"STACK:(\d+)", self._dump("--dump-resource-usage"))[-1])

    def count(self, instruction: str) -> int:
        """How often an instruction, a regular expression, stands in the code."""
        return len(re.findall(rf"\b{instruction}", self.sass))

    def widths(self, instruction: str) -> list[int]:
        """Bytes that each instruction of a kind loads or stores."""
        flags = re.findall(rf"\b{instruction}\.E((?:\.\w+)*)", self.sass)
        sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1}
        return [
            next((size for flag, size in sizes.items() if flag in found.split(".")), 4)
            for found in flags
        ]

    @property
    def spills(self) -> int:
        return self.count(r"LDL\b") + self.count(r"STL\b")

    def _dump(self, flag: str) -> str:
        assert self.cubin is not None
        return dump(self.cubin, flag)


@cache
def dump(cubin: bytes, flag: str) -> str:
    """What `cuobjdump` prints of a kernel. Tests look at the same kernels in turn."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(BINARIES / "cuobjdump"), flag, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def loops(sass: str) -> list[int]:
    """Count the instructions of each loop in a listing: from where a jump leads back, to the jump."""
    listed = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.MULTILINE)
    addresses = [int(address, 16) for address, _ in listed]
    found = []
    for place, (_, instruction) in zip(addresses, listed, strict=True):
        jump = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", instruction)
        if jump and int(jump[1], 16) <= place:
            found.append(sum(int(jump[1], 16) <= address <= place for address in addresses))
    return found


def unmultiplied(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """A tensor as `torch.mm` returns it; its numbers are arbitrary."""
    return a.new_empty(a.shape[0], b.shape[1]) if out is None else out


@contextmanager
def compiling(target: str, precision: str) -> Iterator[list[Compiled]]:
    """Within, launchers compile for `target` instead of launching; gives the list of kernels."""
    found: list[Compiled] = []
    run = JITFunction.run

    def compile_it(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        kernel = run(self, *args, **{**kwargs, "warmup": True})
        found.append(Compiled(kernel.name, kernel.metadata.shared, kernel.asm.get("cubin")))
        return kernel

    for plan in launch_large.plan_for, launch_small.plan_forward, launch_small.plan_backward:
        plan.cache_clear()  # tests change tiles
    before = driver._active
    driver.set_active(_TargetOnly(target))
    try:
        with (
            mock.patch.object(JITFunction, "run", compile_it),
            mock.patch.object(launcher, "DIRECT", False),
            mock.patch.object(torch, "mm", unmultiplied),
            mock.patch.object(tiles, "family_of", return_value=FAMILIES.get(target, target)),
            mock.patch.object(tiles, "precision_of", return_value=precision),
        ):
            yield found
    finally:
        driver._active = before
