"""What the battery does not reach: chunks, recomputing, shares, maps beyond their allocation."""

import math

import pytest
import torch
from torch.testing import assert_close

from blockmem.addressing import Addressing
from tests.helpers.layers import INTERPRETED, clear_threshold, reference_gradients

GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(
    not (INTERPRETED or GPU), reason="runs in the interpreter's process, or on a GPU"
)
DEVICE = "cuda" if GPU else "cpu"
if INTERPRETED or GPU:
    from blockmem.backends import common
    from blockmem.backends.torch import chunks
    from blockmem.backends.triton import launch, launch_large, launch_small, tiles


@pytest.fixture(autouse=True)
def no_plans():
    """Plans depend on what these tests change."""
    plans = launch_large.plan_for, launch_small.plan_forward, launch_small.plan_backward
    for plan in plans:
        plan.cache_clear()
    yield
    for plan in plans:
        plan.cache_clear()


def check(shape, block, items, renormalize=False, save=True):
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    memory = torch.randn(items, math.prod(block), generator=generator)
    addressing = Addressing(0.3, clear_threshold(x, memory, block, 0.3), renormalize)
    expected = reference_gradients(x, memory, grad, block, addressing)
    x, grad, memory = (t.to(DEVICE) for t in (x, grad, memory))
    out, saved = launch.forward(x, memory, block, addressing, save=save)
    grads = launch.backward(grad, x, memory, saved, block, addressing, (True, True))
    for found, truth in zip((out, *grads), expected, strict=True):
        assert_close(found.cpu().double(), truth, rtol=0, atol=2e-6 * truth.abs().max().item())
    return saved


CHUNKS = {  # of 300 blocks: along the batch, along one axis of space, and of each block
    "maps": ((3, 4, 20, 20), (4, 2, 2)),
    "rows of blocks": ((1, 4, 40, 30), (4, 2, 2)),
    "channel groups": ((2, 20, 10, 12), (2, 2, 4)),
    "1-d": ((3, 6, 300), (6, 3)),
    "3-d": ((1, 4, 10, 24, 10), (4, 2, 2, 2)),
}


@pytest.mark.parametrize(("least", "renormalize"), [(30, True), (210, False)])
@pytest.mark.parametrize("case", CHUNKS)
def test_large_blocks_in_chunks(case, least, renormalize, monkeypatch):
    """Each adds to the gradient of the items."""
    monkeypatch.setattr(launch_large, "TABLE", 1)
    monkeypatch.setattr(launch_large, "LEAST_BLOCKS", least)
    monkeypatch.setattr(launch_large, "PROGRAMS", 20)
    monkeypatch.setattr(launch, "largest_small", lambda dtype: 0)
    saved = check(*CHUNKS[case], 40, renormalize)
    size = math.prod(CHUNKS[case][1])
    assert saved.numel() == launch.saved_size(300, 40, size, torch.float32)


def test_large_blocks_whose_logits_are_not_kept(monkeypatch):
    monkeypatch.setattr(launch_large, "TABLE", 1)
    monkeypatch.setattr(launch, "largest_small", lambda dtype: 0)
    monkeypatch.setattr(common, "CHUNK_WEIGHTS", 0)
    assert check((2, 4, 20, 20), (4, 2, 2), 40).numel() == 200  # norms


def test_rows_that_lie_in_the_map_are_not_copied(monkeypatch):
    monkeypatch.setattr(launch, "largest_small", lambda dtype: 0)
    x = torch.randn(2, 32, 6, 5, device=DEVICE).to(memory_format=torch.channels_last)
    memory, addressing = torch.randn(20, 32, device=DEVICE), Addressing(1.0, 0.0, False)
    expected, _ = launch.forward(x.contiguous(), memory, (32, 1, 1), addressing)
    monkeypatch.setattr(launch_large, "_copying", None)
    before = x.clone()
    found, _ = launch.forward(x, memory, (32, 1, 1), addressing)
    assert_close(found, expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("processors", [1, 16, 1000])
def test_items_in_shares(processors, monkeypatch):
    monkeypatch.setattr(tiles, "processors", lambda device: processors)
    check((2, 16, 12, 12), (16, 1, 1), 70)


def test_logits_are_kept_in_float32_and_items_get_their_own_dtype():
    x = torch.randn(1, 8, 32, 32, device=DEVICE).half()
    memory = torch.randn(24, 8 * 256, device=DEVICE).half()
    addressing = Addressing(1.0, 1 / 24, False)
    out, saved = launch.forward(x, memory, (8, 16, 16), addressing, save=True)
    grads = launch.backward(out, x, memory, saved, (8, 16, 16), addressing, (True, True))
    assert saved.dtype == torch.float32
    assert {out.dtype, *(grad.dtype for grad in grads)} == {torch.float16}


@pytest.mark.parametrize("settings", [("highest", "high"), ("high", "highest")])
def test_the_precision_may_change_before_the_backward(settings, monkeypatch):
    """It decides how products are made, and not what is saved for the backward."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(1, 128, 4, 4, generator=generator) for _ in range(2))
    memory = torch.randn(20, 128, generator=generator)
    addressing = Addressing(0.3, clear_threshold(x, memory, (128, 1, 1), 0.3), False)
    expected = reference_gradients(x, memory, grad, (128, 1, 1), addressing)[1:]
    x, grad, memory = (t.to(DEVICE) for t in (x, grad, memory))
    before, after = settings
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: before)
    _, saved = launch.forward(x, memory, (128, 1, 1), addressing, save=True)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: after)
    grads = launch.backward(grad, x, memory, saved, (128, 1, 1), addressing, (True, True))
    for found, truth in zip(grads, expected, strict=True):
        assert_close(found.cpu().double(), truth, rtol=0, atol=5e-3 * truth.abs().max().item())


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("block", [(4, 1, 1), (4, 12, 12)])
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_what_is_not_needed_is_not_given(needs, block, batch):
    x = torch.randn(batch, 4, 12, 12, device=DEVICE)
    memory = torch.randn(9, math.prod(block), device=DEVICE)
    addressing = Addressing(1.0, 1 / 9, False)
    _, saved = launch.forward(x, memory, block, addressing, save=True)
    grads = launch.backward(x, x, memory, saved, block, addressing, needs)
    assert tuple(grad is not None for grad in grads) == needs


def test_small_gradients_survive_float16():
    """Weights and gradients of logits are multiplied in float32: in float16 these would be 0."""
    generator = torch.Generator().manual_seed(0)
    x = (100 * torch.randn(1, 64, 8, 8, generator=generator)).half().to(DEVICE)
    memory = (100 * torch.randn(300, 64 * 16, generator=generator)).half().to(DEVICE)
    grad = torch.full_like(x, 2e-4)
    addressing = Addressing(1.0, 0.0, False)
    _, saved = launch.forward(x, memory, (64, 4, 4), addressing, save=True)
    found = launch.backward(grad, x, memory, saved, (64, 4, 4), addressing, (True, True))[1]
    expected = reference_gradients(x, memory, grad, (64, 4, 4), addressing)[2]
    assert_close(found.cpu().double(), expected, rtol=2e-2, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no CUDA device")
def test_maps_beyond_two_to_the_31():
    """Offsets are 64 bits wide: blocks at the end of a map of 2^31 numbers and more."""
    addressing = Addressing(1.0, 1 / 16, False)
    x = torch.zeros(2**15 + 1, 64, 32, 32, device="cuda", dtype=torch.bfloat16)
    x[-1].normal_()
    memory = torch.randn(16, 64, device="cuda", dtype=torch.bfloat16)
    out, _ = launch.forward(x, memory, (64, 1, 1), addressing)
    alone, _ = launch.forward(x[-1:].clone(), memory, (64, 1, 1), addressing)
    assert torch.equal(out[-1:], alone)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_tensors_need_not_be_on_the_current_device():
    x, memory = torch.randn(2, 8, 4, 4, device="cuda:1"), torch.randn(9, 8, device="cuda:1")
    addressing = Addressing(1.0, 1 / 9, False)
    out, _ = launch.forward(x, memory, (8, 1, 1), addressing)
    truth, _ = chunks.forward(x, memory, (8, 1, 1), addressing)
    assert_close(out, truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "precision"), [("highest", "tf32x3"), ("high", "tf32"), ("medium", "tf32")]
)
def test_float32_follows_the_setting_of_pytorch(setting, precision, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: setting)
    assert tiles.precision_of(torch.float32) == precision
    assert tiles.precision_of(torch.bfloat16) == "bf16"
