"""The layer in models of other libraries: it stands in nobody's way, and starts well.

Each test needs the library that its model's name begins with, and is skipped where it is not there.
"""

import copy
import math

import pytest
import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.testing import assert_close

from blockmem import BlockwiseMemory, fill_memories
from foreign_models import (
    MODELS,
    NUM_ITEMS,
    STARTS,
    blobs,
    loss_of,
    main,
    maps_of,
    memories,
    started,
    train,
)
from tests.helpers.filled import items_are_blocks

pytestmark = pytest.mark.slow
KL, MAE = "diffusers-autoencoder-kl", "transformers-vit-mae"


@pytest.fixture(params=MODELS)
def name(request):
    pytest.importorskip(request.param.split("-")[0])
    return request.param


@pytest.fixture
def filled(name):
    return started(name, "maps")


@pytest.fixture
def x(name):
    return pictures(name)


def pictures(name: str, count: int = 4) -> Tensor:
    return blobs(count, MODELS[name].sizes, torch.Generator().manual_seed(1))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(2)  # ViT-MAE hides patches at random
    return loss_of(model, x)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss(model, x).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_it_trains_and_answers_are_as_long_as_the_maps_once_filled(name):
    sizes = MODELS[name].sizes
    fresh, filled = (train(started(name, start), sizes) for start in ("uniform", "maps"))
    for short, long in zip(fresh.answers, filled.answers, strict=True):
        assert short < 0.2
        assert 0.4 < long < 1.6  # above 1 where most blocks are shorter than most items
        assert abs(math.log(long)) < abs(math.log(short)) / 2
    assert filled.gradient > 0
    assert filled.last < 0.9 * filled.first
    assert all(1 < perplexity <= NUM_ITEMS for perplexity in filled.perplexity)


def test_the_map_keeps_its_shape_and_every_parameter_gets_a_gradient(name, filled, x):
    with maps_of(filled) as maps:
        found = gradients(filled, x)
    assert len(maps) == len(memories(filled)) > 0
    for memory, map_, answer in maps:
        assert answer.shape == map_.shape
        assert map_.shape[1] == memory.block_shape[0]  # channels come first
    plain = gradients(started(name, "none"), x)
    assert len(found) == len(plain) + len(maps)  # the memories, and all that get one without them
    assert all(grad.isfinite().all() for grad in found.values())
    assert all(grad.any() for key, grad in found.items() if key.endswith("memory"))
    first = next(iter(key for key, grad in found.items() if grad.ndim > 3))
    assert found[first].any()


def test_all_items_are_blocks_of_the_maps_that_reach_them(name):
    model = started(name, "uniform")
    x = pictures(name, 64)
    with maps_of(model) as maps:
        counts = fill_memories(model, x)
    assert list(counts.values()) == [NUM_ITEMS] * len(maps)
    for memory, map_, _ in maps:
        assert items_are_blocks(memory.memory, map_, memory.block_shape).all()


def test_a_state_dict_brings_the_memories_back(name, filled, x):
    other = started(name, "uniform", seed=1)
    assert loss(other, x) != loss(filled, x)
    other.load_state_dict(filled.state_dict())
    assert torch.equal(loss(other, x), loss(filled, x))


def test_a_copy_is_independent(filled, x):
    before = loss(filled, x)
    other = copy.deepcopy(filled)
    assert torch.equal(loss(other, x), before)
    with torch.no_grad():
        for memory in memories(other):
            memory.memory.zero_()
    assert loss(other, x) != before
    assert torch.equal(loss(filled, x), before)


def test_autocast(filled, x):
    exact = loss(filled, x)
    with torch.autocast("cpu", torch.bfloat16):
        close = loss(filled, x)
    close.backward()
    assert_close(close.detach(), exact.detach(), rtol=0.05, atol=0.01)
    for memory in memories(filled):
        assert memory.memory.grad.isfinite().all()
        assert memory.memory.grad.dtype == torch.float32


def test_bfloat16_throughout(filled, x):
    filled.bfloat16()
    loss(filled, x.bfloat16()).backward()
    assert all(memory.memory.grad.dtype == torch.bfloat16 for memory in memories(filled))
    assert all(memory.memory.grad.isfinite().all() for memory in memories(filled))


# Where a graph breaks off, the compiler asks for .grad of what the first part gave
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled(name, filled, x):
    expected = gradients(filled, x)
    torch._dynamo.reset()
    # MONAI's UNet calls torch.jit.isinstance, which the compiler does not take
    compiled = torch.compile(filled, backend="aot_eager", fullgraph=name != "monai-basic-unet")
    filled.zero_grad()
    value = loss(compiled, x)
    assert_close(value, loss(filled, x))
    value.backward()
    for key, parameter in filled.named_parameters():
        if parameter.grad is not None:
            assert_close(parameter.grad, expected[key], rtol=1e-3, atol=1e-5, msg=key)


def test_exported(filled, x):
    filled.eval()
    exported = torch.export.export(filled, (x,)).module()
    with torch.no_grad():
        assert_close(loss(exported, x), loss(filled, x))


def test_accelerate_trains_it_in_bfloat16(name, x):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model = started(name, "uniform")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    assert set(fill_memories(model, pictures(name, 64)).values()) == {NUM_ITEMS}
    before = [memory.memory.detach().clone() for memory in memories(model)]
    accelerator.backward(loss(model, x))
    optimizer.step()
    for memory, items in zip(memories(model), before, strict=True):
        assert memory.memory.isfinite().all()
        assert not torch.equal(memory.memory, items)


@pytest.mark.parametrize("name", [KL, MAE], indirect=True)
def test_gradient_checkpointing(name, filled, x):
    expected = gradients(filled, x)
    names = ("activation_checkpointing_enable", "enable_gradient_checkpointing")
    next(getattr(filled, one) for one in names if hasattr(filled, one))()
    for key, grad in gradients(filled, x).items():
        assert_close(grad, expected[key])
    assert set(fill_memories(filled, pictures(name, 64)).values()) == {NUM_ITEMS}


class TestAutoencoderKL:
    @pytest.fixture
    def name(self):
        pytest.importorskip("diffusers")
        return KL

    def test_encode_is_as_without_and_decode_reads_the_memory(self, filled, x):
        plain = started(KL, "none")
        latents, without = (model.encode(x).latent_dist for model in (filled, plain))
        assert torch.equal(latents.mean, without.mean)
        decoded = filled.decode(latents.mean).sample
        assert decoded.shape == x.shape
        assert_close(decoded, filled(x).sample)
        (as_tuple,) = filled.decode(latents.mean, return_dict=False)
        assert torch.equal(as_tuple, decoded)
        assert not torch.allclose(decoded, plain.decode(latents.mean).sample)

    def test_slices_and_tiles(self, filled, x):
        latents = filled.encode(x).latent_dist.mean
        decoded = filled.decode(latents).sample
        filled.enable_slicing()
        assert_close(filled.decode(latents).sample, decoded)
        filled.enable_tiling()
        assert filled.decode(torch.randn(1, 4, 32, 32)).sample.shape == (1, 1, 64, 64)

    def test_an_offloaded_model_answers_the_same_and_is_not_filled(self, filled, x):
        accelerate = pytest.importorskip("accelerate")
        expected = filled(x).sample
        accelerate.cpu_offload(filled, torch.device("cpu"))
        assert torch.equal(filled(x).sample, expected)
        with pytest.raises(ValueError, match="where accelerate offloads a model, fill before"):
            fill_memories(filled, x)

    def test_latents_that_blocks_do_not_divide_are_refused(self, filled):
        with pytest.raises(ValueError, match="height 18 .* cannot be divided into blocks of 4"):
            filled.decode(torch.randn(1, 4, 18, 16))

    def test_what_save_pretrained_wrote_loads_into_a_model_with_the_layer(
        self, filled, x, tmp_path
    ):
        from safetensors.torch import load_file

        filled.save_pretrained(tmp_path)
        other = started(KL, "uniform", seed=1)
        other.load_state_dict(load_file(tmp_path / "diffusion_pytorch_model.safetensors"))
        assert torch.equal(loss(other, x), loss(filled, x))


class TestViTMAE:
    """Where the class itself puts the layer in, `from_pretrained` knows of it."""

    @pytest.fixture
    def name(self):
        pytest.importorskip("transformers")
        return MAE

    @pytest.fixture
    def with_memory(self, name):
        from transformers import ViTMAEForPreTraining

        class WithMemory(ViTMAEForPreTraining):
            def __init__(self, config):
                super().__init__(config)
                there, back = Rearrange("b l c -> b c l"), Rearrange("b c l -> b l c")
                memory = BlockwiseMemory(32, (64, 1), temperature=0.1)
                self.vit.layernorm = nn.Sequential(self.vit.layernorm, there, memory, back)

        return WithMemory

    def test_the_memory_reads_tokens_not_channels(self, filled, x):
        """A token's answer is the memory's to that token alone."""
        (memory,) = memories(filled)
        with maps_of(filled) as maps:
            loss(filled, x)
        ((_, map_, answer),) = maps
        assert map_.shape == (4, 64, 1 + 32)  # half of 64 patches, and the class token
        one = memory(map_[:1, :, 5:6])
        assert_close(answer[:1, :, 5:6], one)
        assert_close(map_.mean(1), torch.zeros(4, 33), atol=1e-5, rtol=0)  # LayerNorm's tokens

    def test_from_pretrained_brings_the_memory_back(self, with_memory, x, tmp_path):
        model = with_memory(started(MAE, "none").config)
        fill_memories(model, x)
        model.save_pretrained(tmp_path)
        again = with_memory.from_pretrained(tmp_path).train()
        assert torch.equal(loss(again, x), loss(model.train(), x))

    def test_a_memory_that_from_pretrained_did_not_find_is_filled(self, with_memory, x, tmp_path):
        """transformers 5 leaves its items as they lie in RAM: huge, or not even numbers."""
        started(MAE, "none").save_pretrained(tmp_path)
        model = with_memory.from_pretrained(tmp_path, key_mapping={"layernorm": "layernorm.0"})
        (memory,) = memories(model)
        nn.init.constant_(memory.memory, torch.nan)
        fill_memories(model, x)
        assert memory.memory.isfinite().all()
        assert loss(model, x).isfinite()


def test_the_script_prints_one_row_for_each_start(capsys):
    pytest.importorskip("monai")
    main(["monai-autoencoder-2d", "--seeds", "2", "--steps", "2"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "step 2" in head
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[1] for row in cells] == list(STARTS)
    assert all(len(row) == head.count("|") - 1 for row in cells)
    assert all(float(loss) > 0 for row in cells for loss in (row[5] + " " + row[6]).split())
    assert [row[2] != "" for row in cells] == [False, True, True, True]
