"""What Python costs in a call of the Triton backend, measured on a CPU: launches are taken out.

A call's kernels take less than that on a GPU where maps are small, so Python decides what it costs.
Eager PyTorch is timed beside it as it is, with its arithmetic, on maps that hardly have any.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from benchmarks.machine import Device, Others
from benchmarks.measure import interleave, ratios, summary
from benchmarks.providers import eager
from benchmarks.results import HOSTED, Measurement, Results
from benchmarks.workloads import FORWARD, HOST, MODES, Part
from blockmem import blockwise_memory
from blockmem.backends import choice

PARTS = {
    f"{HOST}small": Part((1, 64, 4, 4), (64, 1, 1), 32),  # blocks that stay on the chip
    f"{HOST}large": Part((1, 64, 8, 8), (64, 4, 4), 32),  # products by the GPU's own library
}
BLOCK = 20  # calls under one reading of the clock


def measure_host(results: Results, budget: float) -> None:
    """Time both regimes, forward and with backward, into `results`."""
    device = Device("cpu")
    for name, part in PARTS.items():
        for mode in MODES:
            runs = _runs(part, mode)
            others = Others()
            with without_launches():
                for run in runs.values():
                    run()
                times = interleave(runs, device.seconds, budget)
            for provider, seconds in times.seconds.items():
                rows = [
                    Measurement("time", key, 1000 * value / BLOCK, "ms", f"{len(seconds)} runs")
                    for key, value in summary(seconds).items()
                ]
                if provider != "eager":
                    shares = summary(ratios(seconds, times.seconds["eager"]))
                    rows += [Measurement("ratio_eager", *one, "1") for one in shares.items()]
                if (cores := others.cores()) is not None:
                    rows.append(Measurement("load", "others", cores, "cores"))
                results.add(name, provider, "float32", mode, rows)


def _runs(part: Part, mode: str) -> dict[str, Callable[[], None]]:
    x, grad = torch.ones(part.map_shape), torch.ones(part.map_shape)
    memory = torch.ones(part.items, part.size)
    if mode != FORWARD:
        x.requires_grad_()
        memory.requires_grad_()

    def repeated(layer: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(BLOCK):
                out = layer()
                if mode != FORWARD:
                    torch.autograd.grad(out, (x, memory), grad)

        return run

    return {
        "eager": repeated(lambda: eager(x, memory, part.block_shape, 1 / part.items)),
        HOSTED: repeated(lambda: blockwise_memory(x, memory, part.block_shape, backend="triton")),
    }


@contextmanager
def without_launches() -> Iterator[None]:
    """Let the Triton backend take maps on the CPU, and start no kernel and no product of its own.

    Its results are arbitrary numbers.
    """
    from blockmem.backends.triton import launch_large, launch_small, launcher, tiles

    plans = (launch_large.plan_for, launch_small.plan_forward, launch_small.plan_backward)
    for plan in plans:
        plan.cache_clear()
    try:
        with (
            mock.patch.object(choice, "unsupported_reason", _nothing),
            mock.patch.object(launcher.Launcher, "__call__", _nothing),
            mock.patch.object(torch, "mm", unmultiplied),
            mock.patch.object(tiles, "family_of", _family),
        ):
            yield
    finally:
        for plan in plans:
            plan.cache_clear()


# Functions, since a mock takes longer than what is measured


def _nothing(*given: object, **named: object) -> None:
    pass


def _family(device: torch.device) -> str:
    return "sm_90"


def unmultiplied(
    a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None, out: Tensor | None = None
) -> Tensor:
    """Return a tensor as `torch.mm` does; its numbers are arbitrary."""
    if out is not None:
        return out
    return a.new_empty(a.shape[0], b.shape[1], dtype=out_dtype)
