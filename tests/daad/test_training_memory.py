"""Items that begin as blocks of the maps they will be asked about."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from blockmem import divide
from daad.io import load_checkpoint
from daad.machine import start_fabric
from daad.network import CHECKPOINT, Generator
from daad.training import Trainer, train
from tests.helpers.training_runs import FakePictures, assert_same, config


def filled(
    pictures: FakePictures, folder: Path, **choices: object
) -> tuple[Generator, list[Tensor]]:
    """A network with filled memories, and all blocks that each of its memories was then shown."""
    trainer = Trainer(
        config(memory_init="blocks", **choices), start_fabric("cpu", 1, 1, "32"), folder, None
    )
    generator = trainer.networks.generator
    seen: list[list[Tensor]] = [[] for _ in generator.memories]
    hooks = [
        memory.register_forward_pre_hook(
            lambda one, given, index=index: seen[index].append(
                divide(given[0], one.block_shape).flatten(0, 1)
            )
        )
        for index, memory in enumerate(generator.memories)
    ]
    trainer._fill_memories(pictures)
    for hook in hooks:
        hook.remove()
    return generator, [torch.cat(blocks) for blocks in seen]


def places(memory: Tensor, blocks: Tensor) -> Tensor:
    """Where each item that is a block was first shown; as many as there are."""
    equal = (memory[:, None] == blocks[None]).all(-1)
    return equal[equal.any(1)].int().argmax(1)


@pytest.mark.parametrize("choices", [{}, {"variant": "memae-skip", "division": "pixel"}], ids=str)
def test_every_item_is_a_block_and_none_is_taken_twice(
    choices: dict[str, object], tmp_path: Path
) -> None:
    generator, seen = filled(FakePictures(), tmp_path, **choices)
    for memory, blocks in zip(generator.memories, seen, strict=True):
        assert len(places(memory.memory, blocks).unique()) == len(memory.memory)


def test_items_come_from_several_batches(tmp_path: Path) -> None:
    """One block a picture, of six batches of four pictures."""
    pictures = FakePictures(24)
    generator, seen = filled(pictures, tmp_path, division=(1, 1, 1), num_items=12)
    assert [len(batch) for batch in pictures.asked] == [4] * 6
    for memory, blocks in zip(generator.memories, seen, strict=True):
        taken = places(memory.memory, blocks)
        assert len(taken) == 12
        assert len((taken // 4).unique()) >= 4


def test_as_many_pictures_are_looked_at_as_the_items_need(tmp_path: Path) -> None:
    """64 pictures in general, more where one has a single block and there are more items."""
    for num_items, looked_at in ((5, 64), (80, 80)):
        pictures = FakePictures(100)
        filled(pictures, tmp_path, division=(1, 1, 1), num_items=num_items)
        assert sum(len(batch) for batch in pictures.asked) == looked_at


def test_items_that_there_are_no_blocks_for_stay_random(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="3 of 7 items") as warned:
        generator, seen = filled(FakePictures(3), tmp_path, division=(1, 1, 1), num_items=7)
    for level, warning in enumerate(warned):
        assert f"memory 'memories.{level}': 3 of 7 items" in str(warning.message)
    for memory, blocks in zip(generator.memories, seen, strict=True):
        found = (memory.memory[:, None] == blocks[None]).all(-1).any(1)
        assert found.tolist() == [True] * 3 + [False] * 4
        assert memory.memory[3:].abs().max() <= memory.memory.shape[1] ** -0.5


def test_batch_norms_statistics_are_not_touched(tmp_path: Path) -> None:
    generator, _ = filled(FakePictures(), tmp_path)
    for name, buffer in generator.named_buffers():
        expected = torch.ones_like(buffer) if "var" in name else torch.zeros_like(buffer)
        assert torch.equal(buffer, expected), name


def test_a_network_without_memories_has_nothing_to_fill(tmp_path: Path) -> None:
    c = config(memory_init="blocks", variant="ae", epochs=1)
    assert c.fewest_blocks() == 0
    train(c, FakePictures(), tmp_path, device="cpu")


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
