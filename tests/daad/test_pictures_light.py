"""Brightness, and pictures that are given the same."""

import pytest
import torch

from daad.pictures import EvenLight, brightness, mean_brightness
from tests.helpers.stand_ins import TensorPictures


def test_brightness_is_the_mean_of_all_values() -> None:
    x = torch.zeros(3, 3, 2, 2)  # half of the way from black to white
    x[1, 0] = 1.0  # one channel of three is white
    x[2, :, 0, 0] = -1.0  # one pixel of four is black
    found = brightness(x)
    assert found.dtype == torch.float64
    assert found.tolist() == [0.5, 0.6667, 0.375]
    assert mean_brightness(TensorPictures(x)) == pytest.approx((0.5 + 0.6667 + 0.375) / 3)


def test_more_pictures_than_a_batch() -> None:
    x = torch.linspace(-1, 1, 101)[:, None, None, None].expand(101, 3, 2, 2)
    assert mean_brightness(TensorPictures(x)) == pytest.approx(0.5)


@pytest.mark.parametrize("target", [0.1, 0.43215, 0.9])
def test_even_light_is_a_factor_and_a_tie(target: float) -> None:
    x = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 1
    x = x * torch.linspace(0.2, 1, 9)[:, None, None, None]
    even = EvenLight(TensorPictures(x), target)
    assert len(even) == 9
    found = even.batch(torch.arange(9), "cpu")
    assert set(brightness(found).tolist()) == {round(target, 4)}
    factors = (found + 1) / (x + 1)
    torch.testing.assert_close(factors, factors[:, :1, :1, :1].expand_as(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(even.batch(torch.tensor([7, 2]), "cpu"), found[[7, 2]])


def test_a_black_picture_stays_black() -> None:
    black = torch.full((1, 3, 2, 2), -1.0)
    assert torch.equal(EvenLight(TensorPictures(black), 0.5).batch(torch.tensor([0]), "cpu"), black)
