"""The toy of Figure 1: what comes out at each size of a block, and that it is drawn."""

import pytest
import torch
from matplotlib.figure import Figure

from blockmem import divide
from daad.report import save_figure
from reproduction.figures import BLOCKS, SIZE, Rebuilt, rebuild_toy, toy_figure, toy_pictures


@pytest.fixture(scope="module")
def found() -> dict[int, Rebuilt]:
    return {rebuilt.block: rebuilt for rebuilt in rebuild_toy()}


@pytest.fixture(scope="module")
def figure() -> Figure:
    return toy_figure()


def test_pictures_are_stripes_of_two_colours() -> None:
    a, b, c = toy_pictures()
    for picture in (a, b, c):
        assert len(torch.unique(divide(picture[None], (3, 1, 1))[0], dim=0)) == 2
    for diagonal in (a, b):  # the same along lines that go up to the right
        assert torch.equal(diagonal[:, 1:, :-1], diagonal[:, :-1, 1:])
    assert torch.equal(c, c[:, :1].expand_as(c))  # the same from top to bottom
    assert not torch.equal(a, b)


def test_pixels_rebuild_everything(found) -> None:
    assert found[1].patterns == 2
    assert found[1].errors.max() < 1e-9


@pytest.mark.parametrize("block", [4, 8])
def test_blocks_of_a_middle_size_rebuild_what_is_normal_alone(found, block) -> None:
    a, b, c = found[block].errors.tolist()
    assert max(a, b) < 1e-9
    assert c > 0.1


@pytest.mark.parametrize("block", [16, 32])
def test_blocks_that_are_too_large_rebuild_what_was_learnt_alone(found, block) -> None:
    a, b, c = found[block].errors.tolist()
    assert a < 1e-9
    assert min(b, c) > 0.1


def test_a_block_becomes_one_that_was_learnt_or_a_mean_of_them(found) -> None:
    assert [rebuilt.patterns for rebuilt in found.values()] == [2, 7, 7, 3, 1]
    whole = found[SIZE]
    assert torch.allclose(whole.pictures, toy_pictures()[:1].expand(3, -1, -1, -1))
    corner = found[16].pictures[1, :, 16:, 16:]  # of B, where it goes on as A begins
    assert torch.allclose(corner, toy_pictures()[0, :, :16, :16])


def test_the_figure_has_a_row_a_picture_and_a_column_a_size(tmp_path, figure) -> None:
    assert len(figure.axes) == 3 * (1 + len(BLOCKS))
    rows = [figure.axes[start : start + 6] for start in range(0, 18, 6)]
    assert [axes.get_title() for axes in rows[0]] == [
        "input",
        *("block 1 x 1\n2 patterns", "block 4 x 4\n7 patterns", "block 8 x 8\n7 patterns"),
        *("block 16 x 16\n3 patterns", "block 32 x 32\n1 pattern"),
    ]
    assert [row[0].get_ylabel() for row in rows] == ["A\nlearnt", "B\nnormal", "C\nanomalous"]
    save_figure(tmp_path / "toy.png", figure)
    assert (tmp_path / "toy.png").stat().st_size > 0


def test_the_figure_shows_pictures_and_errors(figure, found) -> None:
    for row in range(3):
        cells = figure.axes[6 * row : 6 * row + 6]
        shown = [torch.tensor(axes.images[0].get_array()).movedim(-1, 0) for axes in cells]
        assert torch.equal(shown[0], toy_pictures()[row])
        for axes, picture, rebuilt in zip(cells[1:], shown[1:], found.values(), strict=True):
            assert torch.allclose(picture, rebuilt.pictures[row], atol=1e-6)
            assert axes.get_xlabel() == f"error {rebuilt.errors[row].item():.3f}"


def test_frames_are_round_the_blocks_that_differ(figure) -> None:
    frames = [len(axes.patches) for axes in figure.axes]
    a, b, c = frames[:6], frames[6:12], frames[12:]
    assert a == [0, 0, 0, 0, 0, 0]
    assert b == [0, 0, 0, 0, 3, 1]  # the last of four is right
    assert c == [0, 0, 64, 16, 4, 1]
    corners = [frame.get_xy() for frame in figure.axes[10].patches]  # of B at 16, about its blocks
    wrong = [(0, 0), (16, 0), (0, 16)]
    assert corners == [pytest.approx((x - 0.5, y - 0.5), abs=0.5) for x, y in wrong]
    assert figure.axes[10].patches[0].get_width() == pytest.approx(16, abs=1)
