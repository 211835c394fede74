"""Peak memory of a case, on a CPU in a process of its own."""

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType

import torch

from benchmarks.cases import AnyWorkload, make_case
from benchmarks.devices import Device, Run, memory_limit
from benchmarks.providers import PROVIDERS, Provider, reason


class MemoryMeter:
    """Measures on a GPU in this process, by its allocator's statistics; on a CPU in another one.

    There the profiler that counts allocations, and a case too large for the machine, leave the
    process that takes times alone. The other process serves all cases, and is replaced if it dies.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "MemoryMeter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def extra_bytes(
        self, workload: AnyWorkload, provider: Provider, dtype: str, mode: str, run: Run
    ) -> int:
        """Bytes beyond inputs and outputs. RuntimeError says why there is no such number."""
        if self.device.is_cuda:
            return self.device.extra_bytes(run)
        if self._pool is None:
            # Before torch is loaded there: its profiler announces each start and stop on stderr,
            # and warns of each block that was allocated before it started
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        arguments = (workload, provider.name, dtype, mode, self.device, torch.get_num_threads())
        try:
            return self._pool.submit(_extra_bytes, *arguments).result()
        except BrokenProcessPool:
            self._close()
            raise RuntimeError("its process was killed, probably for want of memory") from None

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _extra_bytes(
    workload: AnyWorkload, name: str, dtype: str, mode: str, device: Device, threads: int
) -> int:
    torch.set_num_threads(threads)
    torch._dynamo.reset()  # this process serves all cases, and recompiles a function 8 times only
    provider = PROVIDERS[name]
    try:
        with memory_limit(device), device.precision(dtype):
            run = make_case(workload, dtype, device).runner(provider.build(device), mode)
            if provider.compiles:
                run()
            return device.extra_bytes(run)
    except Exception as error:  # as text: not every exception survives the way back
        raise RuntimeError(reason(error)) from None
