"""The workloads: shapes of real models in one table, inputs of those shapes, and their floor."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.machine import TORCH_DTYPES, Device, Rates, Run
from blockmem import assemble
from blockmem.backends.torch.products import matmul
from blockmem.division import check_block_shape, check_fits

FORWARD, TRAINING = "forward", "forward+backward"
MODES = (FORWARD, TRAINING)

PROTOTYPES = 4
NOISE = 0.3


@dataclass(frozen=True)
class Part:
    """One memory at work: a map `(B, C, *S)`, blocks `(c, *s)`, and how many items."""

    map_shape: tuple[int, ...]
    block_shape: tuple[int, ...]
    items: int

    @property
    def size(self) -> int:
        """D, the elements of a block."""
        return math.prod(self.block_shape)

    @property
    def queries(self) -> int:
        """Q, the blocks of the whole batch."""
        return math.prod(self.map_shape) // self.size

    def __str__(self) -> str:
        return f"{_by(self.map_shape)} in blocks {_by(self.block_shape)}, N {self.items}"


def _by(sizes: Iterable[int]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(map(str, sizes))


@dataclass(frozen=True)
class Workload:
    """A memory layer alone, or the several of one network called one after another."""

    name: str
    parts: tuple[Part, ...]
    modes: tuple[str, ...] = MODES
    quick: bool = False
    default: bool = True

    def __str__(self) -> str:
        return "; ".join(map(str, self.parts))


@dataclass(frozen=True)
class ModelWorkload:
    """DAAD whole: a training step, or an inference pass."""

    name: str
    modes: tuple[str, ...]
    image_size: int = 256
    width: int = 64
    batch_cpu: int = 1
    batch_cuda: int = 8
    quick: bool = False
    default: bool = True

    def batch(self, device: str) -> int:
        return self.batch_cuda if device == "cuda" else self.batch_cpu

    def __str__(self) -> str:
        return f"DAAD whole, pictures of {_by([self.image_size] * 2)}, width {self.width}"


AnyWorkload = Workload | ModelWorkload


def _daad(level: int, batch: int = 8, division: int = 8, items: int = 500) -> Part:
    """The memory of one level of DAAD at 256x256, width 64: `division` blocks along each side."""
    channels, side = 64 * 2 ** (level - 1), 256 // 2**level
    block = side // division
    return Part((batch, channels, side, side), (channels, block, block), items)


def _pixels(channels: int, side: int, items: int) -> Part:
    """MemAE's memory: one query a pixel, over all channels."""
    return Part((8, channels, side, side), (channels, 1, 1), items)


def _square(queries: int, items: int, size: int) -> Part:
    """A batch of 8 maps with `queries` blocks of 4x4 pixels altogether."""
    channels, side = size // 16, 4 * math.isqrt(queries // 8)
    return Part((8, channels, side, side), (channels, 4, 4), items)


LEVELS = (1, 2, 3, 4)
BASE = {"q": 2048, "n": 500, "d": 256}
SWEEPS = {
    "q": (128, 512, 2048, 8192, 32768),
    "n": (125, 500, 2000, 8000),
    "d": (64, 256, 1024, 4096, 16384),
}


SWEEP = "scaling-"
HOST = "host-"  # what benchmarks/host.py measures


def sweep_name(sizes: dict[str, int]) -> str:
    return f"{SWEEP}q{sizes['q']}-n{sizes['n']}-d{sizes['d']}"


def _sweeps() -> tuple[Workload, ...]:
    """From one base point along each of Q, N and D; the base stands in the table once."""
    points = [BASE | {axis: value} for axis, values in SWEEPS.items() for value in values]
    named = {sweep_name(p): _square(p["q"], p["n"], p["d"]) for p in points}
    return tuple(Workload(name, (part,), modes=(TRAINING,)) for name, part in named.items())


def own(map_shape: Sequence[int], block_shape: Sequence[int], items: int) -> Workload:
    """Make a workload of somebody's own shapes; ValueError says why there is none of these."""
    if items < 1:
        raise ValueError(f"{items} items: expected one or more")
    if not all(size > 0 for size in map_shape):
        raise ValueError(f"map of shape {tuple(map_shape)}: expected sizes of 1 or more")
    part = Part(tuple(map_shape), check_block_shape(block_shape), items)
    check_fits(part.map_shape, part.block_shape)
    name = "x".join(map(str, part.map_shape)), "x".join(map(str, part.block_shape))
    return Workload(f"{name[0]}-in-{name[1]}-n{items}", (part,))


WORKLOADS: tuple[AnyWorkload, ...] = (
    # Whole networks first: what all else is for
    ModelWorkload("daad-inference", (FORWARD,)),
    ModelWorkload("daad-training", (TRAINING,)),
    # DAAD (ICCV 2021) on pictures: 256x256, r 8,8,1
    *(Workload(f"daad-level{level}", (_daad(level),), quick=level == 4) for level in LEVELS),
    Workload("daad-levels", tuple(_daad(level) for level in LEVELS)),
    # ... on video: r 16, N 2000
    Workload("daad-video", tuple(_daad(level, 4, 16, 2000) for level in LEVELS)),
    # ... with other blocks. At level 3: on level 1 the memory of r 1 alone would take 2 GB
    *(Workload(f"daad-r{r}", (_daad(3, division=r),)) for r in (1, 2, 4, 16)),
    # MemAE (ICCV 2019), and the larger maps that DAAD's Figure 2 gives it
    *(
        Workload(
            f"memae-{factor}x-n{items}",
            (_pixels(32 * factor, 256 // factor, items),),
            quick=factor == 16 and items == 500,
        )
        for items in (500, 2000)
        for factor in (16, 8, 4, 2)
    ),
    # HF2-VAD (ICCV 2021): a map is one block
    Workload("hf2vad", (Part((128, 64, 16, 16), (64, 16, 16), 2000),)),
    # MemAE on video, 3-D maps
    Workload("memae-video", (Part((4, 256, 2, 16, 16), (256, 1, 1, 1), 2000),)),
    # What a call costs where there is hardly anything to compute
    Workload("call-16x4x4-n32", (Part((1, 16, 4, 4), (16, 1, 1), 32),), quick=True),
    Workload("call-64x8x8-n64", (Part((1, 64, 8, 8), (64, 1, 1), 64),)),
    Workload("call-64x8x8-blocks-n64", (Part((1, 64, 8, 8), (64, 4, 4), 64),)),
    Workload("call-64x16x16-blocks-n64", (Part((8, 64, 16, 16), (64, 4, 4), 64),)),
    *_sweeps(),
    # For trying the command out; measured only where it is named, or by --quick
    Workload("tiny", (Part((2, 16, 8, 8), (16, 2, 2), 20),), quick=True, default=False),
)


def make_inputs(
    part: Part, dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[Tensor, Tensor]:
    """A map and a memory `(N, D)`: blocks and items scatter round the same four prototypes.

    So an item is either near a query or far from it, its probability well above 1/N or well
    below. Were all directions random, many would lie within rounding of the threshold, and no
    two ways to compute the layer would agree on what is kept, whether right or wrong.
    """
    random = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device)

    prototypes = torch.linalg.qr(normal(part.size, PROTOTYPES)).Q.T
    noise = NOISE / math.sqrt(part.size)
    memory = prototypes[torch.arange(part.items, device=device) % PROTOTYPES]
    memory = memory + noise * normal(part.items, part.size)
    nearest = torch.randint(PROTOTYPES, (part.queries,), generator=random, device=device)
    queries = prototypes[nearest] + noise * normal(part.queries, part.size)
    # As after BatchNorm, numbers are about 1; and blocks differ in strength
    queries = queries * math.sqrt(part.size) * (0.3 * normal(part.queries, 1)).exp()
    queries = queries.view(part.map_shape[0], -1, part.size).to(dtype)
    return assemble(queries, part.block_shape, part.map_shape), memory.to(dtype)


# What a case cannot do without


def count_flops(part: Part, mode: str) -> int:
    """Of the matrix products alone, 2 Q N D each.

    Forward: logits, read-out. Backward: dw = g m', dq = ds m, and two for dm, w'g and ds'q. That
    a provider may compute the logits again instead of keeping them is its own choice.
    """
    products = 2 if mode == FORWARD else 6
    return products * 2 * part.queries * part.items * part.size


def count_bytes(part: Part, mode: str, itemsize: int) -> int:
    """What must be read and written once: nothing of size Q x N.

    Forward: x and memory in, y out. Backward: x, memory and y's gradient in, two gradients out.
    """
    map_size = part.queries * part.size
    memory_size = part.items * part.size
    maps, memories = (2, 1) if mode == FORWARD else (5, 3)
    return itemsize * (maps * map_size + memories * memory_size)


def floor_seconds(parts: tuple[Part, ...], mode: str, dtype: str, rates: Rates) -> float:
    """Each part in turn, its arithmetic hidden behind its traffic or the other way round."""
    itemsize = TORCH_DTYPES[dtype].itemsize
    return sum(
        max(
            count_flops(part, mode) / rates.flops,
            count_bytes(part, mode, itemsize) / rates.bytes,
        )
        for part in parts
    )


TABLE = 2**20  # logits of one product at most, as the PyTorch backend has them


def products(parts: Sequence[Part], mode: str, device: Device) -> Run:
    """Return a run of the matrix products alone, in float32: what no way around the layer can save.

    Blocks are multiplied in tables of the PyTorch backend's size, each by the faster of the two
    libraries that PyTorch has.
    """
    runs = [_products(part, mode, device) for part in parts]
    return lambda: [run() for run in runs]


def _products(part: Part, mode: str, device: Device) -> Run:
    rows = max(1, min(part.queries, TABLE // part.items))
    queries, items = device.ones(rows, part.size), device.ones(part.items, part.size)
    weights = device.ones(rows, part.items)
    forward = [(queries, items.T), (weights, items)]
    # dw = g m' and dq = ds m are as the forward's; w'g and ds'q are like one another
    backward = [*forward, (weights.T.contiguous(), queries), (weights.T.contiguous(), queries)]
    pairs = forward if mode == FORWARD else [*forward, *backward]
    chosen = [(_faster(a, b, device), a, b) for a, b in pairs]
    times = -(-part.queries // rows)

    def run() -> None:
        for _ in range(times):
            for multiply, a, b in chosen:
                multiply(a, b)

    return run


def _faster(a: Tensor, b: Tensor, device: Device) -> Callable[[Tensor, Tensor], Tensor]:
    ways: list[Callable[[Tensor, Tensor], Tensor]] = [torch.mm, matmul]
    best = [min(device.seconds(lambda: way(a, b)) for _ in range(4)) for way in ways]  # noqa: B023
    return ways[best.index(min(best))]
