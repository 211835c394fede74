"""The networks of Tables 7 and 8: the memory-augmented U-Net and the DCGAN-style discriminator."""

import torch
from torch import Tensor, nn

from blockmem import BlockwiseMemory
from daad.config import Config


class ConvBNReLU(nn.Sequential):
    """3x3 convolution, BatchNorm, ReLU: `(B, C, H, W)` to `(B, C', H, W)`.

    The convolution has no bias, since BatchNorm would take it out again.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Generator(nn.Module):
    """The reconstruction of a picture by way of memorised blocks (Table 7).

    `(B, 3, S, S)` in [-1, 1] to the same shape; the output is a bare 1x1 convolution's and has
    no bound. `config` must be resolved. Each encoder level ends in a max-pool; the memory reads
    that map for the decoder, while the next encoder level goes on from the map itself. The
    decoder starts at the last level's memory and, with `config.skip`, concatenates the others.
    A level that the variant gives no memory hands on its map as it is.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        levels = range(1, config.levels + 1)
        channels = {level: config.level_shape(level)[0] for level in levels}
        self.skip = config.skip
        self.encoder = nn.ModuleList(
            nn.Sequential(
                ConvBNReLU(channels[level - 1] if level > 1 else 3, channels[level]),
                ConvBNReLU(channels[level], channels[level]),
                nn.MaxPool2d(2),
            )
            for level in levels
        )
        self.memories = nn.ModuleList(
            _memory(config, level) if config.has_memory(level) else nn.Identity()
            for level in levels
        )
        # Listed from level 1, like the encoder, and run from the last level up.
        self.decoder = nn.ModuleList()
        for level in levels:
            concatenated = self.skip and level < config.levels
            above = channels[level] if level == config.levels else channels[level + 1]
            self.decoder.append(
                nn.Sequential(
                    ConvBNReLU(above + concatenated * channels[level], 2 * channels[level]),
                    ConvBNReLU(2 * channels[level], 2 * channels[level]),
                    nn.ConvTranspose2d(2 * channels[level], channels[level], 2, stride=2),
                )
            )
        self.head = nn.Sequential(
            ConvBNReLU(config.width, config.width),
            ConvBNReLU(config.width, config.width),
            nn.Conv2d(config.width, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        last = len(maps) - 1
        x = self.memories[last](maps[last])
        for level in range(last, -1, -1):
            if self.skip and level < last:
                x = torch.cat([x, self.memories[level](maps[level])], dim=1)
            x = self.decoder[level](x)
        return self.head(x)


def _memory(config: Config, level: int) -> BlockwiseMemory:
    memory = BlockwiseMemory(
        num_items=config.num_items,
        block_shape=config.block_shape(level),
        temperature=config.temperature,
        threshold=config.threshold,
        renormalize=config.renormalize,
    )
    if config.memory_init == "normal":
        nn.init.normal_(memory.memory, std=memory.memory.shape[1] ** -0.5)
    return memory


class Discriminator(nn.Module):
    """Real or reconstructed, and the feature f_D that Eq. 6 compares (Table 8).

    `(B, 3, S, S)` to logits `(B,)` and features `(B, F)`. There is no sigmoid: the losses take
    logits. Table 8 is for 256x256, where six stages lead to a 4x4 map and the classifier to one
    number. For other sizes there are as many stages as it takes to reach a map 4 to 7 wide; where
    that leaves the classifier several positions, the logit is their average.

    F is 100 times the classifier's positions (one at 256x256), or with
    `config.feature == "extractor"` the size of the feature extractor's flattened output.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.feature = config.feature
        size = config.image_size
        channels, out_channels = 3, config.width
        layers: list[nn.Module] = []
        while size >= 8:
            first = not layers
            # BatchNorm takes a bias out again, so only the first convolution has one.
            layers.append(nn.Conv2d(channels, out_channels, 4, stride=2, padding=1, bias=first))
            if not first:
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels, out_channels = out_channels, 2 * out_channels
            size //= 2
        self.extractor = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(channels, 100, 4)
        # A 3x3 kernel needs padding here: at 256x256 its input is 1x1.
        self.decision = nn.Conv2d(100, 1, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        extracted = self.extractor(x)
        classified = self.classifier(extracted)
        logits = self.decision(classified).flatten(1).mean(1)
        feature = classified if self.feature == "classifier" else extracted
        return logits, feature.flatten(1)
