"""The run: every case through the gate, its memory measured, its times taken, its rows written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.cases import AnyWorkload, Case, make_case
from benchmarks.devices import Device, Run, memory_limit
from benchmarks.gate import FACTOR, RIVAL_FACTOR, Errors, excess, refusal
from benchmarks.measure import interleave, ratios, summary
from benchmarks.memory import MemoryMeter
from benchmarks.providers import PROVIDERS, Provider, reason
from benchmarks.results import MACHINE, Measurement, Results
from benchmarks.roofline import Rates, floor_seconds, measure_rates
from benchmarks.workloads import Workload

MIB = 2**20
BASELINES = {"eager": "ratio_eager", "compile": "ratio_compile"}


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


def run_suite(selection: Selection, device: Device, results: Results) -> Iterator[list[Outcome]]:
    """Measure the cases of `selection` one by one into `results`; yield each as it is done."""
    rates: dict[str, Rates] = {}
    case: Case | None = None
    made_for = None
    with MemoryMeter(device) as meter, memory_limit(device):
        for workload, dtype, mode in selection.cases():
            if dtype not in rates:
                rates[dtype] = measure_rates(device, dtype)
                compiler = Measurement(
                    "compile", "mode", None, "", device.compile_mode or "default"
                )
                results.add(MACHINE, "torch", dtype, "", [*_rate_rows(rates[dtype]), compiler])
            providers = [PROVIDERS[name] for name in selection.providers]
            with device.precision(dtype):
                try:
                    if (workload, dtype) != made_for:
                        case = None  # before the next is made, for its memory
                        device.free()
                        case, made_for = make_case(workload, dtype, device), (workload, dtype)
                    assert case is not None
                    yardsticks = {
                        renormalize: case.yardstick(mode, renormalize)
                        for renormalize in {provider.renormalize for provider in providers}
                    }
                except RuntimeError as error:  # not even the inputs, or their float64 truth, fit
                    outcomes = [Outcome(provider.name, reason(error)) for provider in providers]
                else:
                    # Bound to no name, which would keep this case alive beside the next
                    outcomes = Measuring(
                        workload, dtype, mode, case, yardsticks, device, meter
                    ).outcomes(providers, selection.budget)
            floor = None
            if isinstance(workload, Workload):
                floor = floor_seconds(workload.parts, mode, dtype, rates[dtype])
            for outcome in outcomes:
                rows = _rows(outcome, outcomes, floor, case.images if case else None)
                results.add(workload.name, outcome.provider, dtype, mode, rows)
            yield outcomes


@dataclass
class Measuring:
    """One case, in one mode."""

    workload: AnyWorkload
    dtype: str
    mode: str
    case: Case
    yardsticks: dict[bool, Errors]
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
        times = interleave(runs, self.device.seconds, budget)
        for outcome in outcomes:
            outcome.seconds = times.seconds.get(outcome.provider, [])
            if outcome.provider in times.failures:
                outcome.refusal = reason(times.failures[outcome.provider])
        return outcomes

    def _examine(self, provider: Provider) -> tuple[Outcome, Run | None]:
        """Gate and memory. The gate is also what makes a provider compile, and be warm."""
        outcome = Outcome(provider.name)
        try:
            layer = provider.build(self.device)
            outcome.errors = self.case.errors(layer, self.mode, provider.renormalize)
            run = self.case.runner(layer, self.mode)
        except Exception as error:  # whatever it is, it is the reason, and the others go on
            outcome.refusal = reason(error)
            return outcome, None
        if provider.name == "eager":  # comes first
            for kind, allowed in self.yardsticks[False].items():
                # Of a whole map, whose products other kernels may multiply, if they are less exact
                self.yardsticks[False][kind] = max(allowed, outcome.errors[kind])
        outcome.excess = excess(outcome.errors, self.yardsticks[provider.renormalize])
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


def _rate_rows(rates: Rates) -> list[Measurement]:
    return [
        Measurement("roofline", "matmul_rate", rates.flops / 1e9, "GFLOP/s"),
        Measurement("roofline", "copy_rate", rates.bytes / 1e9, "GB/s"),
    ]


def _rows(
    outcome: Outcome, outcomes: Sequence[Outcome], floor: float | None, images: int | None
) -> list[Measurement]:
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
    if floor is not None:
        rows.append(Measurement("roofline", "share", floor / times["median"], "1"))
    memory = None if outcome.memory is None else outcome.memory / MIB
    rows.append(Measurement("peak_memory", "peak", memory, "MiB", outcome.memory_refusal))
    for other in outcomes:
        metric = BASELINES.get(other.provider)
        if metric is None or other is outcome or not other.seconds:
            continue
        shares = summary(ratios(outcome.seconds, other.seconds))
        rows += [Measurement(metric, name, share, "1") for name, share in shares.items()]
        if outcome.memory is not None and other.memory:
            share = outcome.memory / other.memory
            rows.append(Measurement(metric, "peak_memory", share, "1"))
    return rows
