"""One layer dropped into an autoencoder: what it does to pictures unlike those of the training.

An autoencoder learns diagonal stripes, once as it is and once with a `BlockwiseMemory` behind its
encoder, whose items start as blocks of its own maps. Then both rebuild new diagonal stripes (normal)
and vertical ones (anomalous). The toy is Figure 1 of the paper. Takes some seconds on a CPU.
"""

import torch
from torch import Tensor, nn

from blockmem import BlockwiseMemory, fill_memories


def autoencoder(with_memory: bool) -> nn.Sequential:
    memory = BlockwiseMemory(num_items=16, block_shape=(16, 4, 4), temperature=0.1)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        memory if with_memory else nn.Identity(),
        nn.ConvTranspose2d(16, 16, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )


def stripes(count: int, angle: float) -> Tensor:
    """Draw pictures (count, 1, 32, 32) of stripes at `angle` degrees, each with its own phase."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    turn = torch.deg2rad(torch.tensor(angle))
    across = x * turn.cos() + y * turn.sin()
    phase = 2 * torch.pi * torch.rand(count, 1, 1, 1)
    return torch.sin(across * 0.8 + phase) + 0.05 * torch.randn(count, 1, 32, 32)


def train(model: nn.Module, steps: int = 300) -> None:
    """Learn to rebuild stripes at 45 degrees."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = stripes(16, angle=45)
        optimizer.zero_grad()
        (model(batch) - batch).square().mean().backward()
        optimizer.step()


def mean_error(model: nn.Module, pictures: Tensor) -> float:
    with torch.no_grad():
        return (model(pictures) - pictures).square().mean().item()


def main() -> None:
    print(f"{'':16}{'normal':>10}{'anomalous':>12}{'ratio':>8}   mean squared error")
    for with_memory in (False, True):
        torch.manual_seed(0)
        model = autoencoder(with_memory)
        if with_memory:
            fill_memories(model, stripes(16, angle=45))
        train(model)
        normal, anomalous = (mean_error(model, stripes(64, angle)) for angle in (45, 0))
        name = "with memory" if with_memory else "autoencoder"
        print(f"{name:16}{normal:>10.4f}{anomalous:>12.4f}{anomalous / normal:>8.1f}")


if __name__ == "__main__":
    main()
