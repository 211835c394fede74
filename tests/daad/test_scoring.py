"""Scores against Eq. 7 by hand, and the maps of where networks err."""

import math

import pytest
import torch
from torch import nn

from daad.config import Config
from daad.io import UserError
from daad.network import Networks
from daad.pictures import brightness
from daad.scoring import (
    Raw,
    Scale,
    fuse,
    peaks,
    score_pictures,
    smooth,
)
from tests.helpers.stand_ins import Halve, MeanFeature, TensorPictures


def raw_of(reconstruction: list[float], alignment: list[float] | None = None) -> Raw:
    n = len(reconstruction)
    return Raw(
        torch.tensor(reconstruction, dtype=torch.float64),
        None if alignment is None else torch.tensor(alignment, dtype=torch.float64),
        torch.zeros(n, 2, 2),
        torch.zeros(n, 2, 2),
        torch.zeros(n, 3, 2, 2, dtype=torch.uint8),
        torch.zeros(n, dtype=torch.float64),
    )


# Eq. 7


def test_fusion_by_hand() -> None:
    raw = raw_of([1, 3, 5], [2, 2, 6])  # scaled: 0, 0.5, 1 and 0, 0, 1
    scores = fuse(raw, Scale.of([raw]), gamma=0.9)
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx([0.0, 0.45, 1.0], abs=1e-15)


def test_scores_beyond_the_scale_are_not_clamped() -> None:
    raw = raw_of([1, 3, 5], [2, 2, 6])
    scale = Scale((2, 4), (2, 4))  # scaled: -0.5, 0.5, 1.5 and 0, 0, 2
    assert fuse(raw, scale, 0.9).tolist() == pytest.approx([-0.45, 0.45, 1.55], abs=1e-15)


def test_without_a_discriminator_the_score_is_the_scaled_reconstruction_error() -> None:
    raw = raw_of([1, 2, 5])
    assert fuse(raw, Scale.of([raw]), gamma=0.9).tolist() == [0.0, 0.25, 1.0]


def test_a_range_without_width_gives_zeros() -> None:
    raw = raw_of([3, 3, 3], [1, 2, 3])
    scores = fuse(raw, Scale.of([raw]), gamma=0.9)
    assert scores.tolist() == pytest.approx([0.0, 0.05, 0.1], abs=1e-15)


def test_a_scale_without_alignment_does_not_fit_scores_that_have_it() -> None:
    with pytest.raises(ValueError, match="no range"):
        fuse(raw_of([1, 2], [1, 2]), Scale((1, 2), None), 0.9)


@pytest.mark.parametrize("alignment", [None, [0.1, 0.3]])
def test_scale_survives_a_checkpoint(tmp_path, alignment) -> None:
    scale = Scale.of([raw_of([1 / 3, 2 / 3], alignment)])
    torch.save({"score_scale": scale._asdict()}, tmp_path / "c.ckpt")
    loaded = torch.load(tmp_path / "c.ckpt", weights_only=True)["score_scale"]
    assert Scale(**loaded) == scale


# R, L and error maps


def test_scores_of_a_known_reconstruction() -> None:
    # x is c everywhere and x_hat c / 2: the squared difference is c**2 / 4.
    values = torch.tensor([0.2, -0.4, 0.8, 1.0, 0.0])
    x = values[:, None, None, None].expand(5, 3, 4, 4)
    config = Config(variant="daad+", batch_size=2, distance="squared")
    raw = score_pictures(Networks(Halve(), MeanFeature()), TensorPictures(x), config)

    expected = (values.double() ** 2 / 4).tolist()
    assert raw.reconstruction.dtype == torch.float64
    assert raw.reconstruction.tolist() == pytest.approx(expected, rel=1e-6)
    assert raw.alignment is not None
    # The norm of three such differences
    norms = (values.double().abs() * math.sqrt(3) / 2).tolist()
    assert raw.alignment.tolist() == pytest.approx(norms, rel=1e-6)
    assert raw.error_maps.shape == (5, 4, 4)
    assert raw.error_maps.dtype == torch.float32
    assert raw.error_maps[:, 1, 2].tolist() == pytest.approx(expected, rel=1e-6)
    # (c / 2 + 1) * 127.5
    assert raw.reconstructions.shape == (5, 3, 4, 4)
    assert raw.reconstructions[:, 0, 0, 0].tolist() == [140, 102, 178, 191, 128]


def test_brightness_is_the_pictures_own() -> None:
    x = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    raw = score_pictures(Networks(Halve(), None), TensorPictures(x), Config(batch_size=2))
    assert torch.equal(raw.brightness, brightness(x))


def test_l2_distance_is_the_norm_and_error_maps_stay_squared() -> None:
    x = torch.full((1, 3, 4, 4), 0.5)
    config = Config(distance="l2")
    raw = score_pictures(Networks(Halve(), None), TensorPictures(x), config)
    assert raw.alignment is None
    assert raw.reconstruction.item() == pytest.approx(0.25 * math.sqrt(48))
    assert raw.error_maps[0, 0, 0].item() == pytest.approx(0.0625)


def test_reconstructions_beyond_the_picture_range_saturate() -> None:
    x = torch.tensor([-6.0, 6.0])[:, None, None, None].expand(2, 3, 2, 2)
    raw = score_pictures(Networks(Halve(), None), TensorPictures(x), Config())
    assert raw.reconstructions[:, 0, 0, 0].tolist() == [0, 255]


def test_scores_that_are_not_finite_are_refused() -> None:
    x = torch.zeros(3, 3, 2, 2)
    x[1] = float("nan")
    with pytest.raises(UserError, match="diverged"):
        score_pictures(Networks(Halve(), None), TensorPictures(x), Config())


def test_peaks_are_those_of_the_smoothed_maps() -> None:
    """A single pixel leaves the square of the filter's middle weight, wherever it lies."""
    size = 64  # a deviation of one pixel
    weights = [math.exp(-(place**2) / 2) for place in range(-3, 4)]
    maps = torch.zeros(4, size, size)
    maps[0, 30, 20] = 5.0
    maps[1] = 0.25
    maps[2, 0, 40] = 5.0  # mirrored without the border itself, nothing comes back to it
    maps[3, 10, 10] = maps[3, 50, 50] = 2.0  # two defects are not more than one
    single = (1 / sum(weights)) ** 2
    expected = [5 * single, 0.25, 5 * single, 2 * single]
    assert peaks(smooth(maps)).tolist() == pytest.approx(expected, rel=1e-5)
    assert peaks(smooth(maps)).dtype == torch.float64
    assert peaks(smooth(torch.rand(2, 4, 4))).shape == (2,)


# The modes of the networks


def normalising() -> nn.Sequential:
    """BatchNorm with statistics of its own, and a dropout that would be seen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    model(torch.randn(4, 3, 8, 8) * 2 + 1)
    return model


@pytest.mark.parametrize("mode", ["eval", "batch"])
@pytest.mark.parametrize("training", [False, True])
def test_scoring_leaves_the_network_as_it_was(mode, training) -> None:
    model = normalising().train(training)
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = Config(batch_norm=mode, batch_size=2)
    score_pictures(Networks(model, None), TensorPictures(torch.randn(5, 3, 8, 8)), config)
    assert [module.training for module in model.modules()] == [training, training, False]
    assert model[0].track_running_stats
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_come_back_after_an_error() -> None:
    model = normalising()
    with pytest.raises(RuntimeError):
        score_pictures(
            Networks(model, None),
            TensorPictures(torch.zeros(2, 5, 8, 8)),
            Config(batch_norm="batch"),
        )
    assert all(module.training for module in model.modules())
    assert model[0].track_running_stats


def test_batch_norm_by_running_statistics_does_not_see_the_batch() -> None:
    model, x = normalising(), torch.randn(6, 3, 8, 8)
    scores = [
        score_pictures(
            Networks(model, None), TensorPictures(x), Config(batch_size=size)
        ).reconstruction
        for size in (2, 6)
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-6, atol=0)


def test_batch_norm_by_the_batch_normalises_by_it_alone() -> None:
    model, x = normalising(), torch.randn(6, 3, 8, 8)
    config = Config(batch_norm="batch", batch_size=3)
    raw = score_pictures(Networks(model, None), TensorPictures(x), config)
    expected = []
    for part in x.split(3):
        mean = part.mean(dim=(0, 2, 3), keepdim=True)
        var = part.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
        x_hat = (part - mean) / torch.sqrt(var + 1e-5)
        expected.append((part - x_hat).square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(raw.reconstruction.float(), torch.cat(expected))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_reaches_the_network_and_not_the_distances() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(3, 3, 3, padding=1).cuda()
    pictures = TensorPictures(torch.randn(4, 3, 16, 16))
    full, mixed = (
        score_pictures(Networks(network, None), pictures, Config(precision=name))
        for name in ("32", "bf16")
    )
    assert mixed.error_maps.dtype == torch.float32
    assert not torch.equal(full.reconstruction, mixed.reconstruction)
    torch.testing.assert_close(full.reconstruction, mixed.reconstruction, rtol=1e-2, atol=0)
