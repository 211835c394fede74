"""`fill_`: items become blocks of a map, all of them or those that are chosen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from blockmem import BlockwiseMemory, divide, fill_memories, usage
from tests.helpers.filled import items_are_blocks, no_two_equal, seeded, with_value

BLOCK = (2, 2)


@pytest.mark.parametrize("block_shape", [(4, 3), (4, 2, 2), (2, 2, 1, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_items_become_different_blocks_of_the_map(block_shape, dtype):
    layer = BlockwiseMemory(6, block_shape, dtype=dtype)
    x = torch.randn(3, 4, *(6,) * (len(block_shape) - 1))
    assert layer.fill_(x) == 6
    assert layer.memory.dtype == dtype
    assert items_are_blocks(layer.memory, x, block_shape).all()
    assert no_two_equal(layer.memory)


@given(st.data())
def test_filled_items_are_blocks_and_equal_no_other(data):
    """Maps of few values, so that blocks repeat and vanish; memories that hold such blocks already."""
    values = st.integers(-1, 1)
    num_items = data.draw(st.integers(1, 6))
    batch, places = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 4))
    numbers = data.draw(st.lists(values, min_size=batch * places * 4, max_size=batch * places * 4))
    x = torch.tensor(numbers, dtype=torch.float32).view(batch, 2, 2 * places)
    layer = BlockwiseMemory(num_items, BLOCK)
    with torch.no_grad():  # some items are blocks of such a map: each of them once
        for row in data.draw(st.lists(st.integers(0, num_items - 1), unique=True)):
            layer.memory[row] = torch.tensor([1.0, -1, 0, row - 2])
    chosen = data.draw(st.lists(st.integers(0, num_items - 1), unique=True))
    items = torch.tensor(chosen, dtype=torch.int64)
    if data.draw(st.booleans()):
        items = torch.zeros(num_items, dtype=torch.bool).index_fill(0, items, True)
    before = layer.memory.detach().clone()

    count = layer.fill_(x, items=items, generator=seeded())

    after = layer.memory.detach()
    stays = torch.ones(num_items, dtype=torch.bool)
    stays[chosen] = False
    assert torch.equal(after[stays], before[stays])
    assert no_two_equal(after)
    assert (after != 0).any(1).all()
    changed = (after != before).any(1)
    assert int(changed.sum()) <= count
    assert items_are_blocks(after[changed], x, BLOCK).all()
    # As many as there are: different blocks, not zero, that no item has which stays
    kept = {tuple(row) for row in before[stays].tolist()}
    different = {tuple(block) for block in divide(x, BLOCK).flatten(0, 1).tolist()}
    different = {block for block in different if any(block)} - kept
    assert count == min(len(chosen), len(different))


def test_equal_blocks_fill_one_item_and_zeros_none():
    layer = BlockwiseMemory(5, (3, 2, 2))
    before = layer.memory.detach().clone()
    assert layer.fill_(torch.zeros(2, 3, 4, 4)) == 0
    assert torch.equal(layer.memory, before)
    assert layer.fill_(torch.full((2, 3, 4, 4), 7.0)) == 1
    assert (layer.memory == 7).all(1).sum() == 1
    assert layer.fill_(torch.full((2, 3, 4, 4), 7.0)) == 1  # takes the place of its equal
    assert (layer.memory == 7).all(1).sum() == 1
    assert layer.fill_(torch.full((2, 3, 4, 4), 7.0), items=torch.tensor([3, 4])) == 0


def test_blocks_that_only_the_memorys_dtype_makes_equal_are_taken_once():
    layer = BlockwiseMemory(3, (1, 2), dtype=torch.bfloat16)
    x = torch.tensor([1.0, 1.0, 1.0, 1.0001, 3.0, 4.0]).view(1, 1, 6)
    assert layer.fill_(x) == 2
    assert no_two_equal(layer.memory[:2])


def test_of_equal_items_those_are_refilled_first():
    layer = BlockwiseMemory(6, (1, 2))
    nn.init.ones_(layer.memory[3:].data)
    x = torch.tensor([5.0, 6.0, 7.0, 8.0]).view(1, 1, 4)
    assert layer.fill_(x) == 2
    assert no_two_equal(layer.memory)


def test_dead_items_are_revived_and_the_others_stay():
    layer = BlockwiseMemory(8, (4, 2, 2))
    x = torch.randn(2, 4, 8, 8)
    layer.fill_(x)
    before = layer.memory.detach().clone()
    dead = torch.tensor([False, True] * 4)
    assert layer.fill_(x, items=dead, generator=seeded(3)) == 4
    assert torch.equal(layer.memory[~dead], before[~dead])
    assert no_two_equal(layer.memory)
    assert items_are_blocks(layer.memory, x, (4, 2, 2)).all()


def test_items_that_nothing_uses_are_found_and_answer_once_they_are_refilled():
    """Items opposite to all blocks are in no answer; a training would not bring them back."""
    torch.manual_seed(0)
    layer = BlockwiseMemory(16, (4, 2, 2), temperature=0.05, renormalize=True)
    optimizer = torch.optim.Adam(layer.parameters())
    x = 1 + 0.5 * torch.randn(8, 4, 8, 8)
    layer.fill_(x)
    with torch.no_grad():
        layer.memory[10:].neg_()
    for _ in range(5):
        optimizer.zero_grad()
        (layer(x) - x).square().mean().backward()
        optimizer.step()
    dead = usage(layer.address(x)).never_used
    assert dead.nonzero().flatten().tolist() == [*range(10, 16)]

    assert layer.fill_(x, items=dead) == 6
    assert not usage(layer.address(x)).never_used.any()
    (layer(x) - x).square().mean().backward()
    assert (layer.memory.grad[dead] != 0).any(1).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_gpu_with_a_generator_on_either_device(dtype, device):
    layer = BlockwiseMemory(12, (4, 2, 2), device="cuda", dtype=dtype)
    x = torch.randn(3, 4, 8, 8, device="cuda", dtype=dtype)
    x[1] = x[0]
    items = torch.arange(12) % 2 == 0  # on the CPU, as usage gives them
    assert layer.fill_(x, generator=torch.Generator(device)) == 12
    assert layer.fill_(x, items=items, generator=torch.Generator(device)) == 6
    model = nn.Sequential(nn.Identity(), layer)
    assert fill_memories(model, x, x, generator=torch.Generator(device)) == {"1": 12}
    assert layer.memory.device.type == "cuda"
    assert items_are_blocks(layer.memory, x, (4, 2, 2)).all()
    assert no_two_equal(layer.memory)


def test_items_that_are_not_finite_can_be_refilled():
    layer = BlockwiseMemory(4, (4, 2, 2))
    with torch.no_grad():
        layer.memory[1] = torch.nan
        layer.memory[2, 3] = -torch.inf
    spoiled = ~layer.memory.isfinite().all(1)
    assert layer.fill_(torch.randn(1, 4, 8, 8), items=spoiled) == 2
    assert layer.memory.isfinite().all()


def test_items_that_are_not_finite_and_stay_do_not_hide_repeats():
    layer = BlockwiseMemory(8, (1, 2))
    nn.init.constant_(layer.memory[4:].data, torch.nan)
    for seed in range(20):
        order = torch.randperm(40, generator=seeded(seed)) % 4
        x = torch.stack([order.float(), order + 1.0], 1).view(1, 1, 80)
        assert layer.fill_(x, items=torch.arange(4), generator=seeded(seed)) == 4
        assert no_two_equal(layer.memory[:4])


def test_no_items_are_none():
    layer = BlockwiseMemory(4, (4, 2, 2))
    before = layer.memory.detach().clone()
    x = torch.randn(1, 4, 8, 8)
    for items in (torch.zeros(4, dtype=torch.bool), torch.tensor([], dtype=torch.int64), []):
        assert layer.fill_(x, items=items) == 0
    assert layer.fill_(x[:0]) == 0
    assert torch.equal(layer.memory, before)


def test_the_draw_is_the_generators():
    x = torch.randn(2, 4, 8, 8)
    memories = []
    for seed in (1, 1, 2):
        layer = BlockwiseMemory(5, (4, 2, 2))
        layer.fill_(x, generator=seeded(seed))
        memories.append(layer.memory)
    assert torch.equal(memories[0], memories[1])
    assert not torch.equal(memories[0], memories[2])
    state = torch.get_rng_state()
    layer.fill_(x, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    layer.fill_(x)
    first = layer.memory.detach().clone()
    torch.manual_seed(5)
    layer.fill_(x)
    assert torch.equal(layer.memory, first)


def test_every_block_can_be_drawn():
    x = torch.randn(1, 4, 4, 4)
    drawn = set()
    for seed in range(40):
        layer = BlockwiseMemory(1, (4, 2, 2))
        layer.fill_(x, generator=seeded(seed))
        drawn.add(layer.memory[0, 0].item())
    assert len(drawn) == 4


def test_no_gradient_and_the_parameter_is_the_same():
    layer = BlockwiseMemory(4, (4, 2, 2))
    parameter, x = layer.memory, torch.randn(1, 4, 8, 8, requires_grad=True)
    layer.fill_(x)
    assert layer.memory is parameter
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert parameter.grad is None
    layer.requires_grad_(False)
    assert layer.fill_(x) == 4
    assert not parameter.requires_grad


def test_between_forward_and_backward_is_refused_by_autograd():
    layer = BlockwiseMemory(4, (4, 2, 2))
    x = torch.randn(1, 4, 8, 8)
    out = layer(x)
    layer.fill_(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_maps_of_inference_mode_will_do():
    layer = BlockwiseMemory(4, (4, 2, 2))
    with torch.inference_mode():
        x = torch.randn(1, 4, 8, 8)
        assert layer.fill_(x) == 4
    assert layer.fill_(x) == 4
    layer(x.clone()).sum().backward()
    assert layer.memory.grad is not None


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_any_strides(memory_format):
    layer = BlockwiseMemory(4, (4, 2, 2))
    x = torch.randn(1, 4, 8, 8).to(memory_format=memory_format)
    assert layer.fill_(x) == 4
    assert items_are_blocks(layer.memory, x, (4, 2, 2)).all()


@pytest.mark.parametrize(
    ("x", "items", "error", "text"),
    [
        (torch.randn(1, 4, 7, 8), None, ValueError, "height 7 of the map"),
        (torch.randn(4, 8, 8), None, ValueError, "do not go together"),
        (torch.ones(1, 4, 8, 8, dtype=torch.int64), None, TypeError, "x is torch.int64: expected"),
        ([1.0], None, TypeError, "x is list: expected a map"),
        (with_value(torch.randn(1, 4, 8, 8), torch.nan), None, ValueError, "in 1 of 16 blocks"),
        (with_value(torch.randn(1, 4, 8, 8), torch.inf), None, ValueError, "NaN or infinity"),
        (torch.randn(1, 4, 8, 8, device="meta"), None, ValueError, "on the meta device"),
        (torch.randn(1, 4, 8, 8), torch.ones(5).bool(), ValueError, r"a boolean mask \(4,\)"),
        (torch.randn(1, 4, 8, 8), torch.ones(4), ValueError, "shape .4,. and torch.float32"),
        (torch.randn(1, 4, 8, 8), torch.tensor(2), ValueError, r"indices \(K,\)"),
        (torch.randn(1, 4, 8, 8), torch.tensor([[1]]), ValueError, r"indices \(K,\)"),
        (torch.randn(1, 4, 8, 8), torch.tensor([0, 4]), ValueError, "0 to 4: expected .* 0 to 3"),
        (torch.randn(1, 4, 8, 8), torch.tensor([-1]), ValueError, "-1 to -1: expected"),
        (torch.randn(1, 4, 8, 8), torch.tensor([1, 1]), ValueError, "an index is there twice"),
    ],
)
def test_what_cannot_fill_is_refused_and_nothing_filled(x, items, error, text):
    layer = BlockwiseMemory(4, (4, 2, 2))
    before = layer.memory.detach().clone()
    with pytest.raises(error, match=text):
        layer.fill_(x, items=items)
    assert torch.equal(layer.memory, before)


def test_numbers_too_large_for_the_memorys_dtype_are_refused():
    layer = BlockwiseMemory(4, (4, 2, 2), dtype=torch.float16)
    with pytest.raises(ValueError, match=r"x is torch.float32, memory torch.float16"):
        layer.fill_(with_value(torch.randn(1, 4, 8, 8), 1e6))


def test_memories_that_cannot_be_written_are_refused():
    x = torch.randn(1, 4, 8, 8)
    with pytest.raises(ValueError, match="on the meta device and holds nothing: call to_empty"):
        BlockwiseMemory(4, (4, 2, 2), device="meta").fill_(x)
    layer = BlockwiseMemory(4, (4, 2, 2))
    nn.utils.parametrizations.weight_norm(layer, "memory")
    with pytest.raises(ValueError, match="not the layer's own parameter"):
        layer.fill_(x)


def test_vmap_is_refused():
    layer = BlockwiseMemory(4, (4, 2, 2))
    before = layer.memory.detach().clone()
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda x: torch.tensor(layer.fill_(x)))(torch.randn(2, 1, 4, 8, 8))
    assert torch.equal(layer.memory, before)
