"""How the benchmarks measure: cases, the gate, turns, counts. Nothing is timed."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks import cases, host, machine, providers, suite, workloads
from benchmarks.cases import make_case
from benchmarks.machine import Device, Rates
from benchmarks.measure import (
    FACTOR,
    RIVAL_FACTOR,
    excess,
    interleave,
    ratios,
    refusal,
    summary,
)
from benchmarks.providers import DEFAULT, PROVIDERS, Layer, Provider, eager, flex, memae
from benchmarks.results import Findings, Results, read_rows
from benchmarks.suite import Selection, run_suite
from benchmarks.workloads import (
    FORWARD,
    MODES,
    TRAINING,
    WORKLOADS,
    ModelWorkload,
    Part,
    Workload,
    count_bytes,
    count_flops,
    floor_seconds,
)
from blockmem.backends.torch import products
from blockmem.backends.triton.launcher import Launcher
from blockmem.division import check_fits

CPU = Device("cpu", rate_seconds=0)  # one run each
TINY = next(workload for workload in WORKLOADS if workload.name == "tiny")
VOLUME = Workload("volume", (Part((2, 8, 2, 4, 4), (8, 1, 2, 2), 30),))
SEVERAL = Workload("several", (Part((2, 16, 8, 8), (16, 2, 2), 20), Part((1, 8, 6), (8, 2), 7)))
SMALL_DAAD = ModelWorkload("small-daad", MODES, image_size=128, width=4, batch_cpu=2)


def reasons_against(
    layer: Layer, workload: Workload | ModelWorkload, mode: str, limit: float = FACTOR
) -> str:
    case = make_case(workload, "float32", CPU)
    return refusal(excess(case.errors(layer, mode, DEFAULT), case.yardstick(mode, DEFAULT)), limit)


def has_onednn() -> bool:
    a = torch.ones(256, 256)
    return products.onednn_takes(a, a)


def test_every_workload_is_a_layer_that_can_be() -> None:
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)
    parts = {w.name: w.parts for w in WORKLOADS if isinstance(w, Workload)}
    for part in (part for several in parts.values() for part in several):
        check_fits(part.map_shape, part.block_shape)
    # The sizes the paper's network leads to, and MemAE's
    levels = parts["daad-levels"]
    assert [(p.size, p.queries, p.items) for p in levels] == [
        (size, 512, 500) for size in (16384, 8192, 4096, 2048)
    ]
    assert [(p.size, p.queries) for p in parts["memae-2x-n2000"]] == [(64, 131072)]
    assert [(p.size, p.queries) for p in parts["hf2vad"]] == [(16384, 128)]
    assert [(p.size, p.queries) for p in parts["scaling-q2048-n500-d64"]] == [(64, 2048)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workload", [TINY, VOLUME, SEVERAL], ids=lambda workload: workload.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_providers_agree(workload: Workload, mode: str, dtype: str) -> None:
    case = make_case(workload, dtype, CPU)
    for name in ("eager", "memae", "blockmem-torch", "eager-onednn", "memae-dot"):
        if name == "eager-onednn" and (dtype != "float32" or not has_onednn()):
            continue
        provider = PROVIDERS[name]
        errors = case.errors(provider.build(CPU), mode, provider.formula)
        yardstick = case.yardstick(mode, provider.formula)
        assert set(errors) == {"output"} | (
            {"grad_x", "grad_memory"} if mode == TRAINING else set()
        )
        assert not excess(errors, yardstick), name


def test_flex_is_the_same_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """With attention spelled out, since on a CPU FlexAttention has no gradients."""

    def attention(q, k, v, *, scale, return_lse, score_mod=None):
        scores = scale * q @ k.mT
        if score_mod is not None:
            rows, items = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
            scores = score_mod(scores, torch.tensor(0), torch.tensor(0), rows, items)
        return torch.softmax(scores, dim=-1) @ v, torch.logsumexp(scores, dim=-1)

    monkeypatch.setattr(providers, "flex_attention", attention)
    assert not reasons_against(flex, TINY, TRAINING, RIVAL_FACTOR)


def _scaled(x, memory, block_shape, threshold):
    return eager(x, memory, block_shape, threshold) * (1 + 1e-5)


def _without_shrinkage(x, memory, block_shape, threshold):
    return eager(x, memory, block_shape, 0.0)


def _one_block_missing(x, memory, block_shape, threshold):
    y = eager(x, memory, block_shape, threshold).clone()
    y[(0, slice(0, block_shape[0]), *(slice(0, size) for size in block_shape[1:]))] = 0
    return y


def _not_a_number(x, memory, block_shape, threshold):
    return eager(x, memory, block_shape, threshold) * math.nan


def _no_gradient_through_addressing(x, memory, block_shape, threshold):
    y = eager(x, memory, block_shape, threshold)
    return y.detach() + 0.5 * (y - y.detach())


@pytest.mark.parametrize(
    ("wrong", "mode", "kinds"),
    [
        (_scaled, FORWARD, ["output"]),
        (_without_shrinkage, FORWARD, ["output"]),
        (memae, FORWARD, ["output"]),  # it renormalises
        (_one_block_missing, FORWARD, ["output"]),
        (_not_a_number, FORWARD, ["output"]),
        (_no_gradient_through_addressing, TRAINING, ["grad_x", "grad_memory"]),
    ],
)
def test_gate_catches_a_wrong_provider(wrong: Layer, mode: str, kinds: list[str]) -> None:
    said = reasons_against(wrong, TINY, mode)
    assert said.startswith("failed the gate: ")
    for kind in ("output", "grad_x", "grad_memory"):
        assert (f"error of {kind} is" in said) == (kind in kinds)


def test_gate_of_a_whole_network() -> None:
    assert not reasons_against(PROVIDERS["blockmem-torch"].build(CPU), SMALL_DAAD, FORWARD)
    for mode in MODES:
        assert "output" in reasons_against(lambda *given: 1.1 * eager(*given), SMALL_DAAD, mode)


def test_gate_is_stricter_with_us_than_with_rivals() -> None:
    found = excess({"output": 3e-7, "grad_x": 1e-7}, {"output": 1e-7, "grad_x": 1e-7})
    assert set(found) == {"output"}
    assert "3 times eager's" in refusal(found, FACTOR)
    assert refusal(found, RIVAL_FACTOR) == ""


def test_gate_samples_large_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "SAMPLE", 5)
    case = make_case(TINY, "float32", CPU)
    assert not excess(case.errors(eager, TRAINING, DEFAULT), case.yardstick(TRAINING, DEFAULT))
    # Gradients of all blocks are compared all the same: those outside the sample must be zero
    assert (
        case.errors(lambda *given: eager(*given) + 1e-3 * given[0], TRAINING, DEFAULT)["grad_x"] > 0
    )


def selection(provider: str, *, workload: Workload = TINY, mode: str = FORWARD) -> Selection:
    return Selection([workload], [provider], ["float32"], [mode], budget=0.01)


def test_a_formula_that_cannot_be_compared_is_refused_alone(tmp_path: Path) -> None:
    """A network with dot products would be another one; too few blocks may be clear of the threshold."""
    results = Results(tmp_path / "results.csv", CPU)
    chosen = Selection(
        [SMALL_DAAD], ["blockmem-torch", "memae-dot"], ["float32"], [FORWARD], budget=0.01
    )
    ((ours, dot),) = run_suite(chosen, CPU, results)
    assert ours.seconds
    assert dot.refusal == "with dot products it would be another network"


def test_a_failing_provider_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROVIDERS, "wrong", Provider("wrong", lambda device: _scaled))
    results = Results(tmp_path / "results.csv", CPU)
    ((outcome,),) = run_suite(selection("wrong"), CPU, results)
    assert not outcome.seconds
    rows = [row for row in read_rows(results.path) if row.provider == "wrong"]
    assert [(row.metric, bool(row.value)) for row in rows] == [("error", True), ("time", False)]
    assert rows[1].note.startswith("failed the gate: the error of output")


def test_eager_on_the_whole_map_is_a_yardstick_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its products may be less exact there than on the sample."""
    for name in ("eager", "blockmem-torch"):
        monkeypatch.setitem(PROVIDERS, name, Provider(name, lambda device: _scaled))
    chosen = Selection([SEVERAL], ["eager", "blockmem-torch"], ["float32"], [FORWARD], budget=0.01)
    (outcomes,) = run_suite(chosen, CPU, Results(tmp_path / "results.csv", CPU))
    assert all(outcome.seconds for outcome in outcomes)


def test_a_case_that_does_not_fit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is limited on Linux only")
    monkeypatch.setattr(cases, "SAMPLE", 8)
    monkeypatch.setattr(machine, "available_memory", lambda: 2**30)
    large = Workload("large", (Part((1, 64, 256, 256), (64, 1, 1), 8192),))  # 2 GB of weights
    results = Results(tmp_path / "results.csv", CPU)
    ((outcome,),) = run_suite(selection("eager", workload=large), CPU, results)
    assert not outcome.seconds
    assert outcome.refusal.startswith("out of memory: can't allocate memory")
    (row,) = (row for row in read_rows(results.path) if row.provider == "eager")
    assert row.note == outcome.refusal


def test_peak_memory_counts_what_lives_at_once() -> None:
    def run() -> torch.Tensor:
        first = torch.ones(2**18)  # 1 MiB, alive until the end
        return first.exp().add(1)  # 1 MiB in between, and 1 MiB returned

    # Numbers such as the 1 that is added are tensors for a moment too
    assert CPU.extra_bytes(run) == pytest.approx(2 * 2**20, abs=100)


def test_roofline_counts_by_hand() -> None:
    part = Part((2, 4, 6, 6), (4, 3, 2), items=5)
    assert (part.queries, part.size) == (12, 24)
    assert count_flops(part, FORWARD) == 2 * (2 * 12 * 5 * 24)
    assert count_flops(part, TRAINING) == 6 * (2 * 12 * 5 * 24)
    assert count_bytes(part, FORWARD, 4) == 4 * (2 * 288 + 120)
    assert count_bytes(part, TRAINING, 2) == 2 * (5 * 288 + 3 * 120)
    # 5760 operations and 2784 bytes: at one a second the operations take longer
    assert floor_seconds((part,), FORWARD, "float32", Rates(1.0, 1.0)) == 5760
    assert floor_seconds((part, part), FORWARD, "float32", Rates(10.0, 1.0)) == 2 * 2784


def test_a_machine_keeps_the_best_it_has_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run beside other programs would else say that earlier cases did more than can be done."""
    results = Results(tmp_path / "results.csv", CPU)
    found = iter([Rates(5e9, 4e9), Rates(2e9, 8e9)])
    monkeypatch.setattr(suite, "measure_rates", lambda *given: next(found))
    for _ in range(2):
        list(run_suite(selection("eager"), CPU, results))
    rates = {row.statistic: row.value for row in results.rows if row.metric == "roofline"}
    assert (rates["matmul_rate"], rates["copy_rate"]) == ("5", "8")
    findings = Findings(results.rows)
    floor = floor_seconds(TINY.parts, FORWARD, "float32", Rates(5e9, 8e9))
    time = findings.value("tiny", "eager", "float32", FORWARD, "time", "median")
    assert findings.share("tiny", "eager", "float32", FORWARD) == pytest.approx(1000 * floor / time)
    assert findings.share("own", "eager", "float32", FORWARD) is None


def test_providers_take_turns() -> None:
    order: list[str] = []

    def clock(run):
        order.append(run())
        return 0.1

    def fail() -> str:
        raise MemoryError("no more")

    runs = {"a": lambda: "a", "bad": fail, "b": lambda: "b"}
    times = interleave(runs, clock, budget=1.0)
    assert {name: len(seconds) for name, seconds in times.seconds.items()} == {"a": 5, "b": 5}
    assert set(times.failures) == {"bad"}
    assert "".join(order) == "abbabaabba"
    assert {len(s) for s in interleave({"a": runs["a"]}, clock, 0.0).seconds.values()} == {5}
    assert {len(s) for s in interleave({"a": runs["a"]}, clock, 0.0, 11).seconds.values()} == {11}


@pytest.mark.parametrize("mode", MODES)
def test_products_are_as_many_as_are_counted(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def count(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found.append(2 * a.shape[0] * a.shape[1] * b.shape[1])
        return a.new_empty(a.shape[0], b.shape[1])

    monkeypatch.setattr(workloads, "_faster", lambda *given: count)
    monkeypatch.setattr(workloads, "TABLE", 4 * 20)  # so that there are several tables
    parts = (*TINY.parts, *VOLUME.parts)
    workloads.products(parts, mode, CPU)()
    assert sum(found) == sum(count_flops(part, mode) for part in parts)


def test_others_are_what_all_cores_did_less_what_this_process_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = iter([(10.0, 100.0, 5.0), (14.0, 109.0, 8.0), None])
    monkeypatch.setattr(machine, "_cpu_seconds", lambda: next(readings))
    assert machine.Others().cores() == (9 - 3) / 4
    assert machine.Others().cores() is None


@pytest.mark.parametrize(("name", "forward", "backward"), [("small", 2, 4), ("large", 4, 6)])
def test_host_time_is_that_of_the_triton_backend(
    name: str, forward: int, backward: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many kernels as are launched on a GPU are asked for, and none runs."""
    asked: list[object] = []
    monkeypatch.setattr(host, "_nothing", lambda *given, **named: asked.append(given) or None)
    monkeypatch.setattr(host, "BLOCK", 1)
    for mode, kernels in ((FORWARD, forward), (TRAINING, forward + backward)):
        run = host._runs(host.PARTS[f"host-{name}"], mode)["blockmem-triton"]
        with host.without_launches():
            run()
            asked.clear()
            run()
        launched = [given for given in asked if isinstance(given[0], Launcher)]
        assert len(launched) == kernels


def test_statistics() -> None:
    assert summary([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == pytest.approx(
        {"median": 3.5, "q20": 2.0, "q80": 5.0}
    )
    assert ratios([1.0, 6.0], [2.0, 3.0]) == [0.5, 2.0]
