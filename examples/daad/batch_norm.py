"""BatchNorm's statistics of trained networks, taken anew over the training pictures."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from daad.batches import Pictures, split_batches
from daad.config import Config
from daad.model import Discriminator, Generator


def recompute_statistics(
    generator: Generator,
    discriminator: Discriminator | None,
    pictures: Pictures,
    config: Config,
    device: torch.device,
) -> None:
    """Make all running means and variances averages over `pictures`, by the weights as they are.

    Training leaves exponential averages over its last few batches, each taken with the weights of
    its own step. The pictures come once, unflipped, in an order drawn from the seed; the
    discriminator sees them and their reconstructions in turn, as in training.
    """
    smallest = config.image_size // 2**config.levels
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(config.seed))
    batches = split_batches(order, config.batch_size, smallest)

    def inputs() -> Iterator[Tensor]:
        for indices in batches:
            yield pictures.batch(indices, device)

    def real_and_rebuilt() -> Iterator[Tensor]:
        for x in inputs():
            yield x
            yield generator(x)

    update_bn(inputs(), generator)
    if discriminator is not None:
        was_training = generator.training
        generator.eval()
        update_bn(real_and_rebuilt(), discriminator)
        generator.train(was_training)
