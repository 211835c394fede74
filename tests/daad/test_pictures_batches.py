"""An epoch's batches: everything once, flipped by halves, shared out evenly."""

import pytest
import torch

from daad.pictures import epoch_order, flip, split_batches, to_bytes, to_floats


def test_bytes_come_back_and_what_lies_beyond_is_black_or_white() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_floats(pixels, torch.device("cpu"))), pixels)
    assert to_bytes(torch.tensor([-3.0, 1.5])).tolist() == [0, 255]


def test_flip_mirrors_each_picture_by_its_own_choice() -> None:
    x = torch.arange(4 * 3 * 4 * 5.0).view(4, 3, 4, 5)
    choices = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    expected = [x[0], x[1].flip(-1), x[2].flip(-2), x[3].flip(-1, -2)]
    assert torch.equal(flip(x, choices), torch.stack(expected))


def test_epoch_order_is_a_permutation_with_a_half_of_the_pictures_flipped() -> None:
    order, flips = epoch_order(4000, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(4000))
    for half in flips.double().mean(0).tolist():
        assert half == pytest.approx(0.5, abs=0.04)
    both = (flips[:, 0] & flips[:, 1]).double().mean().item()
    assert both == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize(("count", "processes"), [(12, 3), (10, 4), (2, 5), (7, 1)])
def test_processes_share_an_epoch(count: int, processes: int) -> None:
    shares = [
        epoch_order(count, torch.Generator().manual_seed(1), rank, processes)[0]
        for rank in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    seen = torch.cat(shares).tolist()
    assert set(seen) == set(range(count))
    assert len(seen) - count < processes  # seen twice: no more than evens the shares out


def test_a_lone_picture_is_left_out_only_where_batch_norm_cannot_take_it() -> None:
    order = torch.arange(9)
    assert [len(batch) for batch in split_batches(order, 4, smallest=2)] == [4, 4, 1]
    assert [len(batch) for batch in split_batches(order, 4, smallest=1)] == [4, 4]
