"""BatchNorm's statistics over the training pictures, against averages taken by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from daad.io import load_checkpoint
from daad.network import (
    CHECKPOINT,
    Discriminator,
    Generator,
    Networks,
    load_networks,
    recompute_statistics,
)
from daad.training import train
from tests.helpers.training_runs import FakePictures, assert_same, config

CPU = torch.device("cpu")


def layers(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def statistics(network: nn.Module) -> list[Tensor]:
    return [value for one in layers(network) for value in (one.running_mean, one.running_var)]


def by_hand(network: nn.Module, batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of what the first BatchNorm layer sees, averaged over batches."""
    seen: list[Tensor] = []
    hook = layers(network)[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for x in batches:
            network(x)
    hook.remove()
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen])
    variances = torch.stack([x.var(dim=(0, 2, 3)) for x in seen])
    return means.mean(0), variances.mean(0)


def test_both_networks_are_averaged_over_the_pictures() -> None:
    c = config(variant="daad+", batch_size=3)
    torch.manual_seed(0)
    networks = Networks(Generator(c), Discriminator(c))
    generator, discriminator = networks
    weights = [p.clone() for p in [*generator.parameters(), *discriminator.parameters()]]
    pictures = FakePictures(6)
    discriminator.eval()
    recompute_statistics(networks, pictures, c)

    assert sorted(pictures.asked[0] + pictures.asked[1]) == list(range(6))
    assert pictures.asked[:2] == pictures.asked[2:]
    real = [pictures.values[indices] for indices in pictures.asked[:2]]
    found = [layers(network)[0] for network in (generator, discriminator)]
    # Of what the discriminator sees, reconstructions are by the new statistics.
    assert (generator.training, discriminator.training) == (True, False)
    generator.eval()
    with torch.no_grad():
        rebuilt = [generator(x) for x in real]
    wanted = [by_hand(generator, real), by_hand(discriminator, real + rebuilt)]
    for layer, (mean, variance) in zip(found, wanted, strict=True):
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.running_var, variance, rtol=1e-5, atol=1e-5)
        assert layer.momentum == 0.1
    now = [*generator.parameters(), *discriminator.parameters()]
    assert all(map(torch.equal, weights, now))


def test_a_lone_picture_is_left_out() -> None:
    c = config(variant="ae", image_size=16, batch_size=2)
    generator = Generator(c)
    recompute_statistics(Networks(generator, None), FakePictures(3, 16), c)
    assert all(torch.isfinite(value).all() for value in statistics(generator))


@pytest.mark.parametrize("kind", ["recomputed", "running"])
def test_training_ends_with_the_statistics_asked_for(kind: str, tmp_path: Path) -> None:
    c = config(variant="daad+", statistics=kind)
    train(c, FakePictures(), tmp_path, device="cpu")
    _, networks, _ = load_networks(tmp_path, CPU)
    before = [value.clone() for network in networks for value in statistics(network)]
    recompute_statistics(networks, FakePictures(), c)
    after = [value for network in networks for value in statistics(network)]
    same = [torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(before, after, strict=True)]
    assert all(same) if kind == "recomputed" else not any(same)


def test_more_epochs_go_on_as_if_nothing_had_been_recomputed(tmp_path: Path) -> None:
    for name, stops in {"whole": [3], "resumed": [2, 3]}.items():
        for epochs in stops:
            c = config(variant="daad+", epochs=epochs)
            train(c, FakePictures(), tmp_path / name, device="cpu", resume=epochs != stops[0])
    whole, resumed = (
        load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "resumed")
    )
    assert_same(whole["generator"], resumed["generator"])
    assert_same(whole["discriminator"], resumed["discriminator"])
