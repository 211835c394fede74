"""DAAD and DAAD+ in one file: learn good photographs, score others, print the AUROC.

    python examples/daad_minimal.py ROOT/bottle --plus
    python examples/daad_minimal.py ROOT/bottle --size 128 --width 8 --items 16 --epochs 24 --lr 2e-3

ROOT/bottle has MVTec AD's layout: train/good, test/good and test/DEFECT. The defaults are the paper's
and want a GPU; the second command is for a CPU. Tables and equations are those of
"Divide-and-Assemble: Learning Block-wise Memory for Unsupervised Anomaly Detection" (ICCV 2021).
Where the paper leaves something open, this file does what `daad_mvtec.py` does.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim.swa_utils import update_bn

from blockmem import BlockwiseMemory

LAMBDA_REC, LAMBDA_ADV, LAMBDA_ALI = 50.0, 0.5, 0.5  # Eq. 3
GAMMA = 0.9  # Eq. 7
LEVELS, BATCH_SIZE = 4, 8
RATE = 8  # r_h and r_w, the blocks along a map's height and width
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def conv_bn_relu(channels: int, out_channels: int) -> nn.Sequential:
    """Make Table 7's ConvBNReLU. BatchNorm would take out a bias, so there is none."""
    convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class Generator(nn.Module):
    """The U-Net of Table 7, with a block-wise memory (Eq. 1 and 2) in each skip connection.

    Pictures `(B, 3, S, S)` in [-1, 1] become reconstructions of that shape.
    """

    def __init__(self, size: int = 256, width: int = 64, num_items: int = 500) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS)]
        self.encoder, self.memories, self.decoder = (nn.ModuleList() for _ in range(3))
        for below, out in zip([3, *widths], widths, strict=False):
            first, second = conv_bn_relu(below, out), conv_bn_relu(out, out)
            self.encoder.append(nn.Sequential(first, second, nn.MaxPool2d(2)))
        for level, out in enumerate(widths):
            side = size // 2 ** (level + 1) // RATE
            self.memories.append(BlockwiseMemory(num_items, (out, side, side)))
        for level, out in enumerate(widths):
            # The last level has only its memory; the others add theirs to what comes from below.
            joined = out if level == LEVELS - 1 else widths[level + 1] + out
            first, second = conv_bn_relu(joined, 2 * out), conv_bn_relu(2 * out, 2 * out)
            up = nn.ConvTranspose2d(2 * out, out, 2, stride=2)
            self.decoder.append(nn.Sequential(first, second, up))
        first, second = conv_bn_relu(width, width), conv_bn_relu(width, width)
        self.head = nn.Sequential(first, second, nn.Conv2d(width, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        remembered = []
        for encode, memory in zip(self.encoder, self.memories, strict=True):
            x = encode(x)  # the next level goes on from the map itself, not from the memory
            remembered.append(memory(x))
        x = self.decoder[-1](remembered[-1])
        for level in reversed(range(LEVELS - 1)):
            x = self.decoder[level](torch.cat([x, remembered[level]], dim=1))
        return self.head(x)


class Discriminator(nn.Module):
    """Table 8: logits `(B,)`, real or rebuilt, and the feature f_D `(B, F)` of Eq. 6.

    The losses take logits, so there is no sigmoid. At 256x256 F is 100. Smaller pictures have
    fewer stages: the feature extractor ends where the map is 4 to 7 wide.
    """

    def __init__(self, size: int = 256, width: int = 64) -> None:
        super().__init__()
        channels, self.extractor = 3, nn.Sequential()
        while size >= 8:
            first = not len(self.extractor)
            self.extractor.append(nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=first))
            if not first:
                self.extractor.append(nn.BatchNorm2d(width))
            self.extractor.append(nn.LeakyReLU(0.2, inplace=True))
            channels, width, size = width, 2 * width, size // 2
        self.classifier = nn.Conv2d(channels, 100, 4)
        self.decision = nn.Conv2d(100, 1, 3, padding=1)  # its input is 1x1 at 256x256

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.classifier(self.extractor(x))
        return self.decision(feature).flatten(1).mean(1), feature.flatten(1)


def distance(x: Tensor, x_hat: Tensor, *, norm: bool = True) -> Tensor:
    """Measure `(B, ...)` pair by pair: the norm, as Eq. 4 and 6 are printed, or a mean of squares.

    With lambda_rec = 50, mean squares would weigh too little against DAAD+'s other losses.
    """
    difference = (x - x_hat).flatten(1)
    return torch.linalg.vector_norm(difference, dim=1) if norm else difference.square().mean(1)


def train_step(
    g: Generator, d: Discriminator | None, adams: list[torch.optim.Adam], x: Tensor
) -> dict[str, Tensor]:
    """Train D, if there is one, then G, on pictures `(B, 3, S, S)`; return the losses."""
    x_hat = g(x)
    losses = {"reconstruction": distance(x, x_hat, norm=d is not None).mean()}  # Eq. 4
    objective = LAMBDA_REC * losses["reconstruction"]  # Eq. 3
    if d is not None:
        (real, feature), (fake, feature_hat) = d(x), d(x_hat.detach())
        # Eq. 5, negated for D, from logits z: -log D is softplus(-z), and -log(1 - D) softplus(z).
        losses["discriminator"] = softplus(-real).mean() + softplus(fake).mean()
        adams[1].zero_grad()
        (losses["discriminator"] + LAMBDA_ALI * distance(feature, feature_hat).mean()).backward()
        adams[1].step()
        fake, feature_hat = d(x_hat)
        with torch.no_grad():  # to G, f_D(x) is a constant
            _, feature = d(x)
        # Eq. 5 for G, as -log D(x_hat): the gradient of log(1 - D(x_hat)) fades where D is sure.
        losses["adversarial"] = softplus(-fake).mean()
        losses["alignment"] = distance(feature, feature_hat).mean()  # Eq. 6
        objective = objective + LAMBDA_ADV * losses["adversarial"]
        objective = objective + LAMBDA_ALI * losses["alignment"]
    adams[0].zero_grad()
    objective.backward(inputs=list(g.parameters()))
    adams[0].step()
    return {name: loss.detach() for name, loss in losses.items()}


def batches(pictures: Tensor, order: Tensor, device: str) -> Iterator[Tensor]:
    """Yield pictures, bytes `(n, 3, S, S)`, in this order as batches of floats in [-1, 1]."""
    for indices in order.split(BATCH_SIZE):
        yield pictures[indices].to(device).float() / 127.5 - 1


def train(
    g: Generator, d: Discriminator | None, pictures: Tensor, epochs: int, lr: float, seed: int
) -> None:
    """Learn good pictures, bytes `(n, 3, S, S)`, each mirrored at random both ways."""
    device, count = str(g.head[2].weight.device), len(pictures)
    adams = [
        torch.optim.Adam(network.parameters(), lr) for network in (g, d) if network is not None
    ]
    random = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(count, generator=random)
        flips = (torch.rand(count, 2, generator=random) < 0.5).to(device).split(BATCH_SIZE)
        for x, flip in zip(batches(pictures, order, device), flips, strict=True):
            across, down = flip[:, :, None, None, None].unbind(1)
            x = torch.where(across, x.flip(-1), x)
            losses = train_step(g, d, adams, torch.where(down, x.flip(-2), x))
        line = ", ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items())
        print(f"epoch {epoch} of {epochs}: {line}", flush=True)
        if not torch.stack(list(losses.values())).isfinite().all():
            raise FloatingPointError(f"epoch {epoch}: {line}; give a smaller --lr")
    # BatchNorm's statistics come from the last few steps; recompute them from all pictures.
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    update_bn(batches(pictures, order, device), g)
    if d is not None:
        g.eval()
        update_bn((y for x in batches(pictures, order, device) for y in (x, g(x))), d)


@torch.inference_mode()
def anomaly_scores(g: Generator, d: Discriminator | None, pictures: Tensor) -> Tensor:
    """Compute A of Eq. 7 `(n,)` for a test set, bytes `(n, 3, S, S)`; A = R without D."""
    g.eval()
    rows = []
    for x in batches(pictures, torch.arange(len(pictures)), str(g.head[2].weight.device)):
        x_hat = g(x)
        row = [distance(x, x_hat, norm=d is not None)]
        if d is not None:
            d.eval()
            row.append(distance(d(x)[1], d(x_hat)[1]))
        rows.append(torch.stack(row).double().cpu())
    parts = torch.cat(rows, dim=1)
    low, high = parts.amin(1, keepdim=True), parts.amax(1, keepdim=True)
    r, *alignment = (parts - low) / (high - low)
    return GAMMA * r + (1 - GAMMA) * alignment[0] if alignment else r


def auroc(good: Tensor, bad: Tensor) -> float:
    """Count the pairs in which the bad picture's score is higher; a tie is half a pair."""
    difference = bad[:, None] - good
    return ((difference > 0).double() + (difference == 0).double() / 2).mean().item()


def load(folder: Path, part: str, size: int, *, good: bool = True) -> Tensor:
    """Read FOLDER/PART/good, or all that lies beside it, as RGB bytes `(n, 3, size, size)`."""
    found = [path for path in sorted(folder.glob(f"{part}/*/*")) if path.suffix.lower() in SUFFIXES]
    paths = [path for path in found if (path.parent.name == "good") == good]
    if not paths:
        place = "good" if good else "DEFECT"
        raise FileNotFoundError(f"{folder / part / place}: no pictures; put {SUFFIXES} there")
    pictures = [Image.open(path).convert("RGB") for path in paths]
    pixels = [np.asarray(one.resize((size, size), Image.Resampling.BICUBIC)) for one in pictures]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    """Train on FOLDER/train/good, and judge on FOLDER/test."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="a category in MVTec AD's layout")
    parser.add_argument("--plus", action="store_true", help="DAAD+: with a discriminator")
    parser.add_argument("--lr", type=float, help="Adam's; 1e-4, or 2e-4 with --plus")
    numbers = {"size": 256, "width": 64, "items": 500, "epochs": 1000, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{default} if not given")
    asked = parser.parse_args()
    smallest = RATE * 2**LEVELS  # a block of the last map is then one pixel
    if asked.size < smallest or asked.size % smallest:
        parser.error(f"--size {asked.size}: give a multiple of {smallest}")
    try:
        learned, good = (load(asked.folder, part, asked.size) for part in ("train", "test"))
        bad = load(asked.folder, "test", asked.size, good=False)
    except OSError as error:  # a broken picture too
        parser.error(str(error))
    torch.manual_seed(asked.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    g = Generator(asked.size, asked.width, asked.items).to(device)
    d = Discriminator(asked.size, asked.width).to(device) if asked.plus else None
    lr = asked.lr or (2e-4 if asked.plus else 1e-4)
    try:
        train(g, d, learned, asked.epochs, lr, asked.seed)
    except FloatingPointError as error:
        parser.error(str(error))
    scores = anomaly_scores(g, d, torch.cat([good, bad]))
    area = auroc(scores[: len(good)], scores[len(good) :])
    print(f"AUROC {area:.3f}: {len(good)} good and {len(bad)} anomalous pictures")


if __name__ == "__main__":
    main()
