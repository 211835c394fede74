"""`fill_memories`: all memories of a model start with blocks of the maps that reach them."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from blockmem import BlockwiseMemory, fill_memories
from tests.helpers.filled import autoencoder, items_are_blocks, no_two_equal, seeded, with_value


def maps_seen(model: nn.Module, *inputs: Tensor) -> dict[str, list[Tensor]]:
    """What each memory is called with meanwhile, by name, and the counts under 'filled'."""
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, out, name=name: seen.setdefault(name, []).append(args[0].clone())
        )
        for name, module in model.named_modules()
        if isinstance(module, BlockwiseMemory)
    ]
    seen["filled"] = fill_memories(model, *inputs, generator=seeded())
    for hook in hooks:
        hook.remove()
    return seen


def test_every_memory_is_filled_from_the_map_that_reaches_it():
    model = autoencoder()
    x = torch.randn(4, 1, 8, 8)
    seen = maps_seen(model, x)
    assert seen["filled"] == {"2": 20, "4.0": 10}
    first, second = model[2], model[4][0]
    assert items_are_blocks(first.memory, seen["2"][0], (8, 2, 2)).all()
    assert items_are_blocks(second.memory, seen["4.0"][0], (4, 4, 4)).all()
    # The map behind the first comes from its new items
    assert_close(seen["4.0"][0], model[3](first(seen["2"][0])))
    assert no_two_equal(first.memory)
    assert no_two_equal(second.memory)


def test_the_model_stays_as_it_is_but_for_the_memories():
    model = autoencoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    fill_memories(model, torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == ("memory" not in name), name
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


class Counter(nn.Module):
    """Its buffer is another tensor after each call, as some averages are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x


def test_a_buffer_that_is_assigned_anew_is_put_back():
    counter = Counter()
    model = nn.Sequential(counter, BlockwiseMemory(4, (1, 2, 2)))
    buffer = counter.calls
    fill_memories(model, torch.randn(4, 1, 8, 8))
    assert counter.calls is buffer
    assert counter.calls == 0


def test_the_mode_is_the_models():
    """In training BatchNorm takes the batch's own statistics, and the items are as long as queries."""
    x = 5 + 3 * torch.randn(16, 2, 4, 4)
    deviations = []
    for training in (True, False):
        memory = BlockwiseMemory(30, (2, 2, 2))
        model = nn.Sequential(nn.BatchNorm2d(2), memory).train(training)
        fill_memories(model, x, generator=seeded())
        assert model.training == training
        deviations.append(memory.memory.square().mean().sqrt().item())
    assert deviations[0] == pytest.approx(1, rel=0.2)
    assert deviations[1] > 4


def test_several_inputs_share_the_drawing():
    """Whole maps as blocks: four batches of 16, and each gives about a quarter of 24 items."""
    memory = BlockwiseMemory(24, (1, 4, 4))
    batches = [torch.randn(16, 1, 4, 4) for _ in range(4)]
    assert fill_memories(memory, *batches, generator=seeded()) == {"": 24}
    counts = [int(items_are_blocks(memory.memory, batch, (1, 4, 4)).sum()) for batch in batches]
    assert sum(counts) == 24
    assert min(counts) >= 3
    assert no_two_equal(memory.memory)


def test_batches_with_too_few_blocks_each_add_up():
    memory = BlockwiseMemory(10, (1, 4, 4))
    batches = [torch.randn(n, 1, 4, 4) for n in (3, 1, 4, 2)]
    assert fill_memories(memory, *batches) == {"": 10}
    assert items_are_blocks(memory.memory, torch.cat(batches), (1, 4, 4)).all()
    assert no_two_equal(memory.memory)


def test_a_small_last_batch_does_not_leave_items_empty():
    memory = BlockwiseMemory(20, (1, 4, 4))
    batches = [torch.randn(n, 1, 4, 4) for n in (25, 2)]
    assert fill_memories(memory, *batches) == {"": 20}
    assert items_are_blocks(memory.memory, torch.cat(batches), (1, 4, 4)).all()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = BlockwiseMemory(6, (1, 2, 2))

    def forward(self, x: Tensor, scale: Tensor, shift: float = 0.0) -> Tensor:
        return self.memory(x=x * scale + shift)


@pytest.mark.parametrize(
    "batch",
    [
        (torch.ones(2, 1, 4, 4), torch.randn(2, 1, 4, 4)),
        {"x": torch.ones(2, 1, 4, 4), "scale": torch.randn(2, 1, 4, 4), "shift": 1.0},
    ],
    ids=["tuple", "dict"],
)
def test_a_batch_is_the_arguments_of_the_model(batch):
    assert fill_memories(TwoInputs(), batch) == {"memory": 6}


def test_too_few_blocks_is_a_warning_with_the_name_and_the_numbers():
    model = nn.Sequential(nn.Identity(), BlockwiseMemory(9, (1, 4, 4)))
    before = model[1].memory.detach().clone()
    with pytest.warns(UserWarning, match=r"memory '1': 5 of 9 items .*\(5 blocks in all\)") as seen:
        assert fill_memories(model, torch.randn(5, 1, 4, 4)) == {"1": 5}
    assert seen[0].filename == __file__
    assert torch.equal(model[1].memory[5:], before[5:])


def test_a_memory_that_the_forward_does_not_reach_is_a_warning():
    model = nn.Sequential(BlockwiseMemory(4, (1, 2, 2)))
    model.spare = nn.Module()
    model.spare.memory = BlockwiseMemory(3, (1, 2, 2))
    model.forward = lambda x: model[0](x)
    with pytest.warns(UserWarning, match="memory 'spare.memory': 0 of 3 .* forward does not reach"):
        counts = fill_memories(model, torch.randn(2, 1, 4, 4))
    assert counts == {"0": 4, "spare.memory": 0}


def test_frozen_memories_are_left_alone():
    model = autoencoder()
    model[2].requires_grad_(False)
    before = model[2].memory.clone()
    assert fill_memories(model, torch.randn(4, 1, 8, 8)) == {"4.0": 10}
    assert torch.equal(model[2].memory, before)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="every memory is frozen .'2', '4.0'."):
        fill_memories(model, torch.randn(4, 1, 8, 8))


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = BlockwiseMemory(6, (1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.memory.read(x)[0]


def test_a_memory_whose_read_the_model_calls_is_filled_too():
    model, x = Reads(), torch.randn(4, 1, 4, 4)
    assert fill_memories(model, x) == {"memory": 6}
    assert items_are_blocks(model.memory.memory, x, (1, 2, 2)).all()
    assert "read" not in vars(model.memory)
    out, weights = model.memory.read(x)
    assert (out.shape, weights.shape) == (x.shape, (4, 4, 6))


class Twice(nn.Module):
    """One layer that is called on two maps, or two layers with one parameter."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        self.first = BlockwiseMemory(10, (1, 2, 2))
        self.second = BlockwiseMemory(10, (1, 2, 2)) if second else self.first
        self.second.memory = self.first.memory

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * 0 - x)


@pytest.mark.parametrize("second", [False, True], ids=["one layer", "one parameter"])
def test_a_shared_memory_takes_blocks_of_all_its_maps(second):
    model = Twice(second)
    x = torch.rand(4, 1, 4, 4)  # the second map is negative
    counts = fill_memories(model, x)
    assert counts == ({"first": 10, "second": 10} if second else {"first": 10})
    items = model.first.memory
    assert items_are_blocks(items, torch.cat([x, -x]), (1, 2, 2)).all()
    assert 4 <= int((items < 0).all(1).sum()) <= 6
    assert no_two_equal(items)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 3:
            raise RuntimeError("three is too many")
        return x


def test_after_an_error_everything_is_as_before():
    model = nn.Sequential(autoencoder(), Fails())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="three is too many"):
        fill_memories(model, torch.randn(4, 1, 8, 8), torch.randn(3, 1, 8, 8))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_an_error_of_a_map_names_its_memory():
    model = nn.Sequential(nn.BatchNorm2d(1), BlockwiseMemory(4, (1, 2, 2)))
    with pytest.raises(ValueError, match="memory '1': x has NaN or infinity"):
        fill_memories(model, with_value(torch.randn(1, 2, 4, 4), torch.nan)[:, 1:])
    with pytest.raises(ValueError, match="memory '1': height 5"):
        fill_memories(model, torch.randn(1, 1, 5, 4))


@pytest.mark.parametrize(
    ("model", "inputs", "error", "text"),
    [
        (BlockwiseMemory(2, (1, 2)), (), ValueError, "no inputs: expected at least one batch"),
        (nn.ReLU(), (torch.ones(1),), ValueError, "ReLU has no BlockwiseMemory"),
        (torch.relu, (torch.ones(1),), TypeError, "expected a torch.nn.Module"),
        (
            nn.DataParallel(BlockwiseMemory(2, (1, 2))),
            (torch.ones(1),),
            ValueError,
            "model is DataParallel: fill the model before it is wrapped",
        ),
        (
            BlockwiseMemory(2, (1, 2), device="meta"),
            (torch.ones(1, 1, 2),),
            ValueError,
            "memory '': memory is on the meta device",
        ),
    ],
)
def test_what_cannot_be_filled_is_refused(model, inputs, error, text):
    with pytest.raises(error, match=text):
        fill_memories(model, *inputs)


def test_lazy_modules_come_first():
    model = nn.Sequential(nn.LazyConv1d(2, 1), BlockwiseMemory(4, (2, 2)))
    x = torch.randn(4, 3, 8)
    with pytest.raises(ValueError, match=r"0.weight, 0.bias not initialised yet: call the model"):
        fill_memories(model, x)
    model(x)
    assert fill_memories(model, x) == {"1": 4}


def test_autocast_and_inference_mode():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), BlockwiseMemory(6, (4, 2, 2)))
    for context in (torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode()):
        with context:
            assert fill_memories(model, torch.randn(4, 1, 4, 4)) == {"1": 6}
        assert model[1].memory.dtype == torch.float32
    model(torch.randn(1, 1, 4, 4)).sum().backward()


def test_the_draw_is_seeded_and_leaves_pytorchs_own_alone():
    torch.manual_seed(0)
    models, x = [autoencoder(), autoencoder()], torch.randn(4, 1, 8, 8)
    models[1].load_state_dict(models[0].state_dict())
    state = torch.get_rng_state()
    for model in models:
        fill_memories(model, x, x + 1, generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(models[0][2].memory, models[1][2].memory)
    assert torch.equal(models[0][4][0].memory, models[1][4][0].memory)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_filled_too(in_place):
    """Also one that has run compiled, whose code knows nothing of hooks that come later."""
    model, x = autoencoder(), torch.randn(4, 1, 8, 8)
    compiled = model
    if in_place:
        model.compile(backend="eager")
    else:
        compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
        counts = fill_memories(compiled, x)
        assert list(counts.values()) == [20, 10]
        assert_close(compiled(x), nn.Sequential(*model)(x))


def test_a_model_learns_through_a_filled_memory():
    """The first convolution's gradient, where nothing behind the memory makes up for its length."""

    def gradient(fill: bool) -> float:
        torch.manual_seed(0)
        memory = BlockwiseMemory(32, (16, 4, 4))
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), memory,
            nn.ConvTranspose2d(16, 16, 2, 2), nn.ReLU(), nn.Conv2d(16, 1, 1),
        )  # fmt: skip
        x = torch.randn(64, 1, 8, 8)
        if fill:
            fill_memories(model, x)
        (model(x) - x).square().mean().backward()
        return model[0].weight.grad.norm().item()

    assert gradient(fill=True) > 30 * gradient(fill=False)
