"""The networks of Tables 7 and 8, the losses of Eq. 4 to 6, and both networks as a checkpoint has them."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from blockmem import BlockwiseMemory
from daad.config import Config, known
from daad.io import UserError, load_checkpoint
from daad.pictures import Pictures, split_batches

CHECKPOINT = "checkpoint.ckpt"


def conv_bn_relu(channels: int, out_channels: int) -> nn.Sequential:
    """Make a 3x3 convolution, BatchNorm and ReLU: `(B, C, H, W)` to `(B, C', H, W)`.

    The convolution has no bias, since BatchNorm would take it out again.
    """
    convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


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
        self.skip = config.skip
        levels = range(1, config.levels + 1)
        widths = [config.level_shape(level)[0] for level in levels]
        self.encoder, self.memories, self.decoder = (nn.ModuleList() for _ in range(3))
        for below, width in zip([3, *widths], widths, strict=False):
            first, second = conv_bn_relu(below, width), conv_bn_relu(width, width)
            self.encoder.append(nn.Sequential(first, second, nn.MaxPool2d(2)))
        for level in levels:
            has_memory = config.has_memory(level)
            self.memories.append(_memory(config, level) if has_memory else nn.Identity())
        # Listed from level 1, like the encoder, and run from the last level up.
        for width, above in zip(widths, [*widths[1:], None], strict=True):
            joined = width if above is None else above + self.skip * width
            first, second = conv_bn_relu(joined, 2 * width), conv_bn_relu(2 * width, 2 * width)
            up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
            self.decoder.append(nn.Sequential(first, second, up))
        first, second = (conv_bn_relu(config.width, config.width) for _ in range(2))
        self.head = nn.Sequential(first, second, nn.Conv2d(config.width, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        x = self.decoder[-1](self.memories[-1](maps[-1]))
        for level in reversed(range(len(maps) - 1)):
            if self.skip:
                x = torch.cat([x, self.memories[level](maps[level])], dim=1)
            x = self.decoder[level](x)
        return self.head(x)


def _memory(config: Config, level: int) -> BlockwiseMemory:
    memory = BlockwiseMemory(
        num_items=known(config.num_items),
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

    `(B, 3, S, S)` to logits `(B,)` and features `(B, F)`; the losses take logits, so there is no
    sigmoid. Table 8 is for 256x256, where six stages lead to a 4x4 map and the classifier to one
    number. For other sizes as many stages lead to a map 4 to 7 wide; where that leaves the classifier
    several positions, the logit is their average. F is 100 times these positions, or with
    `config.feature == "extractor"` the size of the feature extractor's flattened output.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.feature = config.feature
        size, channels, width = config.image_size, 3, config.width
        self.extractor = nn.Sequential()
        while size >= 8:
            first = not len(
                self.extractor
            )  # BatchNorm would take a bias out, and the first has none
            self.extractor.append(nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=first))
            if not first:
                self.extractor.append(nn.BatchNorm2d(width))
            self.extractor.append(nn.LeakyReLU(0.2, inplace=True))
            size, channels, width = size // 2, width, 2 * width
        self.classifier = nn.Conv2d(channels, 100, 4)
        # A 3x3 kernel needs padding here: at 256x256 its input is 1x1.
        self.decision = nn.Conv2d(100, 1, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        extracted = self.extractor(x)
        classified = self.classifier(extracted)
        logits = self.decision(classified).flatten(1).mean(1)
        feature = classified if self.feature == "classifier" else extracted
        return logits, feature.flatten(1)


class Networks(NamedTuple):
    """A generator, and the discriminator that was trained beside it, if one was."""

    generator: Generator
    discriminator: Discriminator | None

    @classmethod
    def build(cls, config: Config) -> "Networks":
        """Make new networks by PyTorch's random numbers; `config` must be resolved."""
        generator = Generator(config)
        return cls(generator, Discriminator(config) if config.discriminator else None)

    @property
    def modules(self) -> list[nn.Module]:
        """The networks that there are."""
        return [module for module in self if module is not None]

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return next((p.device for p in self.generator.parameters()), torch.device("cpu"))

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        """Put the weights of a checkpoint's `state` into the networks; UserError if they do not fit."""
        try:
            self.generator.load_state_dict(state["generator"])
            if self.discriminator is not None:
                self.discriminator.load_state_dict(state["discriminator"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise _misfit(path) from error


def _misfit(path: Path) -> UserError:
    return UserError(
        f"{path}: its weights do not fit its own configuration; "
        f"it was written by another version, so train again into a new folder"
    )


def _require_shapes(path: Path, config: Config, state: dict[str, Any]) -> None:
    """Raise UserError where weights have other shapes than `config` says, before memory is taken."""
    try:
        with torch.device("meta"):
            networks = Networks.build(config)
        for name in ("generator", "discriminator"):
            module = getattr(networks, name)
            wanted = {} if module is None else module.state_dict()
            stored = {} if module is None else state[name]
            shapes = [{key: value.shape for key, value in one.items()} for one in (wanted, stored)]
            if shapes[0] != shapes[1]:
                raise ValueError(name)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _misfit(path) from error


def load_networks(
    run: Path, device: str | torch.device = "cpu"
) -> tuple[Config, Networks, dict[str, Any]]:
    """Read the configuration, networks (on `device`, in eval mode) and checkpoint of the run `run`."""
    path = run / CHECKPOINT
    state = load_checkpoint(path)
    try:
        config = Config.from_dict(state["config"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    _require_shapes(path, config, state)
    networks = Networks.build(config)
    networks.restore(path, state)
    for network in networks.modules:
        network.to(device).eval()
    return config, networks, state


def recompute_statistics(networks: Networks, pictures: Pictures, config: Config) -> None:
    """Make all of BatchNorm's means and variances averages over `pictures`, by the weights as they are.

    Training leaves exponential averages over its last few batches, each taken with the weights of
    its own step. The pictures come once, unflipped, in an order drawn from the seed; the
    discriminator sees them and their reconstructions in turn, as in training.
    """
    generator, discriminator = networks
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(config.seed))
    batches = split_batches(order, config.batch_size, config.smallest)
    update_bn((pictures.batch(indices, networks.device) for indices in batches), generator)
    if discriminator is not None:
        was_training = generator.training
        generator.eval()
        inputs = (pictures.batch(indices, networks.device) for indices in batches)
        update_bn((shown for x in inputs for shown in (x, generator(x))), discriminator)
        generator.train(was_training)


# The losses


def distances(x: Tensor, x_hat: Tensor, distance: str) -> Tensor:
    """Measure how far each sample of `x_hat` lies from that of `x`: two `(B, ...)` to `(B,)`.

    "squared" is the mean of squared differences, "l2" their Euclidean norm: two readings of Eq. 4
    and 6. The result has float32 at least, whatever precision the network ran in.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    difference = (x.to(dtype) - x_hat.to(dtype)).flatten(1)
    if distance == "l2":
        return torch.linalg.vector_norm(difference, dim=1)
    return difference.square().mean(1)


def reconstruction_loss(x: Tensor, x_hat: Tensor, distance: str) -> Tensor:
    """Average the distances between pictures `(B, C, H, W)` and reconstructions (Eq. 4)."""
    return distances(x, x_hat, distance).mean()


def alignment_loss(feature: Tensor, feature_hat: Tensor, distance: str) -> Tensor:
    """Average the distances between f_D(x) and f_D(x_hat), each `(B, F)` (Eq. 6)."""
    return distances(feature, feature_hat, distance).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Compute -E[log D(x)] - E[log(1 - D(x_hat))], Eq. 5 negated for D, from logits `(B,)`."""
    return functional.softplus(-real_logits.float()).mean() + _minus_log_fake(fake_logits)


def generator_adversarial_loss(fake_logits: Tensor, form: str) -> Tensor:
    """Compute what G minimises of Eq. 5, from D's logits `(B,)` on the reconstructions.

    `"minimax"` is Eq. 5 to the letter, E[log(1 - D(x_hat))]; its gradient vanishes where D is
    sure. `"non-saturating"` is -E[log D(x_hat)], with the same fixed point.
    """
    if form == "minimax":
        return -_minus_log_fake(fake_logits)
    return functional.softplus(-fake_logits.float()).mean()


def _minus_log_fake(logits: Tensor) -> Tensor:
    # 1 - sigmoid(z) is sigmoid(-z), and -log sigmoid(-z) is softplus(z), which never overflows.
    return functional.softplus(logits.float()).mean()
