"""How a memory starts, and which block, N, temperature and threshold: measured on MNIST.

python examples/mnist_memory.py FOLDER [starts | settings]

FOLDER holds the four official files. A small convolutional autoencoder learns one digit, the zero,
in 250 steps, and then scores 60 zeros and 400 other digits of the test set by its error. Each table
takes some minutes on one core. docs/guide.md has what came out.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blockmem import BlockwiseMemory, fill_memories, usage
from daad.classes import load_labelled
from daad.metrics import image_auroc

STEPS, BATCH = 250, 64
SEEDS = {"starts": 8, "settings": 3}
REVIVED_AT = (50, 100, 150)
MAP = (32, 7, 7)  # what the encoder makes of a picture


class Row(NamedTuple):
    """start: "none" (no memory), "uniform" (in ±1/√D, as constructed), "deviation 1", "maps", or
    "revived": uniform, and items that no block uses are filled again at three steps."""

    start: str = "maps"
    temperature: float = 1.0
    num_items: int = 64
    block: tuple[int, ...] = MAP
    threshold: float | None = None


class Result(NamedTuple):
    """auroc: of the errors. gradient: norm of the first convolution's, at the start. length: of the
    answers, at the start: their deviation in that of the map. After training, on normal test
    pictures: kept, the share of weights above 0; dead, how many items no block uses."""

    auroc: float
    gradient: float
    length: float
    kept: float
    dead: float


class Digits(NamedTuple):
    """Pictures `(n, 1, 28, 28)` in [0, 1]: zeros to train on, zeros and others to test on."""

    train: Tensor
    normal: Tensor
    anomalous: Tensor


def load(folder: Path) -> Digits:
    pictures, labels = [], []
    splits = load_labelled("mnist", folder).splits
    for name in ("train", "test"):
        pictures.append(torch.tensor(splits[name].pixels) / 255)
        labels.append(torch.tensor(splits[name].labels))
    zero = [one == 0 for one in labels]
    test = pictures[1]
    return Digits(pictures[0][zero[0]], test[zero[1]][:60], test[~zero[1]][:400])


def autoencoder(memory: nn.Module) -> nn.Sequential:
    """BatchNorm before the memory and none behind it, which would make up for short answers."""
    encoder = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1)]
    encoder += [nn.BatchNorm2d(32), nn.ReLU()]
    decoder = [nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU(), nn.ConvTranspose2d(16, 1, 2, 2)]
    return nn.Sequential(nn.Sequential(*encoder), memory, nn.Sequential(*decoder))


def started(row: Row, digits: Digits, random: torch.Generator) -> nn.Sequential:
    memory: nn.Module = nn.Identity()
    if row.start != "none":
        memory = BlockwiseMemory(
            row.num_items, row.block, temperature=row.temperature, threshold=row.threshold
        )
        if row.start == "deviation 1":
            nn.init.uniform_(memory.memory, -(3**0.5), 3**0.5)
    model = autoencoder(memory)
    if row.start == "maps":
        order = torch.randperm(len(digits.train), generator=random)[: max(128, row.num_items)]
        fill_memories(model, *digits.train[order].split(128), generator=random)
    return model


def revive(memory: BlockwiseMemory, features: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make items that no block of `features` uses blocks of it, and forget what moved them."""
    dead = usage(memory.address(features)).never_used
    memory.fill_(features, items=dead)
    for average in optimizer.state[memory.memory].values():
        if average.shape == memory.memory.shape:  # not the count of steps
            average[dead] = 0


def errors(model: nn.Module, pictures: Tensor) -> Tensor:
    return (model(pictures) - pictures).square().mean((1, 2, 3))


def run(row: Row, digits: Digits, seed: int, steps: int = STEPS) -> Result:
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = started(row, digits, random)
    encoder, memory, _ = model
    first_layer = encoder.get_submodule("0")
    optimizer = torch.optim.Adam(model.parameters())
    gradient = length = 0.0
    for step in range(steps):
        x = digits.train[torch.randint(len(digits.train), (BATCH,), generator=random)]
        optimizer.zero_grad()
        errors(model, x).mean().backward()
        if step == 0:
            gradients = [one.grad for one in first_layer.parameters() if one.grad is not None]
            gradient = gradients[0].norm().item()
            with torch.no_grad():
                features = encoder(x)
                length = (memory(features).std() / features.std()).item()
        optimizer.step()
        if isinstance(memory, BlockwiseMemory) and row.start == "revived" and step in REVIVED_AT:
            with torch.no_grad():
                revive(memory, encoder(x), optimizer)
    model.eval()
    with torch.no_grad():
        scores = [errors(model, digits.normal), errors(model, digits.anomalous)]
        labels = torch.arange(2).repeat_interleave(torch.tensor([len(s) for s in scores]))
        kept, dead = 1.0, 0.0
        if isinstance(memory, BlockwiseMemory):
            weights = memory.address(encoder(digits.normal))
            kept = (weights > 0).float().mean().item()
            dead = float(usage(weights).never_used.sum())
    auroc = image_auroc(torch.cat(scores), labels)
    assert auroc is not None  # there are digits of both kinds
    return Result(auroc, gradient, length, kept, dead)


def starts() -> Iterator[Row]:
    yield Row("none")
    for temperature in (1.0, 0.1):
        for start in ("uniform", "deviation 1", "revived", "maps"):
            yield Row(start, temperature)


def settings() -> Iterator[Row]:
    yield from (Row(temperature=t) for t in (1.0, 0.3, 0.1, 0.03, 0.01))
    for temperature in (1.0, 0.1):
        yield from (Row("maps", temperature, n) for n in (8, 256, 1024))
        yield from (Row("maps", temperature, 64, b) for b in ((8, 7, 7), (32, 1, 7), (32, 1, 1)))
    yield from (Row(temperature=0.1, threshold=t / 64) for t in (0.0, 0.5, 2.0))


def main() -> None:
    folder, tables = Path(sys.argv[1]), sys.argv[2:] or ["starts", "settings"]
    digits = load(folder)
    print("| start | τ | N | block | θ·N | gradient | length | kept | dead | AUROC |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for table in tables:
        for row in {"starts": starts, "settings": settings}[table]():
            results = [run(row, digits, seed) for seed in range(SEEDS[table])]
            mean = Result(*(sum(column) / len(results) for column in zip(*results, strict=True)))
            threshold = 1 if row.threshold is None else row.threshold * row.num_items
            gradients = [result.gradient for result in results]
            print(
                f"| {row.start} | {row.temperature:g} | {row.num_items} | {row.block} "
                f"| {threshold:g} | {min(gradients):.0e} to {max(gradients):.0e} "
                f"| {mean.length:.2g} | {mean.kept:.0%} | {mean.dead:.0f} "
                f"| {' '.join(f'{result.auroc:.3f}'[1:] for result in results)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
