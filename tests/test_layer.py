import math
import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from blockmem import BlockwiseMemory, blockwise_memory, divide


def test_the_layer_is_the_function_on_its_parameter():
    layer = BlockwiseMemory(20, (4, 2, 2), temperature=0.5, threshold=0.02, renormalize=True)
    x = torch.randn(2, 8, 4, 4)
    expected = blockwise_memory(
        x, layer.memory, (4, 2, 2), temperature=0.5, threshold=0.02, renormalize=True
    )
    assert torch.equal(layer(x), expected)
    assert [name for name, _ in layer.named_parameters()] == ["memory"]


def test_memory_starts_uniform_within_one_over_root_d():
    memory = BlockwiseMemory(400, (4, 5, 5)).memory
    assert memory.shape == (400, 100)
    assert 0.099 < memory.abs().max() <= 0.1
    assert memory.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    ("map_shape", "division", "block"),
    [
        ((64, 128, 128), (8, 8, 1), (64, 16, 16)),
        ((512, 16, 32), (4, 16, 2), (256, 4, 2)),
        ((6, 12), (4, 3), (2, 3)),
        ((8, 4, 6, 10), (2, 3, 5, 4), (2, 2, 2, 2)),
    ],
)
def test_from_division_takes_the_papers_order(map_shape, division, block):
    layer = BlockwiseMemory.from_division(map_shape, division, 5, temperature=0.1)
    assert layer.block_shape == block
    assert layer.temperature == 0.1
    x = torch.randn(2, *map_shape)
    assert layer(x).shape == x.shape
    assert layer.address(x).shape == (2, math.prod(division), 5)


@pytest.mark.parametrize(
    ("map_shape", "division", "text"),
    [
        ((64, 100, 128), (8, 8, 1), r"height 100 .* by 8 \(division \(8, 8, 1\)\): .* 5 and 10"),
        ((64, 128, 128), (8, 8, 3), r"channels 64 .* by 3 .* are 2 and 4"),
        ((64, 128, 128), (8, 0, 1), "width 128 .* by 0 "),
        ((64, 4, 4), (8, 8, 1), "height 4 .* by 8 .* are 4 and 4"),
        ((64, 128, 128), (8, 8), "as many rates, space first and channels last"),
        ((64,), (8,), "1, 2 or 3 spatial sizes"),
    ],
)
def test_from_division_names_what_does_not_divide(map_shape, division, text):
    with pytest.raises(ValueError, match=text):
        BlockwiseMemory.from_division(map_shape, division, 5)


def test_items_are_a_view_of_memory_as_blocks():
    layer = BlockwiseMemory(5, (3, 2, 4))
    items = layer.items()
    assert items.shape == (5, 3, 2, 4)
    assert_close(divide(items, (3, 2, 4)).squeeze(1), layer.memory)
    with torch.no_grad():
        items[2, 1, 0, 3] = 7.0
    assert (layer.memory == 7.0).sum() == 1


def test_address_is_what_the_answer_is_read_with():
    layer = BlockwiseMemory(30, (4, 2, 2), temperature=0.3)
    x = torch.randn(2, 8, 4, 6)
    weights = layer.address(x)
    assert weights.shape == (2, 2 * 3 * 2, 30)
    assert ((weights == 0) | (weights >= (1 - 1e-5) / 30)).all()
    assert_close(weights @ layer.memory, divide(layer(x), (4, 2, 2)))


def test_address_under_autocast_stays_float32():
    layer = BlockwiseMemory(30, (4, 2, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.address(torch.randn(1, 4, 4, 4)).dtype == torch.float32


def test_memory_format_is_kept():
    layer = BlockwiseMemory(10, (8, 2, 2))
    x = torch.randn(2, 8, 4, 4)
    assert layer(x).is_contiguous()
    out = layer(x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, layer(x))


def test_device_and_dtype_are_the_memorys():
    layer = BlockwiseMemory(10, (4, 2, 2), dtype=torch.float64, device="cpu")
    assert layer.memory.dtype == torch.float64
    assert layer.to(torch.bfloat16)(torch.randn(1, 4, 4, 4).bfloat16()).dtype == torch.bfloat16


def test_repr_says_what_is_not_default():
    assert (
        repr(BlockwiseMemory(10, (4, 2, 2)))
        == "BlockwiseMemory(num_items=10, block_shape=(4, 2, 2))"
    )
    assert repr(BlockwiseMemory(10, (4, 2), temperature=0.1, renormalize=True)) == (
        "BlockwiseMemory(num_items=10, block_shape=(4, 2), temperature=0.1, renormalize=True)"
    )


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_a_threshold_that_drops_everything_warns(temperature):
    largest = 1 / (1 + 99 * math.exp(-2 / temperature))
    with pytest.warns(
        UserWarning, match="drops every item, always: no weight of 100 items exceeds"
    ):
        BlockwiseMemory(100, (4, 2, 2), temperature=temperature, threshold=largest * 1.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is still one that hardly any item passes
        layer = BlockwiseMemory(100, (4, 1), temperature=temperature, threshold=largest * 0.99)
    best = torch.ones(4)  # one item along it, all others against: the row that reaches it
    with torch.no_grad():
        layer.memory.copy_(-best.expand(100, 4)).select(0, 0).neg_()
    assert layer(best.view(1, 4, 1)).abs().sum() > 0


def test_a_threshold_that_only_several_like_items_could_pass_warns():
    """MemAE's own settings: one item alike, all others orthogonal to it, is dropped."""
    with pytest.warns(UserWarning, match="would need a cosine of 1.61.*below 0.00136"):
        layer = BlockwiseMemory(2000, (16, 1), threshold=0.0025, renormalize=True)
    queries = layer.memory.detach()[:1]
    cosine = 0.0025 * 1999 / (1 - 0.0025)
    assert math.log(cosine) == pytest.approx(1.61, abs=0.005)
    assert (layer.address(queries[..., None]) == 0).all()


def test_a_threshold_that_an_item_passes_does_not_warn():
    for settings in [
        {"threshold": 1 / (1 + 99 * math.exp(-1)) * 0.999},
        {"threshold": 0.5, "temperature": 0.05},
        {"threshold": 0.9, "similarity": "dot"},
        {"threshold": 0.0},
        {"num_items": 1, "threshold": 1.0},
    ]:
        BlockwiseMemory(**({"num_items": 100, "block_shape": (4, 1)} | settings))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_items": 0}, "num_items 0: expected a whole number of at least 1"),
        ({"num_items": 2.5}, "num_items 2.5: expected a whole number"),
        ({"num_items": "8"}, "num_items '8': expected a whole number"),
        ({"block_shape": (4,)}, r"block_shape \(4,\): expected \(c, \*s\)"),
        ({"block_shape": 4}, r"block_shape 4: expected \(c, \*s\)"),
        ({"block_shape": (4, 2.0)}, r"block_shape \(4, 2.0\): expected"),
        ({"similarity": "euclid"}, "similarity 'euclid': expected 'cosine' or 'dot'"),
        ({"temperature": -1.0}, "temperature -1.0: expected a finite number above 0"),
        ({"threshold": -1.0}, "threshold -1.0: expected None"),
        ({"backend": "fast"}, "backend 'fast': expected one of"),
    ],
)
def test_bad_settings_are_named_at_construction(arguments, text):
    with pytest.raises(ValueError, match=text):
        BlockwiseMemory(**({"num_items": 10, "block_shape": (4, 2, 2)} | arguments))


def test_training_moves_the_memory_towards_what_it_is_shown():
    torch.manual_seed(0)
    layer = BlockwiseMemory(8, (4, 2, 2), temperature=0.05)
    patterns = torch.randn(3, 4, 2, 2)
    x = patterns[torch.randint(3, (64,))]
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    first = (layer(x) - x).square().mean().item()
    for _ in range(100):
        optimizer.zero_grad()
        loss = (layer(x) - x).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 20


def test_any_write_to_the_memory_counts_from_then_on():
    """Also one through `.data`, as averages of weights are often kept, in eval and frozen."""
    layer, x = BlockwiseMemory(10, (4, 2, 2)).eval().requires_grad_(False), torch.randn(1, 4, 4, 4)
    for _ in range(3):
        assert torch.equal(layer(x), blockwise_memory(x, layer.memory, layer.block_shape))
        layer.memory.data.mul_(torch.rand(10, 1)).add_(torch.randn(10, 16), alpha=0.5)


def test_whole_numbers_of_numpy_will_do():
    layer = BlockwiseMemory(np.int64(10), tuple(np.array([4, 2, 2])))
    assert {type(n) for n in (layer.num_items, *layer.block_shape)} == {int}
    assert repr(layer) == "BlockwiseMemory(num_items=10, block_shape=(4, 2, 2))"
    assert layer(torch.randn(1, 4, 4, 4)).shape == (1, 4, 4, 4)
