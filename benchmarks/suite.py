"""The run: every case through the gate, its memory measured, its times taken, its rows written."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from types import TracebackType

import torch

from benchmarks.cases import Case, make_case
from benchmarks.machine import Device, Others, Rates, Run, measure_rates, memory_limit
from benchmarks.measure import (
    FACTOR,
    MODEL_ROUNDS,
    RIVAL_FACTOR,
    Errors,
    Times,
    excess,
    interleave,
    ratios,
    refusal,
    summary,
)
from benchmarks.providers import DEFAULT, PROVIDERS, Formula, Provider, reason
from benchmarks.results import MACHINE, Findings, Measurement, Results
from benchmarks.workloads import AnyWorkload, Workload, products

MIB = 2**20
BASELINES = ("eager", "compile")  # beside which all are set; ours beside every other one too
PRODUCTS = "products"  # timed as a provider is


@dataclass(frozen=True)
class Selection:
    """What to measure, and for how many seconds each case."""

    workloads: Sequence[AnyWorkload]
    providers: Sequence[str]
    dtypes: Sequence[str]
    modes: Sequence[str]
    budget: float

    def cases(self) -> list[tuple[AnyWorkload, str, str]]:
        return [
            (workload, dtype, mode)
            for workload in self.workloads
            for dtype in self.dtypes
            for mode in workload.modes
            if mode in self.modes
        ]


@dataclass
class Outcome:
    """What a case says of one provider: its times, or why there are none."""

    provider: str
    refusal: str = ""
    errors: Errors = field(default_factory=dict)
    excess: Errors = field(default_factory=dict)
    memory: int | None = None
    memory_refusal: str = ""
    seconds: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    others: float | None = None
    """Cores that other programs used meanwhile."""


def run_suite(selection: Selection, device: Device, results: Results) -> Iterator[list[Outcome]]:
    """Measure the cases of `selection` one by one into `results`; yield each as it is done."""
    rated: set[str] = set()
    case: Case | None = None
    made_for = None
    with MemoryMeter(device) as meter, memory_limit(device):
        for workload, dtype, mode in selection.cases():
            if dtype not in rated:
                rates = _best(measure_rates(device, dtype), results, dtype)
                rated.add(dtype)
                compiler = Measurement(
                    "compile", "mode", None, "", device.compile_mode or "default"
                )
                results.add(MACHINE, "torch", dtype, "", [*_rate_rows(rates), compiler])
            providers = [PROVIDERS[name] for name in selection.providers]
            with device.precision(dtype):
                try:
                    if (workload, dtype) != made_for:
                        case = None  # before the next is made, for its memory
                        device.free()
                        case, made_for = make_case(workload, dtype, device), (workload, dtype)
                    assert case is not None
                    yardsticks = {DEFAULT: case.yardstick(mode, DEFAULT)}
                except RuntimeError as error:  # not even the inputs, or their float64 truth, fit
                    outcomes = [Outcome(provider.name, reason(error)) for provider in providers]
                else:
                    # Bound to no name, which would keep this case alive beside the next
                    outcomes = Measuring(
                        workload, dtype, mode, case, yardsticks, device, meter
                    ).outcomes(providers, selection.budget)
            for outcome in outcomes:
                rows = _rows(outcome, outcomes, case.images if case else None)
                results.add(workload.name, outcome.provider, dtype, mode, rows)
            yield outcomes


# Memory: on a CPU in a process of its own


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


# A case


@dataclass
class Measuring:
    """One case, in one mode."""

    workload: AnyWorkload
    dtype: str
    mode: str
    case: Case
    yardsticks: dict[Formula, Errors]
    device: Device
    meter: MemoryMeter

    def outcomes(self, providers: Sequence[Provider], budget: float) -> list[Outcome]:
        torch._dynamo.reset()  # code compiled for other shapes: no use, and there is a limit to it
        outcomes, runs = [], {}
        for provider in providers:
            outcome, run = self._examine(provider)
            outcomes.append(outcome)
            if run is not None:
                runs[provider.name] = run
        others = Others()
        times = self._times(runs, budget)
        cores = others.cores()
        for outcome in outcomes:
            outcome.seconds = times.seconds.get(outcome.provider, [])
            outcome.products = times.seconds.get(PRODUCTS, [])
            outcome.others = cores
            if outcome.provider in times.failures:
                outcome.refusal = reason(times.failures[outcome.provider])
        return outcomes

    def _times(self, runs: dict[str, Run], budget: float) -> Times:
        """Time the providers, and beside them, on a CPU, the products that none can save."""
        if not isinstance(self.workload, Workload):
            return interleave(runs, self.device.seconds, budget, MODEL_ROUNDS)
        if runs and not self.device.is_cuda and self.dtype == "float32":
            runs = {**runs, PRODUCTS: products(self.workload.parts, self.mode, self.device)}
        return interleave(runs, self.device.seconds, budget)

    def _examine(self, provider: Provider) -> tuple[Outcome, Run | None]:
        """Gate and memory. The gate is also what makes a provider compile, and be warm."""
        outcome = Outcome(provider.name)
        try:
            layer = provider.build(self.device)
            if provider.formula not in self.yardsticks:
                found = self.case.yardstick(self.mode, provider.formula)
                self.yardsticks[provider.formula] = found
            outcome.errors = self.case.errors(layer, self.mode, provider.formula)
            run = self.case.runner(layer, self.mode)
        except Exception as error:  # whatever it is, it is the reason, and the others go on
            outcome.refusal = reason(error)
            return outcome, None
        if provider.name == "eager":  # comes first
            for kind, allowed in self.yardsticks[DEFAULT].items():
                # Of a whole map, whose products other kernels may multiply, if they are less exact
                self.yardsticks[DEFAULT][kind] = max(allowed, outcome.errors[kind])
        outcome.excess = excess(outcome.errors, self.yardsticks[provider.formula])
        outcome.refusal = refusal(outcome.excess, FACTOR if provider.ours else RIVAL_FACTOR)
        if outcome.refusal:
            return outcome, None
        if isinstance(self.workload, Workload) and len(self.workload.parts) > 1:
            outcome.memory_refusal = "several maps: what is kept of one hides the peak of another"
            return outcome, run
        try:
            outcome.memory = self.meter.extra_bytes(
                self.workload, provider, self.dtype, self.mode, run
            )
        except RuntimeError as error:
            outcome.memory_refusal = reason(error)
        return outcome, run


def _best(rates: Rates, results: Results, dtype: str) -> Rates:
    """Take what an earlier run measured of this machine where that was more: it can do that."""
    mine = [row for row in results.rows if row.device_name == results.device.name]
    before = Findings(mine).rates(dtype)
    return Rates(max(rates.flops, before.flops), max(rates.bytes, before.bytes))


def _rate_rows(rates: Rates) -> list[Measurement]:
    return [
        Measurement("roofline", "matmul_rate", rates.flops / 1e9, "GFLOP/s"),
        Measurement("roofline", "copy_rate", rates.bytes / 1e9, "GB/s"),
    ]


def _rows(outcome: Outcome, outcomes: Sequence[Outcome], images: int | None) -> list[Measurement]:
    remarks = {kind: f"{ratio:.2g} times eager's" for kind, ratio in outcome.excess.items()}
    rows = [
        Measurement("error", kind, error, "relative", remarks.get(kind, ""))
        for kind, error in outcome.errors.items()
    ]
    if outcome.refusal:
        return [*rows, Measurement("time", "median", None, "ms", outcome.refusal)]
    note = f"{len(outcome.seconds)} runs" + (f", batch {images}" if images else "")
    times = summary(outcome.seconds)
    rows += [Measurement("time", name, 1000 * t, "ms", note) for name, t in times.items()]
    if images:
        rows.append(Measurement("time", "images_per_second", images / times["median"], "1/s"))
    if outcome.products:
        shares = summary(ratios(outcome.seconds, outcome.products))
        rows += [Measurement("ratio_products", name, share, "1") for name, share in shares.items()]
    if outcome.others is not None:
        rows.append(Measurement("load", "others", outcome.others, "cores"))
    memory = None if outcome.memory is None else outcome.memory / MIB
    rows.append(Measurement("peak_memory", "peak", memory, "MiB", outcome.memory_refusal))
    for other in outcomes:
        ours = PROVIDERS[outcome.provider].ours and not PROVIDERS[other.provider].ours
        if other is outcome or not other.seconds or not (ours or other.provider in BASELINES):
            continue
        metric = f"ratio_{other.provider}"
        shares = summary(ratios(outcome.seconds, other.seconds))
        rows += [Measurement(metric, name, share, "1") for name, share in shares.items()]
        if outcome.memory is not None and other.memory:
            share = outcome.memory / other.memory
            rows.append(Measurement(metric, "peak_memory", share, "1"))
    return rows
