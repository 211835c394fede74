"""What the tests of scores share: pictures and networks whose numbers can be worked out by hand."""

import torch
from torch import Tensor, nn


class TensorPictures:
    """Pictures that are already tensors."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        return self.x[indices].to(device)


class Halve(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


class MeanFeature(nn.Module):
    """A discriminator whose feature is the mean of each channel."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1).sum(1), x.mean(dim=(2, 3))
