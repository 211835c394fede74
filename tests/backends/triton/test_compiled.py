"""Every kernel at every entry of the tile table, compiled ahead of time for GPUs that are not here:
it fits the chip's shared memory, spills no register, multiplies on tensor cores, and loads 16 bytes
at a time wherever that many lie side by side."""

import math

import pytest
import torch
from compile_only import SHARED_MEMORY, TARGETS, Compiled, compiling

from blockmem.addressing import Addressing
from blockmem.backends.triton import launch
from blockmem.backends.triton.tiles import TILES, largest_small

KERNELS = {  # names in the order in which they are launched
    "small": ["read_kernel", "grad_queries_kernel", "grad_items_kernel"],
    "large": [
        *("products_kernel", "weights_kernel", "read_kernel"),
        *("products_kernel", "grad_logits_kernel", "read_kernel", "grad_items_kernel"),
    ],
}
MULTIPLIES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "(?:UTC[A-Z]*MMA|HMMA)"}
ITEMS = 512


def cases():
    for family, kernels in TILES.items():
        for precision in kernels["large read"]:
            for channels_last in (False, True):
                for size in kernels["small read"][precision]:
                    yield family, precision, (size, 1, 1), channels_last
                yield family, precision, (64, 16, 16), channels_last
            yield family, precision, (512, 2, 2), False  # runs of two numbers


def name(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def compiled(family, precision, block, channels_last, renormalize=False) -> list[Compiled]:
    side = 32 if block[1] == 1 else 8 * block[1]
    x = torch.empty(2, block[0], side, side, dtype=dtype_of(precision))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    memory = torch.empty(ITEMS, math.prod(block), dtype=x.dtype)
    addressing = Addressing(1.0, 1 / ITEMS, renormalize)
    with compiling(family, precision) as found:
        _, saved = launch.forward(x, memory, block, addressing, save=True)
        launch.backward(x, x, memory, saved, block, addressing, (True, True))
    return found


def dtype_of(precision):
    return torch.bfloat16 if precision == "bf16" else torch.float32


# The H200's family in every run, the others where there are minutes
MARKS = {"sm_90": []}


@pytest.mark.parametrize(
    ("family", "precision", "block", "channels_last"),
    [pytest.param(*case, marks=MARKS.get(case[0], pytest.mark.slow)) for case in cases()],
    ids=name,
)
def test_every_entry_of_the_table(family, precision, block, channels_last):
    kernels = compiled(family, precision, block, channels_last)
    regime = "small" if math.prod(block) <= largest_small(precision) else "large"
    assert [kernel.name for kernel in kernels] == KERNELS[regime]
    for kernel in kernels:
        assert kernel.shared <= SHARED_MEMORY[family], kernel
        if TARGETS[family].backend != "cuda":
            continue
        assert kernel.spills == 0, (kernel.name, kernel.registers)
        if kernel.name not in ("weights_kernel", "grad_logits_kernel"):
            assert kernel.count(MULTIPLIES[family]) > 0, kernel.name


@pytest.mark.parametrize("precision", ["bf16", "tf32", "tf32x3"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("block", [(64, 1, 1), (64, 16, 16)], ids=name)
def test_loads_and_stores_are_16_bytes_wide(block, channels_last, precision):
    """A tile takes eight loads and more; what is left are vectors, one number a row or column."""
    for kernel in compiled("sm_90", precision, block, channels_last):
        loads, stores = kernel.widths("LDG(?:STS)?"), kernel.widths("STG")
        assert loads.count(16) >= 8, kernel.name
        assert len(loads) - loads.count(16) <= 16, kernel.name
        assert stores.count(16) >= 4, kernel.name
        assert len(stores) - stores.count(16) <= 3, kernel.name


def test_runs_of_eight_bytes_are_moved_as_such():
    read = compiled("sm_90", "bf16", (256, 4, 4), False)[2]
    assert set(read.widths("STG")) == {8}


def test_a_broken_entry_would_be_seen(monkeypatch):
    """Too large a tile spills; and the interpreter of the machine code sees it."""
    monkeypatch.setitem(TILES["sm_90"]["large read"], "tf32x3", launch.Tile(128, 64, 256, 4, 1))
    read = compiled("sm_90", "tf32x3", (64, 16, 16), True)[2]
    assert read.spills > 0
    assert read.stack > 0
