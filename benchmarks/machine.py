"""The machine: clocks, memory counters, precision, how much fits, and its rates."""

import contextlib
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from blockmem.backends.torch.products import matmul
from daad.machine import available_memory, proc_value, processor_name

Run = Callable[[], object]

TORCH_DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,  # float32 tensors, products in TensorFloat-32
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SHARE_OF_MEMORY = 0.9


@dataclass(frozen=True)
class Device:
    """`cpu` or `cuda`, with all that measuring on it needs."""

    type: str
    rate_seconds: float = 0.5  # spent on each rate of the roofline, after one run to warm up

    @property
    def torch(self) -> torch.device:
        return torch.device(self.type)

    @property
    def is_cuda(self) -> bool:
        return self.type == "cuda"

    @property
    def name(self) -> str:
        if self.is_cuda:
            return torch.cuda.get_device_name()
        return f"{processor_name()}, {torch.get_num_threads()} threads"

    @property
    def default_dtypes(self) -> tuple[str, ...]:
        return ("float32", "bfloat16") if self.is_cuda else ("float32",)

    @property
    def compile_mode(self) -> str | None:
        """Tuned as far as it goes on a GPU, but for CUDA graphs, which no provider gets."""
        return "max-autotune-no-cudagraphs" if self.is_cuda else None

    @property
    def matmul_size(self) -> int:
        return 8192 if self.is_cuda else 2048

    @property
    def copy_bytes(self) -> int:
        return 2**30 if self.is_cuda else 2**28

    def ones(self, *shape: int) -> Tensor:
        return torch.ones(shape, device=self.torch)

    def seconds(self, run: Run) -> float:
        """How long one run takes. Its results are freed after the clock has stopped."""
        if self.is_cuda:
            return _seconds_cuda(run)
        start = time.perf_counter()
        result = run()
        elapsed = time.perf_counter() - start
        del result
        return elapsed

    def extra_bytes(self, run: Run) -> int:
        """Peak memory of one run beyond its inputs and what it returns."""
        return _extra_bytes_cuda(run) if self.is_cuda else _extra_bytes_cpu(run)

    def free(self) -> None:
        """Give back what is no longer referred to."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def precision(self, dtype: str) -> Iterator[None]:
        """Float32 products in TensorFloat-32 for the dtype of that name, else in full."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def _seconds_cuda(run: Run) -> float:
    # Whatever ran before may have left this run's inputs in the cache, or not: now they are not.
    # It also keeps the GPU busy while Python launches the run, as a network around it would.
    torch.empty(2**28, dtype=torch.int8, device="cuda").zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = run()
    end.record()
    end.synchronize()
    del result
    return float(start.elapsed_time(end)) / 1000


def _extra_bytes_cuda(run: Run) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    del result
    return extra


def _extra_bytes_cpu(run: Run) -> int:
    """By PyTorch's own count of what its CPU allocator hands out, as its profiler reports it.

    It is exact and the same in every run: each tensor counts with all its bytes from allocation
    to release, also those that operators and compiled code make inside. The process's resident
    size would be neither, for it moves with the C library's habit of keeping freed memory. What
    MKL and oneDNN pack privately, a few MB for any provider, is not counted.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8"))
    events = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    allocated = [event["args"]["Total Allocated"] for event in events]
    del result
    return int(max(allocated) - allocated[-1])


@contextlib.contextmanager
def memory_limit(device: Device) -> Iterator[None]:
    """On a CPU, allocations beyond what the machine has left raise, where they would be granted
    and the system kill the process once it used them. Linux only; elsewhere nothing changes."""
    if device.is_cuda or sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(SHARE_OF_MEMORY * available_memory()) + _data_bytes()
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process already."""
    return 1024 * int(proc_value("self/status", "VmData").split()[0])


# What else it does


BUSY = 0.15  # cores that others use, from which on a measurement cannot be trusted


class Others:
    """Counts how many cores other programs use, from its making on; None where it cannot be known."""

    def __init__(self) -> None:
        self.before = _cpu_seconds()

    def cores(self) -> float | None:
        if self.before is None:
            return None
        now = _cpu_seconds()
        assert now is not None
        wall, all_cores, own = (end - start for end, start in zip(now, self.before, strict=True))
        return max(0.0, all_cores - own) / wall if wall > 0 else None


def _cpu_seconds() -> tuple[float, float, float] | None:
    """Time, and the seconds that all cores, and this process, have computed; None but on Linux."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _, _, *interrupts = map(int, first.split()[1:9])  # less idle and waiting
    ticks = user + nice + system + sum(interrupts)
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


# Rates


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
