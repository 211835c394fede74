"""Blocks in a map, as kernels find them: order, strides and runs against PyTorch's own indexing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockmem import divide
from blockmem.backends.triton.maps import Blocks


def offsets(blocks, x, block_shape):
    """Where each number of each block is, by the arithmetic of the kernels; `(blocks, D)`."""
    (_, *grid), block = (blocks.grid[0], *blocks.sizes[0]), blocks.sizes[1]
    strides = blocks.strides(x, block_shape)
    places = []
    for sizes, steps in (((blocks.grid[0], *grid), strides.grid), (block, strides.block)):
        numbers = torch.arange(torch.Size(sizes).numel())
        place = torch.zeros_like(numbers)
        for size, step in zip(reversed(sizes), reversed(steps), strict=True):
            place, numbers = place + numbers % size * step, numbers // size
        places.append(place)
    return places[0][:, None] + places[1][None, :]


@given(data=st.data())
def test_kernels_find_every_number(data):
    dims = data.draw(st.integers(1, 3))
    block = tuple(data.draw(st.sampled_from([1, 2, 3, 4, 8])) for _ in range(dims + 1))
    shape = [data.draw(st.integers(1, 3)), *(n * data.draw(st.integers(1, 4)) for n in block)]
    order = data.draw(st.permutations(range(dims + 2)))
    x = torch.arange(torch.Size(shape).numel()).view([shape[i] for i in order])
    x = x.permute(*(order.index(i) for i in range(dims + 2)))
    blocks = Blocks.of(x, block)
    found = offsets(blocks, x, block)
    assert torch.equal(found, blocks.arrange(divide(x, block).flatten(0, 1)))
    rows = torch.arange(found.numel()).view(found.shape)
    assert torch.equal(blocks.restore(blocks.arrange(rows)), rows)
    grid_run, grid_align, block_run, block_align = blocks.strides(x, block).runs
    starts, within = found[:, 0] - found[0, 0], found[0] - found[0, 0]
    for places, run, align in ((starts, grid_run, grid_align), (within, block_run, block_align)):
        first = places[: len(places) // run * run].view(-1, run)
        assert (first - first[:, :1] == torch.arange(run)).all()
        assert (first[:, 0] % align == 0).all()


@pytest.mark.parametrize(
    ("shape", "block", "channels_last", "runs"),
    [
        ((8, 64, 128, 128), (64, 16, 16), False, (1, 16, 16, 16)),
        ((8, 64, 128, 128), (64, 16, 16), True, (1, 16, 16, 16)),
        ((8, 512, 16, 16), (512, 2, 2), False, (1, 2, 2, 2)),
        ((8, 64, 32, 32), (64, 1, 1), False, (16, 16, 1, 16)),
        ((8, 64, 32, 32), (64, 1, 1), True, (1, 16, 16, 16)),
        ((2, 64, 5, 7), (64, 1, 1), False, (1, 1, 1, 1)),
    ],
)
def test_runs_of_common_maps(shape, block, channels_last, runs):
    x = torch.empty(shape)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    blocks = Blocks.of(x, block)
    assert blocks.strides(x, block).runs == runs
    assert blocks.reordered == (block[1] > 1 and not channels_last)


def test_an_expanded_map_has_no_runs_along_what_is_expanded():
    x = torch.randn(2, 8, 1, 1).expand(2, 8, 4, 4)
    out = torch.empty_like(x)
    strides = Blocks.of(out, (8, 2, 2)).strides(x, (8, 2, 2))
    assert strides.runs[2] == 1
