import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockmem import assemble, divide
from blockmem.division import chunks, grid_shape, grid_views


@st.composite
def maps(draw):
    """A map of 1 to 3 spatial dimensions in some memory layout, and a block shape that fits it."""
    dims = draw(st.integers(1, 3))
    block = tuple(draw(st.integers(1, 3)) for _ in range(dims + 1))
    grid = tuple(draw(st.integers(1, 3)) for _ in range(dims + 1))
    shape = (draw(st.integers(0, 3)), *(b * g for b, g in zip(block, grid, strict=True)))
    order = draw(st.permutations(range(dims + 2)))  # any axis may be the contiguous one
    x = torch.arange(math.prod(shape), dtype=torch.float32)
    x = x.reshape([shape[axis] for axis in order]).permute(
        [order.index(a) for a in range(dims + 2)]
    )
    assert x.shape == shape
    return x, block


@given(maps())
def test_assemble_undoes_divide(given_map):
    x, block = given_map
    queries = divide(x, block)
    grid = grid_shape(x.shape, block)
    assert queries.shape == (x.shape[0], math.prod(grid), math.prod(block))
    assert torch.equal(assemble(queries, block, x.shape), x)


@given(maps())
def test_each_query_is_its_block_with_channels_fastest(given_map):
    x, (c, *s) = given_map
    queries = divide(x, (c, *s))
    *space, channels = grid_shape(x.shape, (c, *s))
    corners = itertools.product(*(range(n) for n in space), range(channels))
    for k, (*corner, channel) in enumerate(corners):
        cut = [slice(i * n, (i + 1) * n) for i, n in zip(corner, s, strict=True)]
        block = x[(slice(None), slice(channel * c, (channel + 1) * c), *cut)]
        assert torch.equal(queries[:, k], block.movedim(1, -1).flatten(1))


@given(maps())
def test_grid_view_shares_memory(given_map):
    x, block = given_map
    view = grid_views(block, x)[0]
    assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert view.shape == (x.shape[0], *grid_shape(x.shape, block), *block[1:], block[0])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 40))
def test_chunks_cover_the_grid_in_order_within_their_size(grid, rows):
    numbers = torch.arange(math.prod(grid)).reshape(grid)
    pieces = [numbers[index] for index in chunks(grid, rows)]
    covered = torch.cat([piece.flatten() for piece in pieces]) if pieces else numbers.flatten()
    assert torch.equal(covered, numbers.flatten())
    assert all(piece.numel() <= max(rows, 1) for piece in pieces)


def test_chunks_are_as_large_as_one_axis_allows():
    assert list(chunks((2, 4, 3), 6)) == [
        (0, slice(0, 2)),
        (0, slice(2, 4)),
        (1, slice(0, 2)),
        (1, slice(2, 4)),
    ]
    assert list(chunks((2, 4, 3), 24)) == [(slice(0, 2),)]


@pytest.mark.parametrize(
    ("shape", "block", "text"),
    [
        (
            (1, 8, 100, 64),
            (8, 16, 16),
            "height 100 of the map (1, 8, 100, 64) cannot be divided into blocks of 16 "
            "(block_shape (8, 16, 16)): the nearest height that can is 96 or 112; "
            "the nearest block that divides 100 is 10 or 20",
        ),
        ((1, 6, 8), (4, 2), "channels 6 .* nearest channels that can is 4 or 8; .* is 3 or 6"),
        ((1, 4, 3), (4, 5), "length 3 .* is 5; the nearest block that divides 3 is 3"),
        ((1, 4, 4, 4, 9), (4, 2, 2, 2), "width 9 "),
        ((1, 4, 3, 4, 8), (4, 2, 2, 2), "depth 3 "),
        ((4, 8, 8), (4, 2, 2), r"a map \(B, C, \*S\) of 4 dimensions, got 3"),
        ((1, 4, 8, 8), (4, 0, 2), "each a positive whole number"),
        ((1, 4, 8, 8), (4, 2.0, 2), "each a positive whole number"),
        ((1, 4), (4,), "its 1, 2 or 3 spatial sizes"),
    ],
)
def test_what_does_not_fit_is_named(shape, block, text):
    pattern = text if "\\" in text or ".*" in text else text.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=pattern):
        divide(torch.zeros(shape), block)


def test_assemble_names_the_shape_it_expected():
    with pytest.raises(ValueError, match=r"expected \(B, Q, D\) = \(2, 16, 32\)"):
        assemble(torch.zeros(2, 16, 31), (2, 4, 4), (2, 2, 16, 16))
