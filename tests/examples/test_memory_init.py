"""Items that begin as blocks of the maps they will be asked about."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_runs import FakePictures, assert_same, config

from blockmem import divide
from daad.checkpoint import CHECKPOINT, load_checkpoint
from daad.memory_init import fill_memories
from daad.model import Generator
from daad.training import train

CPU = torch.device("cpu")


def filled(pictures: FakePictures, **choices: object) -> tuple[Generator, list[Tensor]]:
    """A network with filled memories, and all blocks that each of its memories was then shown."""
    c = config(memory_init="blocks", **choices)
    torch.manual_seed(1)
    generator = Generator(c)
    seen: list[list[Tensor]] = [[] for _ in generator.memories]
    hooks = [
        memory.register_forward_pre_hook(
            lambda one, given, index=index: seen[index].append(
                divide(given[0], one.block_shape).flatten(0, 1)
            )
        )
        for index, memory in enumerate(generator.memories)
    ]
    fill_memories(generator, pictures, c, CPU)
    for hook in hooks:
        hook.remove()
    return generator, [torch.cat(blocks) for blocks in seen]


@pytest.mark.parametrize("choices", [{}, {"variant": "memae-skip", "division": "pixel"}], ids=str)
def test_every_item_is_a_block_and_none_is_taken_twice(choices: dict[str, object]) -> None:
    generator, seen = filled(FakePictures(), **choices)
    for memory, blocks in zip(generator.memories, seen, strict=True):
        equal = (memory.memory[:, None] == blocks[None]).all(-1)
        assert equal.any(1).all()
        places = equal.int().argmax(1)
        assert len(places.unique()) == len(memory.memory)


def test_pictures_are_looked_at_until_all_items_are_filled() -> None:
    """One block a picture, and two of a batch, so that five items need three batches."""
    pictures = FakePictures(12)
    generator, seen = filled(pictures, division=(1, 1, 1))
    assert [len(batch) for batch in pictures.asked] == [4, 4, 4]
    for memory, blocks in zip(generator.memories, seen, strict=True):
        assert (memory.memory[:, None] == blocks[None]).all(-1).any(1).all()


def test_items_that_there_are_no_blocks_for_stay_random() -> None:
    generator, seen = filled(FakePictures(3), division=(1, 1, 1), num_items=7)
    for memory, blocks in zip(generator.memories, seen, strict=True):
        found = (memory.memory[:, None] == blocks[None]).all(-1).any(1)
        assert found.tolist() == [True] * 3 + [False] * 4
        assert memory.memory[3:].abs().max() <= memory.memory.shape[1] ** -0.5


def test_training_begins_with_them_and_a_resumed_one_does_not_again(tmp_path: Path) -> None:
    for name, stops in {"whole": [2], "resumed": [1, 2]}.items():
        for epochs in stops:
            c = config(memory_init="blocks", epochs=epochs)
            train(c, FakePictures(), tmp_path / name, device="cpu", resume=epochs != stops[0])
    train(config(epochs=2), FakePictures(), tmp_path / "plain", device="cpu")
    whole, resumed, plain = (
        load_checkpoint(tmp_path / name / CHECKPOINT)["generator"]
        for name in ("whole", "resumed", "plain")
    )
    assert_same(whole, resumed)
    # Two epochs move an item by some thousandths; a block is as long as a query.
    key = "memories.0.memory"
    assert whole[key].norm(dim=1).mean() > 5 * plain[key].norm(dim=1).mean()
