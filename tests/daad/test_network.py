"""The networks against Tables 7 and 8, written out here once more from the paper."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from blockmem import BlockwiseMemory
from daad.config import Config
from daad.network import Discriminator, Generator

VARIANTS = ("ae", "ae-skip", "memae", "memae-skip", "daad", "daad+")
SMALL = {"image_size": 32, "width": 4, "num_items": 5, "division": (2, 2, 1)}

# Table 7 at 256x256: layer, kernel, channels in and out, size out.
ENCODER = [
    *[("conv", 3, 3, 64, 256), ("conv", 3, 64, 64, 256), ("memory", 0, 64, 64, 128)],
    *[("conv", 3, 64, 128, 128), ("conv", 3, 128, 128, 128), ("memory", 0, 128, 128, 64)],
    *[("conv", 3, 128, 256, 64), ("conv", 3, 256, 256, 64), ("memory", 0, 256, 256, 32)],
    *[("conv", 3, 256, 512, 32), ("conv", 3, 512, 512, 32), ("memory", 0, 512, 512, 16)],
]
DECODER = [
    *[("conv", 3, 512, 1024, 16), ("conv", 3, 1024, 1024, 16), ("up", 2, 1024, 512, 32)],
    *[("conv", 3, 768, 512, 32), ("conv", 3, 512, 512, 32), ("up", 2, 512, 256, 64)],
    *[("conv", 3, 384, 256, 64), ("conv", 3, 256, 256, 64), ("up", 2, 256, 128, 128)],
    *[("conv", 3, 192, 128, 128), ("conv", 3, 128, 128, 128), ("up", 2, 128, 64, 256)],
    *[("conv", 3, 64, 64, 256), ("conv", 3, 64, 64, 256), ("head", 1, 64, 3, 256)],
]
WITHOUT_SKIP = {768: 512, 384: 256, 192: 128}

# Table 8 at 256x256: kernel, stride, channels in and out, size out.
DISCRIMINATOR = [
    *[(4, 2, 3, 64, 128), (4, 2, 64, 128, 64), (4, 2, 128, 256, 32), (4, 2, 256, 512, 16)],
    *[(4, 2, 512, 1024, 8), (4, 2, 1024, 2048, 4), (4, 1, 2048, 100, 1), (3, 1, 100, 1, 1)],
]
TABLES = (nn.Conv2d, nn.ConvTranspose2d, BlockwiseMemory)


def config(**choices: Any) -> Config:
    return Config(**(SMALL | choices)).resolve()


def layers_run(network: nn.Module, x: torch.Tensor) -> list[tuple[nn.Module, int, int, int]]:
    """What runs, in order: the module, its channels in and out, and its output's size."""
    seen = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        assert output.shape[2] == output.shape[3]
        seen.append((module, inputs[0].shape[1], output.shape[1], output.shape[2]))

    for module in network.modules():
        if isinstance(module, TABLES):
            module.register_forward_hook(note)
    network(x)
    return list(seen)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_generator_is_table_7_layer_for_layer() -> None:
    kinds = {"conv": nn.Conv2d, "head": nn.Conv2d, "up": nn.ConvTranspose2d}
    with FakeTensorMode():  # shapes only: nothing is allocated or computed
        generator = Generator(Config(variant="daad").resolve())
        seen = layers_run(generator, torch.empty(2, 3, 256, 256))
    # A memory runs when the decoder asks for it, after the encoder.
    memories = [row for row in seen if isinstance(row[0], BlockwiseMemory)]
    others = [row for row in seen if not isinstance(row[0], BlockwiseMemory)]
    expected = [row for row in ENCODER + DECODER if row[0] != "memory"]
    assert len(others) == len(expected)
    for (module, *shape), (kind, kernel, *row) in zip(others, expected, strict=True):
        assert shape == row
        assert type(module) is kinds[kind]
        assert module.kernel_size == (kernel, kernel)
        assert module.stride == ((2, 2) if kind == "up" else (1, 1))
    assert [tuple(shape) for _, *shape in memories] == [
        (512, 512, 16),
        (256, 256, 32),
        (128, 128, 64),
        (64, 64, 128),
    ]


def test_memory_items_are_blocks_of_one_64th_of_each_level() -> None:
    with FakeTensorMode():
        generator = Generator(Config(variant="daad").resolve())
    shapes = [tuple(memory.memory.shape) for memory in generator.memories]
    assert shapes == [(500, 16384), (500, 8192), (500, 4096), (500, 2048)]


def test_last_layer_is_a_bare_convolution_and_every_other_has_batch_norm_and_relu() -> None:
    generator = Generator(config(variant="ae"))
    *inner, last = generator.head
    assert type(last) is nn.Conv2d
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in generator.modules())
    relus = sum(isinstance(module, nn.ReLU) for module in generator.modules())
    assert norms == relus == 4 * 2 + 4 * 2 + len(inner)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_count_follows_from_table_7(variant: str) -> None:
    skip = variant not in ("ae", "memae")
    count = 0
    for kind, kernel, c_in, c_out, _ in ENCODER + DECODER:
        if not skip:
            c_in = WITHOUT_SKIP.get(c_in, c_in)
        if kind == "conv":
            count += kernel**2 * c_in * c_out + 2 * c_out  # BatchNorm's scale and shift
        elif kind != "memory":
            count += kernel**2 * c_in * c_out + c_out
    block_sizes = {
        "ae": [],
        "ae-skip": [],
        "memae": [512],  # one pixel of the last level
        "memae-skip": [64, 128, 256, 512],
        "daad": [64 * 16 * 16, 128 * 8 * 8, 256 * 4 * 4, 512 * 2 * 2],
        "daad+": [64 * 16 * 16, 128 * 8 * 8, 256 * 4 * 4, 512 * 2 * 2],
    }
    count += 500 * sum(block_sizes[variant])
    with FakeTensorMode():
        generator = Generator(Config(variant=variant).resolve())
    assert count_parameters(generator) == count


@pytest.mark.parametrize(
    ("variant", "memories"),
    [("ae", 0), ("ae-skip", 0), ("memae", 1), ("memae-skip", 4), ("daad", 4), ("daad+", 4)],
)
def test_variant_decides_memories_and_concatenation(variant: str, memories: int) -> None:
    generator = Generator(config(variant=variant)).eval()
    found = [m for m in generator.modules() if isinstance(m, BlockwiseMemory)]
    assert len(found) == memories
    # What the largest encoder level hands over matters to the output only by concatenation
    x = torch.rand(1, 3, 32, 32)
    before = generator(x)
    assert before.shape == x.shape
    generator.memories[0] = nn.Threshold(1e9, 7.0)
    assert torch.equal(before, generator(x)) == (variant in ("ae", "memae"))


def test_encoder_goes_on_from_the_map_itself_not_from_its_memory() -> None:
    generator = Generator(config()).eval()
    inputs = []
    generator.encoder[1].register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    generator.memories[0].register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    generator(torch.rand(1, 3, 32, 32))
    assert inputs[0] is inputs[1]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_fewer_levels_keep_the_pattern(variant: str, levels: int) -> None:
    generator = Generator(config(variant=variant, levels=levels))
    assert len(generator.encoder) == len(generator.decoder) == levels
    x = torch.rand(2, 3, 32, 32)
    generator(x).sum().backward()
    assert generator(x).shape == x.shape
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_memory_settings_reach_the_layer() -> None:
    choices = config(temperature=0.05, threshold=0.3, renormalize=True)
    memory = Generator(choices).memories[2]
    assert (memory.temperature, memory.threshold, memory.renormalize) == (0.05, 0.3, True)


def test_memory_init_is_uniform_or_normal_of_the_same_scale() -> None:
    torch.manual_seed(0)
    choices = {"image_size": 64, "width": 16, "num_items": 200}
    for name, bounded in (("uniform", True), ("normal", False)):
        memory = Generator(config(memory_init=name, **choices)).memories[0].memory.detach()
        scale = memory.shape[1] ** -0.5
        assert (memory.abs().max() <= scale).item() == bounded
        expected = scale * (3**-0.5 if bounded else 1.0)
        assert memory.std().item() == pytest.approx(expected, rel=0.02)


def test_discriminator_is_table_8_layer_for_layer() -> None:
    with FakeTensorMode():
        discriminator = Discriminator(Config(variant="daad+").resolve())
        x = torch.empty(2, 3, 256, 256)
        seen = layers_run(discriminator, x)
        logits, feature = discriminator(x)
    for (module, *shape), (kernel, stride, *row) in zip(seen, DISCRIMINATOR, strict=True):
        assert shape == row
        assert (module.kernel_size, module.stride) == ((kernel, kernel), (stride, stride))
    assert (logits.shape, feature.shape) == ((2,), (2, 100))
    # Convolution, LeakyReLU, then five times with BatchNorm between
    kinds = [type(module) for module in discriminator.extractor]
    assert kinds == [nn.Conv2d, nn.LeakyReLU] + 5 * [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    slopes = {m.negative_slope for m in discriminator.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}


def test_the_first_stage_alone_is_without_batch_norm() -> None:
    """Of three channels too, as many as a picture has."""
    for width in (2, 3):
        convolution, *rest = Discriminator(config(variant="daad+", width=width)).extractor
        assert convolution.bias is not None
        kinds = [nn.LeakyReLU] + 2 * [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
        assert [type(module) for module in rest] == kinds
        assert all(m.bias is None for m in rest if isinstance(m, nn.Conv2d))


def test_discriminator_parameter_count_follows_from_table_8() -> None:
    count = 0
    for i, (kernel, _, c_in, c_out, _) in enumerate(DISCRIMINATOR):
        count += kernel**2 * c_in * c_out
        count += 2 * c_out if 1 <= i <= 5 else c_out  # BatchNorm's two, else a bias
    with FakeTensorMode():
        discriminator = Discriminator(Config(variant="daad+").resolve())
    assert count_parameters(discriminator) == count


@pytest.mark.parametrize(
    ("size", "stages", "positions"), [(32, 3, 1), (48, 3, 9), (64, 4, 1), (112, 4, 16)]
)
def test_discriminator_at_other_sizes(size: int, stages: int, positions: int) -> None:
    choices = config(variant="daad+", image_size=size, levels=1)
    discriminator = Discriminator(choices).eval()
    convolutions = [m for m in discriminator.extractor if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [4 * 2**i for i in range(stages)]
    x = torch.rand(3, 3, size, size)
    logits, feature = discriminator(x)
    assert (logits.shape, feature.shape) == ((3,), (3, 100 * positions))
    answers = discriminator.decision(discriminator.classifier(discriminator.extractor(x)))
    torch.testing.assert_close(logits, answers.mean(dim=(1, 2, 3)))


def test_extractor_feature_is_what_feeds_the_classifier() -> None:
    discriminator = Discriminator(config(variant="daad+", feature="extractor")).eval()
    x = torch.rand(2, 3, 32, 32)
    _, feature = discriminator(x)
    assert torch.equal(feature, discriminator.extractor(x).flatten(1))
    assert feature.shape == (2, 16 * 4 * 4)
