"""The layer in models of other libraries: a line or two each, and how the training starts.

python -m venv FOLDER && source FOLDER/bin/activate
pip install -c constraints.txt -e . monai diffusers transformers
python examples/foreign_models.py [MODEL ...] [--seeds 3] [--temperature 0.1] [--steps 30]

These libraries are in none of blockmem's extras, so give them an environment of their own. Tested
with monai 1.6.1, diffusers 0.42.1 and transformers 5.24.0. Models are small and built from their
settings; nothing is downloaded. Each trains thirty steps on drawn blobs: without a memory, with
items as constructed, with items of deviation 1, and with items from its own maps. Takes a minute or
two on one core; docs/guide.md has what came out.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from blockmem import BlockwiseMemory, divide, fill_memories, usage

STARTS = ("none", "uniform", "deviation 1", "maps")
STEPS, BATCH = 30, 16
NUM_ITEMS = 32
INSTALL = "pip install -c constraints.txt monai diffusers transformers"


# The models. Each line with a `BlockwiseMemory` is all that the layer takes.


def monai_autoencoder(
    dimensions: int, norm: str | None, with_memory: bool, temperature: float
) -> nn.Module:
    """Maps (32, 8, 8) or (32, 4, 4, 4) pass from encoder to decoder."""
    from monai.networks.nets import AutoEncoder

    model = AutoEncoder(dimensions, 1, 1, channels=(16, 32), strides=(2, 2), norm=norm)
    if with_memory:
        block = (32, *(2,) * dimensions)
        model.intermediate = BlockwiseMemory(NUM_ITEMS, block, temperature=temperature)
    return model


def monai_basic_unet(with_memory: bool, temperature: float) -> nn.Module:
    """Four skips and the bottom lead to the decoder, so there are five memories."""
    from monai.networks.nets import BasicUNet

    widths = (8, 8, 16, 32, 64, 8)
    model = BasicUNet(2, 1, 1, features=widths)
    if with_memory:
        levels = (model.upcat_1, model.upcat_2, model.upcat_3, model.upcat_4)
        for level, width in zip(levels, widths, strict=False):
            level.memory = BlockwiseMemory(NUM_ITEMS, (width, 4, 4), temperature=temperature)
            level.register_forward_pre_hook(skip_through_memory)
        model.down_4.append(BlockwiseMemory(NUM_ITEMS, (64, 1, 1), temperature=temperature))
    return model


def skip_through_memory(level: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    below, skip = inputs
    memory = level.get_submodule("memory")
    return below, memory(skip)


def diffusers_autoencoder_kl(with_memory: bool, temperature: float) -> nn.Module:
    """Latents (4, 16, 16) reach the decoder; what `encode` gives stays as it was."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        norm_num_groups=8,
    )
    if with_memory:
        memory = BlockwiseMemory(NUM_ITEMS, (4, 4, 4), temperature=temperature)
        model.post_quant_conv = nn.Sequential(model.post_quant_conv, memory)
    return model


def transformers_vit_mae(with_memory: bool, temperature: float) -> nn.Module:
    """Tokens (B, L, 64) are no map (B, 64, L) yet; each is a block."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    decoder = {f"decoder_{name}": value for name, value in layers.items()}
    config = ViTMAEConfig(
        **layers,
        **decoder,
        image_size=32,
        patch_size=4,
        num_channels=1,
        hidden_size=64,
        decoder_hidden_size=64,
        mask_ratio=0.5,
    )
    model = ViTMAEForPreTraining(config)
    if with_memory:
        memory = BlockwiseMemory(NUM_ITEMS, (64, 1), temperature=temperature)
        there, back = Rearrange("b l c -> b c l"), Rearrange("b c l -> b l c")
        model.vit.layernorm = nn.Sequential(model.vit.layernorm, there, memory, back)
    return model


class Model(NamedTuple):
    """build: with a memory or without, at a temperature. sizes: of a picture, `(1, *sizes)`."""

    build: Callable[[bool, float], nn.Module]
    sizes: tuple[int, ...]


MODELS = {  # the library's name comes first
    "monai-autoencoder-2d": Model(partial(monai_autoencoder, 2, "instance"), (32, 32)),
    "monai-autoencoder-2d-no-norm": Model(partial(monai_autoencoder, 2, None), (32, 32)),
    "monai-autoencoder-3d": Model(partial(monai_autoencoder, 3, "instance"), (16, 16, 16)),
    "monai-basic-unet": Model(monai_basic_unet, (64, 64)),
    "diffusers-autoencoder-kl": Model(diffusers_autoencoder_kl, (32, 32)),
    "transformers-vit-mae": Model(transformers_vit_mae, (32, 32)),
}


# Training, and what is looked at


def blobs(count: int, sizes: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Draw pictures or volumes `(count, 1, *sizes)` of three soft balls each, in [0, 1]."""
    axes = [torch.linspace(-1, 1, size) for size in sizes]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    centres = 1.4 * torch.rand(3, count, len(sizes), *(1 for _ in sizes), generator=random) - 0.7
    return torch.exp(-20 * (places - centres).square().sum(2)).amax(0)[:, None]


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """Compute the model's own loss where it has one, else the mean squared error."""
    out = model(x)
    if getattr(out, "loss", None) is not None:  # transformers
        return out.loss
    return F.mse_loss(getattr(out, "sample", out), x)  # diffusers has its map in `sample`


def started(name: str, start: str, seed: int = 0, temperature: float = 0.1) -> nn.Module:
    """Return a model whose memories start as `start`, one of STARTS, says."""
    torch.manual_seed(seed)
    model = MODELS[name].build(start != "none", temperature).train()
    if start == "deviation 1":
        for memory in memories(model):
            nn.init.uniform_(memory.memory, -math.sqrt(3), math.sqrt(3))
    if start == "maps":
        random = torch.Generator().manual_seed(seed)
        fill_memories(model, blobs(4 * BATCH, MODELS[name].sizes, random))
    return model


def memories(model: nn.Module) -> list[BlockwiseMemory]:
    return [module for module in model.modules() if isinstance(module, BlockwiseMemory)]


class Result(NamedTuple):
    """answers: of each memory, their deviation in that of its map, at the first step. alike: the mean
    cosine of this map's blocks to one another. gradient: norm of the first convolution's, there too. first, last: the loss at the first and the last step.
    perplexity: as how many equally used items those of each memory count, after the last step."""

    answers: list[float]
    alike: list[float]
    gradient: float
    first: float
    last: float
    perplexity: list[float]


def train(model: nn.Module, sizes: tuple[int, ...], seed: int = 0, steps: int = STEPS) -> Result:
    first_layer = next(m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of the masks of ViT-MAE
    losses: list[float] = []
    with maps_of(model) as maps:
        for step in range(steps):
            maps.clear()
            loss = loss_of(model, blobs(BATCH, sizes, random))
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                gradient = norm_of_gradient(first_layer.weight)
                answers = [(out.std() / x.std()).item() for _, x, out in maps]
                alike = [mean_cosine(divide(x, m.block_shape).flatten(0, 1)) for m, x, _ in maps]
            optimizer.step()
            losses.append(loss.item())
        maps.clear()
        with torch.no_grad():
            model(blobs(8 * BATCH, sizes, random))
            perplexity = [usage(memory.address(x)).perplexity for memory, x, _ in maps]
    return Result(answers, alike, gradient, losses[0], losses[-1], perplexity)


def norm_of_gradient(weight: Tensor) -> float:
    """Take it after a backward pass."""
    assert weight.grad is not None
    return weight.grad.norm().item()


def mean_cosine(blocks: Tensor) -> float:
    """Compute the mean cosine of all pairs of blocks `(n, D)`: the square of their mean direction."""
    return F.normalize(blocks, dim=-1).mean(0).square().sum().item()


@contextmanager
def maps_of(model: nn.Module) -> Iterator[list[tuple[BlockwiseMemory, Tensor, Tensor]]]:
    """Meanwhile the list grows by memory, map and answer at every call of a memory."""
    maps: list[tuple[BlockwiseMemory, Tensor, Tensor]] = []

    def look(memory: BlockwiseMemory, inputs: tuple[Tensor], out: Tensor) -> None:
        maps.append((memory, inputs[0].detach(), out.detach()))

    hooks = [memory.register_forward_hook(look) for memory in memories(model)]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


# The table


def row(name: str, start: str, results: list[Result]) -> str:
    """Give losses for each seed; of all else the lowest and the highest of seeds and memories."""
    shares = [100 * share for result in results for share in result.answers]
    cosines = [cosine for result in results for cosine in result.alike]
    perplexities = [perplexity for result in results for perplexity in result.perplexity]
    cells = [
        name,
        start,
        span(shares, "{:.1f}%"),
        span(cosines, "{:.2f}"),
        span([result.gradient for result in results], "{:.0e}"),
        " ".join(f"{result.first:.3f}" for result in results),
        " ".join(f"{result.last:.4f}" for result in results),
        span(perplexities, "{:.0f}"),
    ]
    return f"| {' | '.join(cells)} |"


def span(values: list[float], form: str) -> str:
    """Return the lowest and the highest value, or the one where they look alike."""
    ends = [form.format(end) for end in (min(values), max(values))] if values else []
    return " to ".join(dict.fromkeys(ends))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    for name in options.models:
        if name not in MODELS:
            parser.error(f"model {name!r}: expected one of {', '.join(MODELS)}")
    columns = ["model", "start", "answers", "alike", "gradient"]
    columns += ["step 1", f"step {options.steps}", "perplexity"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in options.models or MODELS:
        for start in STARTS:
            results = []
            for seed in range(options.seeds):
                try:
                    model = started(name, start, seed, options.temperature)
                except ModuleNotFoundError as error:
                    parser.error(f"{name}: {error}; to install what it needs: {INSTALL}")
                results.append(train(model, MODELS[name].sizes, seed, options.steps))
            print(row(name, start, results), flush=True)


if __name__ == "__main__":
    main()
