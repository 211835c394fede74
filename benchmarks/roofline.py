"""The roofline: the least time that a case's products and bytes can take on this machine."""

from dataclasses import dataclass

import torch

from benchmarks.devices import TORCH_DTYPES, Device, Run
from benchmarks.workloads import FORWARD, Part
from blockmem.backends.torch.products import matmul


@dataclass(frozen=True)
class Rates:
    """What the machine did at the start of the run, for one dtype."""

    flops: float  # multiplications and additions a second of a large matrix product
    bytes: float  # bytes a second, read and written, of a large copy


def measure_rates(device: Device, dtype: str) -> Rates:
    torch_dtype = TORCH_DTYPES[dtype]
    size = device.matmul_size
    a, b = (torch.randn(size, size, device=device.torch).to(torch_dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.ones(device.copy_bytes, dtype=torch.int8, device=device.torch)
    target = torch.empty_like(source)
    with device.precision(dtype):
        # Of two libraries, where PyTorch has two, the faster: what the machine can do
        seconds = min(
            _fastest(device, lambda: torch.mm(a, b, out=product)),
            _fastest(device, lambda: matmul(a, b)),
        )
    copy = _fastest(device, lambda: target.copy_(source))
    return Rates(flops=2 * size**3 / seconds, bytes=2 * device.copy_bytes / copy)


def _fastest(device: Device, run: Run) -> float:
    seconds: list[float] = []
    device.seconds(run)
    while not seconds or sum(seconds) < device.rate_seconds:
        seconds.append(device.seconds(run))
    return min(seconds)


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
