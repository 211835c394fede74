"""The PyTorch backend's promises: chunks change nothing, no more than a chunk is held, and what is
saved for the backward is no more than the map."""

import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from blockmem import blockwise_memory
from blockmem.addressing import Addressing
from blockmem.backends import common
from blockmem.backends.torch import blocks, chunks
from blockmem.division import grid_views
from tests.helpers.layers import gradients


class Largest(TorchDispatchMode):
    """The most numbers of any tensor that is made, views left out."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {arg.data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in known:
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize(
    ("module", "name"), [(common, "CHUNK_WEIGHTS"), (blocks, "CHUNK_ELEMENTS")]
)
@pytest.mark.parametrize("size", [1, 37, 500])
@pytest.mark.parametrize("items", [11, 16])  # saved logits, and logits computed again
@pytest.mark.parametrize("renormalize", [False, True])
def test_the_chunk_changes_nothing(renormalize, items, size, module, name, monkeypatch):
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    x, memory = torch.randn(2, 6, 6, 4).double(), torch.randn(items, 12).double()
    expected = gradients(x, memory, (3, 2, 2), renormalize=renormalize)
    monkeypatch.setattr(module, name, size)
    found = gradients(x, memory, (3, 2, 2), renormalize=renormalize)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_no_more_than_a_chunk_of_weights_is_ever_held(monkeypatch):
    """No tensor made on the way has more numbers than two chunks, the memory or the map.

    Of the functions themselves: inside an operator no tensor would be seen.
    """
    x, memory = torch.randn(1, 8, 32, 32), torch.randn(300, 8)
    addressing, block = Addressing(1.0, 1 / 300, False), (8, 1, 1)

    def most() -> int:
        with Largest() as largest:
            _, saved = chunks.forward(x, memory, block, addressing, save=True)
            chunks.backward(x, x, memory, saved, block, addressing, (True, True))
        return largest.numbers

    assert most() >= 1024 * 300  # in one chunk: all weights
    monkeypatch.setattr(common, "CHUNK_WEIGHTS", 2048)
    monkeypatch.setattr(chunks, "MOST_SAVED", 2048)
    assert most() == x.numel()  # 8192


def test_the_backward_is_given_no_zeros_for_what_is_kept():
    """Autograd would make them, as large as the logits: of 64 items, eight times the map."""
    x = torch.randn(1, 8, 32, 32, requires_grad=True)
    memory = torch.randn(64, 8, requires_grad=True)
    out = blockwise_memory(x, memory, (8, 1, 1))
    with Largest() as largest:
        out.backward(torch.ones_like(out))
    assert largest.numbers == x.numel()


def test_only_what_is_kept_has_no_gradient():
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    memory = torch.randn(8, 8, requires_grad=True)
    saved = torch.ops.blockmem.blockwise_memory(
        x, memory, (8, 1, 1), 1.0, 0.1, False, "cosine", "torch", True
    )[1]
    assert saved.numel() == 16 * 8
    assert not saved.requires_grad


def test_no_more_than_a_chunk_of_large_blocks_is_ever_held(monkeypatch):
    monkeypatch.setattr(blocks, "CHUNK_ELEMENTS", 8192)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    x, memory = torch.randn(4, 16, 64, 64), torch.randn(5, 4096)
    grids, lengths = grid_views((16, 16, 16), x, x), []
    with Largest() as largest:
        for _, rows, copies in blocks.copied(grids, memory):
            lengths.append(rows.stop - rows.start)
            assert copies.numel() == 2 * 8192
    assert lengths == [2] * 32
    assert largest.numbers <= x.numel()


@pytest.mark.parametrize(
    ("items", "most", "logits"),
    [
        (8, 0, 8 * 1024),  # N up to D: no more than the map
        (300, 300 * 1024, 300 * 1024),
        (300, 300 * 1024 - 1, 0),  # one product more
    ],
)
def test_what_the_backward_keeps(items, most, logits, monkeypatch):
    monkeypatch.setattr(common, "CHUNK_WEIGHTS", 2048)
    monkeypatch.setattr(chunks, "MOST_SAVED", most)
    x = torch.randn(1, 8, 32, 32, requires_grad=True)
    memory = torch.randn(items, 8, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        blockwise_memory(x, memory, (8, 1, 1))
    assert sorted(t.numel() for t in saved) == sorted([logits, memory.numel(), x.numel()])


@pytest.mark.parametrize("shape", [(2, 6, 16), (2, 6, 8, 16), (1, 4, 4, 8, 16)])
@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("channels_last", [False, True])
def test_blocks_that_are_copied_twice_are_the_same_blocks(shape, rows, channels_last, monkeypatch):
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    x = torch.randn(shape)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    block = (shape[1] // 2, *(2 for _ in shape[2:-1]), 8)
    memory = torch.randn(3, math.prod(block))
    monkeypatch.setattr(blocks, "CHUNK_ELEMENTS", rows * memory.shape[1])

    def copies() -> list[torch.Tensor]:
        return [found.clone() for *_, found in blocks.copied(grid_views(block, x, x), memory)]

    once = copies()
    monkeypatch.setattr(blocks, "FAR", 0)
    twice = copies()
    assert len(once) == len(twice)
    for one, other in zip(once, twice, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(2, 6, 16), (2, 6, 8, 16), (1, 4, 4, 8, 16)])
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_blocks_that_are_turned_over_first_come_to_the_same_places(shape, rows, monkeypatch):
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    block = (shape[1] // 2, *(2 for _ in shape[2:-1]), 8)
    monkeypatch.setattr(blocks, "CHUNK_ELEMENTS", rows * math.prod(block))
    x = torch.randn(shape, requires_grad=True)
    memory = torch.randn(3, math.prod(block), requires_grad=True)
    probe = torch.randn(shape)

    def found() -> list[torch.Tensor]:
        y = blockwise_memory(x, memory, block)
        return [y, *torch.autograd.grad(y, (x, memory), probe)]

    directly = found()
    monkeypatch.setattr(blocks, "FAR", 0)
    for one, other in zip(directly, found(), strict=True):
        assert torch.equal(one, other)


def test_nothing_is_kept_where_no_gradient_is_wanted():
    x, memory = torch.randn(1, 8, 4, 4), torch.randn(8, 8)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            saved = torch.ops.blockmem.blockwise_memory(
                x, memory, (8, 1, 1), 1.0, 0.125, False, "cosine", "torch", False
            )[1]
            assert saved.numel() == 0


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_a_gpu_has_larger_chunks(device, monkeypatch):
    """1/256 of its memory for a table of weights: of 16 GB 64 MB, 16 times a CPU's."""
    module, found = getattr(torch, device), []

    class Properties:
        total_memory = 2**34

    monkeypatch.setattr(module, "get_device_properties", lambda d: found.append(d) or Properties)
    blocks._times.cache_clear()
    assert blocks._times(torch.device(device, 0)) == 16
    assert found == [torch.device(device, 0)]
    assert blocks._times(torch.device("cpu")) == 1
    blocks._times.cache_clear()


def test_a_device_of_many_chunks_takes_them_at_once(monkeypatch):
    monkeypatch.setattr(common, "CHUNK_WEIGHTS", 500)
    x, memory = torch.randn(1, 8, 32, 32), torch.randn(50, 8)
    (view,) = grid_views((8, 1, 1), x)

    def count() -> int:
        return len(list(blocks.copied([view], memory)))

    assert count() > 100
    monkeypatch.setattr(blocks, "_times", lambda device: 1024)
    assert count() == 1


@pytest.mark.parametrize("given", [{"similarity": "dot"}, {"temperature": 1 / 300}], ids=str)
@pytest.mark.parametrize("items", [9, 900])  # fewer than a block has numbers, and more
@pytest.mark.parametrize("threshold", [0.0, None])
@pytest.mark.parametrize("saves", [True, False])
def test_no_denormal_number_is_multiplied(saves, threshold, items, given, monkeypatch):
    """Some CPUs take many times as long for one; the rest of a row decides its result alone."""
    smallest = []

    def seen(multiply):
        def wrapped(*tensors, **named):
            for tensor in tensors:
                sizes = tensor.abs()[tensor != 0]
                smallest.append(sizes.min().item() if len(sizes) else 1.0)
            return multiply(*tensors, **named)

        return wrapped

    monkeypatch.setattr(chunks, "MOST_SAVED", 2**24 if saves else 0)
    x, memory = 8 * torch.randn(1, 64, 9, 4), torch.randn(items, 64)
    expected = gradients(x.double(), memory.double(), (64, 1, 1), threshold=threshold, **given)
    monkeypatch.setattr(chunks, "matmul", seen(chunks.matmul))
    monkeypatch.setattr(chunks, "add_products", seen(chunks.add_products))
    found = gradients(x, memory, (64, 1, 1), threshold=threshold, **given)
    assert len(smallest) >= 10
    assert min(smallest) >= torch.finfo(torch.float32).tiny
    for one, other in zip(found, expected, strict=True):
        assert_close(one.double(), other, rtol=2e-3, atol=2e-3 * other.abs().max().item())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("items", [3, 30])
def test_logits_that_are_not_finite_stay_in_their_row(items, value):
    """A row that has one is NaN, by the softmax; the others are what they are without it."""
    x, memory = torch.randn(1, 8, 5, 1), torch.randn(items, 8)
    expected = blockwise_memory(x, memory, (8, 1, 1), similarity="dot")
    x[0, 0, 2, 0] = value
    found = blockwise_memory(x, memory, (8, 1, 1), similarity="dot")
    rows = torch.arange(5) != 2
    assert found[0, :, ~rows].isnan().all()
    assert torch.equal(found[:, :, rows], expected[:, :, rows])
