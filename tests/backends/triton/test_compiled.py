"""The kernels, compiled ahead of time for GPUs that are not here, at every entry of the tile table:
they fit the chip's shared memory, spill no register, multiply on tensor cores, and load 16 bytes
at a time wherever that many lie side by side."""

import math

import pytest
import torch

from blockmem.addressing import Addressing
from blockmem.backends.triton import launch
from blockmem.backends.triton.tiles import TILES, Tile, largest_small
from tests.helpers.compile_only import FAMILIES, SHARED_MEMORY, TARGETS, Compiled, compiling

MULTIPLYING = ("read_kernel", "grad_queries_kernel", "grad_items_kernel")
KERNELS = {  # names in the order in which they are launched
    "small": [
        "prepare_kernel",
        *MULTIPLYING[:1],
        "prepare_kernel",
        *MULTIPLYING[1:],
        "finish_kernel",
    ],
    "large": [
        *("prepare_kernel", "gather_kernel", "weights_kernel", "scatter_kernel"),
        *("prepare_kernel", "gather_kernel", "gather_kernel", "grad_logits_kernel"),
        *("scatter_kernel", "finish_kernel"),
    ],
}
MULTIPLIES = {"sm_90": "HGMMA", "sm_100": "(?:UTC[A-Z]*MMA|HMMA)"}
ITEMS = 512
FEW = {"sm_86": 4, "sm_89": 4, "sm_120": 4}  # spills; they have the tiles of sm_80
# Timed on an H200, and faster than every tile that spills nothing
SPILLING = {("sm_90", "tf32", "read_kernel"), ("sm_90", "tf32x3", "grad_items_kernel")}


def cases():
    for target in TARGETS:
        table = TILES[FAMILIES.get(target, target)]
        for precision in table["read"]:
            for channels_last in (False, True):
                for size in sorted({size for sizes in table.values() for size in sizes[precision]}):
                    yield target, precision, (size, 1, 1), channels_last
                yield target, precision, (64, 16, 16), channels_last
            yield target, precision, (512, 2, 2), False  # runs of two numbers


def name(value):
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def compiled(
    target, precision, block, channels_last, renormalize=False, items=ITEMS
) -> list[Compiled]:
    side = 32 if block[1] == 1 else 8 * block[1]
    x = torch.zeros(2, block[0], side, side, dtype=dtype_of(precision))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    memory = torch.zeros(items, math.prod(block), dtype=x.dtype)
    addressing = Addressing(1.0, 1 / items, renormalize)
    with compiling(target, precision) as found:
        _, saved = launch.forward(x, memory, block, addressing, save=True)
        launch.backward(x, x, memory, saved, block, addressing, (True, True))
    return found


def dtype_of(precision):
    return torch.bfloat16 if precision == "bf16" else torch.float32


# In every run: both ways to compute a memory, for the H200's family
EVERY_RUN = [("sm_90", "bf16", (64, 1, 1), True), ("sm_90", "bf16", (64, 16, 16), False)]


def marked(*case):
    """Mark what is not in every run: slow for the H200's family, and long for all others."""
    mark = pytest.mark.slow if case[0] == "sm_90" else pytest.mark.long
    return pytest.param(*case, marks=() if case in EVERY_RUN else mark)


@pytest.mark.parametrize(
    ("target", "precision", "block", "channels_last"),
    [marked(*case) for case in cases()],
    ids=name,
)
def test_every_entry_of_the_table(target, precision, block, channels_last):
    kernels = compiled(target, precision, block, channels_last)
    regime = "small" if math.prod(block) <= largest_small(dtype_of(precision)) else "large"
    assert [kernel.name for kernel in kernels] == KERNELS[regime]
    for kernel in kernels:
        assert kernel.shared <= SHARED_MEMORY[target], kernel
        if TARGETS[target].backend != "cuda":
            continue
        if (target, precision, kernel.name) not in SPILLING:
            assert kernel.spills <= FEW.get(target, 0), (kernel.name, kernel.registers)
        if kernel.name in MULTIPLYING:
            assert kernel.count(MULTIPLIES.get(target, "HMMA")) > 0, kernel.name


@pytest.mark.slow
@pytest.mark.parametrize("renormalize", [False, True])
def test_long_rows_spill_nothing(renormalize):
    found = compiled("sm_90", "bf16", (64, 4, 4), True, renormalize, items=2**13)
    spills = {kernel.name: kernel.spills for kernel in found}
    assert spills == dict.fromkeys(spills, 0)


@pytest.mark.parametrize(
    ("target", "precision", "block", "channels_last"),
    [
        marked("sm_90", precision, block, channels_last)
        for precision in ("bf16", "tf32", "tf32x3")
        for block in ((64, 1, 1), (64, 16, 16))
        for channels_last in (False, True)
    ],
    ids=name,
)
def test_loads_and_stores_are_16_bytes_wide(target, precision, block, channels_last):
    """What is left are vectors, one number a row or column, and the transposed side of a copy."""
    for kernel in compiled(target, precision, block, channels_last):
        loads, stores = kernel.widths("LDG(?:STS)?"), kernel.widths("STG")
        assert loads.count(16) >= 2, kernel.name
        assert len(loads) - loads.count(16) <= 24, kernel.name
        assert len(stores) - stores.count(16) <= 3, kernel.name


def test_a_copy_is_16_bytes_wide_on_both_sides_where_runs_are_short():
    gather = compiled("sm_90", "bf16", (256, 4, 4), False)[1]
    assert set(gather.widths("LDG")) == set(gather.widths("STG")) == {16}


@pytest.mark.slow
def test_a_broken_entry_would_be_seen(monkeypatch):
    """Too large a tile spills; and the interpreter of the machine code sees it."""
    monkeypatch.setitem(TILES["sm_90"]["read"]["tf32x3"], 64, Tile(128, 128, 0, 4, 1))
    read = compiled("sm_90", "tf32x3", (64, 1, 1), True)[1]
    assert read.spills > 0
    assert read.stack > 0
