"""Memories that begin with what they will be asked about: blocks of the network's own maps."""

import math

import torch
from torch import Tensor, nn

from blockmem import BlockwiseMemory, divide
from daad.batches import Pictures, split_batches
from daad.config import Config
from daad.model import Generator

PICTURES = 64  # that blocks are taken from; more where these have too few


def fill_memories(
    generator: Generator, pictures: Pictures, config: Config, device: torch.device
) -> None:
    """Put blocks of the maps of an untrained `generator` in place of the items of its memories.

    An item of deviation 1/sqrt(D) is some fifty times shorter than the queries, whose numbers come
    out of BatchNorm, and beside the decoder's own maps its answers hardly count for a long time.
    Pictures and blocks are drawn from the seed, no block twice. Where there are fewer blocks than
    items, the last ones stay as they are.
    """
    random = torch.Generator().manual_seed(config.seed)
    memories = [one for one in generator.memories if isinstance(one, BlockwiseMemory)]
    filled = dict.fromkeys(memories, 0)
    # Of a batch, so that the items come from many pictures
    share = math.ceil(config.num_items * config.batch_size / min(PICTURES, len(pictures)))

    def take(memory: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(memory, BlockwiseMemory)
        blocks = divide(given[0], memory.block_shape).flatten(0, 1)
        start = filled[memory]
        chosen = torch.randperm(len(blocks), generator=random)
        chosen = chosen[: min(share, config.num_items - start)]
        memory.memory[start : start + len(chosen)] = blocks[chosen.to(blocks.device)]
        filled[memory] = start + len(chosen)

    hooks = [memory.register_forward_pre_hook(take) for memory in memories]
    order = torch.randperm(len(pictures), generator=random)
    with torch.no_grad():
        for indices in split_batches(
            order, config.batch_size, config.image_size // 2**config.levels
        ):
            if all(count == config.num_items for count in filled.values()):
                break
            generator(pictures.batch(indices, device))
    for hook in hooks:
        hook.remove()
