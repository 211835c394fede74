"""Scores without a network, against what they say they are."""

import numpy as np
import torch
from torch import Tensor

from daad.baselines import PATCH, SIDE, STRIDE, baseline_scores
from daad.pictures import StoredPictures
from daad.scoring import evened_errors, smooth

NAMES = ("brightness", "mean picture", "PCA 50", "nearest patch")


def pictures(count: int, seed: int = 0, size: int = SIDE) -> Tensor:
    """Gray noise, smooth enough that neighbours are alike."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(90, 130, (count, 3, size, size), generator=random, dtype=torch.uint8)


def floats(pixels: Tensor) -> Tensor:
    return StoredPictures(pixels).batch(torch.arange(len(pixels)), "cpu")


def standard_peak(normal: Tensor, shown: Tensor) -> np.ndarray:
    """The score of `verdict`, written once more."""
    own, others = normal.double().numpy(), shown.double().numpy()
    deviation = own.std(axis=0)
    z = (others - own.mean(axis=0)) / (deviation + 0.1 * deviation.mean())
    return z.reshape(len(z), -1).max(axis=1)


def test_a_bright_square_is_seen_by_all() -> None:
    shown = pictures(4, seed=1)
    shown[3, :, 20:36, 20:36] = 255
    scores = baseline_scores(StoredPictures(pictures(40)), StoredPictures(shown))
    assert tuple(scores) == NAMES
    for name, values in scores.items():
        assert values.shape == (4,), name
        assert values.argmax() == 3, name


def test_the_mean_picture_is_compared_with_even_light() -> None:
    normal, shown = pictures(12), pictures(3, seed=1)
    found = baseline_scores(StoredPictures(normal), StoredPictures(shown))["mean picture"]
    mean = floats(normal).mean(0, keepdim=True)
    maps = (evened_errors(floats(normal), mean), evened_errors(floats(shown), mean))
    np.testing.assert_allclose(found, standard_peak(*maps), rtol=1e-3)
    brighter = (shown * 1.25).round().to(torch.uint8)  # all alike: not a defect
    lit = baseline_scores(StoredPictures(normal), StoredPictures(brighter))
    assert (lit["brightness"] > 5).all()
    assert (lit["mean picture"] < 2.5 * found).all()


def test_components_rebuild_what_normal_pictures_are_made_of() -> None:
    random = torch.Generator().manual_seed(0)
    patterns = torch.rand(3, 3, SIDE, SIDE, generator=random) - 0.5

    def mixed(count: int) -> Tensor:
        weights = torch.rand(count, 3, generator=random)
        noise = 20 * torch.rand(count, 3, SIDE, SIDE, generator=random)
        return (118 + 60 * torch.einsum("np,pchw->nchw", weights, patterns) + noise).byte()

    shown = mixed(3)
    shown[2, :, 8:16, 8:16] = 250
    learned = mixed(40)
    found = baseline_scores(StoredPictures(learned), StoredPictures(shown))["PCA 50"]
    x = floats(learned).flatten(1).double().numpy()
    _, _, components = np.linalg.svd(x - x.mean(0), full_matrices=False)
    kept = components[:20]  # half as many as there are pictures

    def rebuilt(values: Tensor) -> Tensor:
        flat = values.flatten(1).double().numpy() - x.mean(0)
        made = torch.from_numpy(flat @ kept.T @ kept + x.mean(0)).float()
        return evened_errors(values, made.view_as(values))

    expected = standard_peak(rebuilt(floats(learned)), rebuilt(floats(shown)))
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert found.argmax() == 2


def test_the_nearest_patch_is_of_the_same_place_and_not_of_the_picture_itself() -> None:
    normal, shown = pictures(6), pictures(2, seed=1)
    found = baseline_scores(StoredPictures(normal), StoredPictures(shown))["nearest patch"]
    places = range(0, SIDE - PATCH + 1, STRIDE)

    def maps(values: Tensor, *, itself: bool) -> Tensor:
        learned, others = floats(normal).numpy(), values.numpy()
        nearest = np.full((len(others), len(places), len(places)), np.inf)
        for i, y in enumerate(places):
            for j, x in enumerate(places):
                cut = (slice(None), slice(y, y + PATCH), slice(x, x + PATCH))
                for n, one in enumerate(others):
                    for m, other in enumerate(learned):
                        if not (itself and n == m):
                            distance = np.square(one[cut] - other[cut]).sum()
                            nearest[n, i, j] = min(nearest[n, i, j], distance)
        large = torch.nn.functional.interpolate(
            torch.from_numpy(nearest)[:, None], (SIDE, SIDE), mode="bilinear"
        )
        return smooth(large[:, 0])

    expected = standard_peak(maps(floats(normal), itself=True), maps(floats(shown), itself=False))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_pictures_of_any_size_are_shrunk() -> None:
    scores = baseline_scores(
        StoredPictures(pictures(5, size=48)), StoredPictures(pictures(2, 1, 96))
    )
    assert all(torch.isfinite(values).all() for values in scores.values())
