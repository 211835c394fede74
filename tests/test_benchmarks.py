"""The benchmarks' own workings: the command end to end, the gate, the counts. Nothing is timed."""

import csv
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import cases, machine, providers
from benchmarks.__main__ import app
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
from benchmarks.providers import PROVIDERS, Layer, Provider, eager, flex, memae
from benchmarks.report import write_report
from benchmarks.results import Findings, Measurement, Results, read_rows
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
from blockmem import blockwise_memory
from blockmem.division import check_fits

CPU = Device("cpu", rate_seconds=0)  # one run each
TINY = next(workload for workload in WORKLOADS if workload.name == "tiny")
VOLUME = Workload("volume", (Part((2, 8, 2, 4, 4), (8, 1, 2, 2), 30),))
SEVERAL = Workload("several", (Part((2, 16, 8, 8), (16, 2, 2), 20), Part((1, 8, 6), (8, 2), 7)))
SMALL_DAAD = ModelWorkload("small-daad", MODES, image_size=128, width=4, batch_cpu=2)
RUNNER = CliRunner()


def reasons_against(
    layer: Layer, workload: Workload | ModelWorkload, mode: str, limit: float = FACTOR
) -> str:
    case = make_case(workload, "float32", CPU)
    return refusal(excess(case.errors(layer, mode, False), case.yardstick(mode, False)), limit)


def test_command_measures_and_plots(tmp_path: Path) -> None:
    out, page = tmp_path / "cpu.csv", tmp_path / "docs" / "page.md"
    names = ("eager", "blockmem-torch", "blockmem-triton")
    chosen = [argument for name in names for argument in ("--provider", name)]
    arguments = ["--device", "cpu", "--quick", "--workload", "tin*", *chosen, "--out", str(out)]
    done = RUNNER.invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output

    with out.open(newline="") as file:
        header = next(csv.reader(file))
    assert ", ".join(header) == (
        "workload, provider, device, device_name, dtype, mode, metric, statistic, value, unit, "
        "note, torch, triton, commit, date"
    )
    findings = Findings(read_rows(out))
    for mode in MODES:
        for provider in ("eager", "blockmem-torch"):
            key = ("tiny", provider, "float32", mode)
            times = [findings.value(*key, "time", name) for name in ("q20", "median", "q80")]
            assert None not in times
            assert 0 < times[0] <= times[1] <= times[2]
            assert findings.value(*key, "peak_memory", "peak") > 0
            assert findings.value(*key, "roofline", "share") > 0
            assert 0 < findings.value(*key, "error", "output") < 1e-6
        ours = ("tiny", "blockmem-torch", "float32", mode)
        assert findings.value(*ours, "ratio_eager", "median") > 0
        assert findings.value(*ours, "ratio_eager", "peak_memory") > 0
        if "triton" not in providers_that_run():
            row = findings.row("tiny", "blockmem-triton", "float32", mode, "time", "median")
            assert row is not None
            assert not row.value
            assert "triton" in row.note

    arguments = ["plot", str(out), "--page", str(page)]
    done = RUNNER.invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "`tiny`" in page.read_text()
    assert "../cpu-float32-ratio.png" in page.read_text()
    assert (tmp_path / "cpu-float32-ratio.png").stat().st_size > 0


def providers_that_run() -> set[str]:
    """The library's backends on a CPU, by asking it."""
    found = set()
    for backend in ("torch", "triton"):
        try:
            blockwise_memory(torch.ones(1, 16, 1), torch.ones(16, 16), (16, 1), backend=backend)
        except (ValueError, RuntimeError):
            continue
        found.add(backend)
    return found


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--provider", "best", "expected one of eager, compile"),
        ("--dtype", "int8", "expected one of float32"),
        ("--mode", "backward", "expected one of forward"),
        ("--workload", "resnet*", "daad-level1"),
        ("--device", "tpu", "expected auto, cpu or cuda"),
    ],
)
def test_command_says_what_it_expected(option: str, value: str, said: str) -> None:
    done = RUNNER.invoke(app, [option, value], env={"COLUMNS": "400"})
    assert done.exit_code == 2
    assert said in done.output


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
    for name in ("eager", "memae", "blockmem-torch"):
        provider = PROVIDERS[name]
        errors = case.errors(provider.build(CPU), mode, provider.renormalize)
        yardstick = case.yardstick(mode, provider.renormalize)
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
    assert not excess(case.errors(eager, TRAINING, False), case.yardstick(TRAINING, False))
    # Gradients of all blocks are compared all the same: those outside the sample must be zero
    assert (
        case.errors(lambda *given: eager(*given) + 1e-3 * given[0], TRAINING, False)["grad_x"] > 0
    )


def selection(provider: str, *, workload: Workload = TINY, mode: str = FORWARD) -> Selection:
    return Selection([workload], [provider], ["float32"], [mode], budget=0.01)


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
    assert {len(s) for s in interleave({"a": runs["a"]}, clock, 0.0).seconds.values()} == {3}


def test_statistics() -> None:
    assert summary([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == pytest.approx(
        {"median": 3.5, "q20": 2.0, "q80": 5.0}
    )
    assert ratios([1.0, 6.0], [2.0, 3.0]) == [0.5, 2.0]


def test_results_keep_what_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    results = Results(path, CPU)
    time = Measurement("time", "median", 2.0, "ms", "3 runs")
    results.add("tiny", "blockmem-torch", "float32", FORWARD, [time])
    results.add("tiny", "eager", "float32", FORWARD, [time])
    results.add("daad-level1", "eager", "float32", FORWARD, [time])
    before = path.read_bytes()
    again = Results(path, CPU)
    again.add("tiny", "eager", "float32", FORWARD, [Measurement("time", "median", 1 / 3, "ms")])
    # In the order of the tables, whatever the order of measuring
    assert [(row.workload, row.provider, row.value) for row in read_rows(path)] == [
        ("daad-level1", "eager", "2"),
        ("tiny", "eager", "0.333333"),
        ("tiny", "blockmem-torch", "2"),
    ]
    again.add("tiny", "eager", "float32", FORWARD, [time])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_report_shows_what_is_lost(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.csv", CPU)
    for provider, ratio in (("compile", 0.5), ("blockmem-torch", 1.25)):
        rows = [
            Measurement("error", "output", 3e-7, "relative", "3 times eager's"),
            Measurement("time", "median", 8.0, "ms"),
            Measurement("ratio_eager", "median", ratio, "1"),
            Measurement("ratio_eager", "peak_memory", 1.0, "1"),
        ]
        results.add("tiny", provider, "float32", FORWARD, rows)
    refused = Measurement("time", "median", None, "ms", "no such thing")
    results.add("tiny", "flex", "float32", FORWARD, [refused])
    page = tmp_path / "page.md"
    write_report([results.path], page)
    text = page.read_text(encoding="utf-8")
    times = "\N{MULTIPLICATION SIGN}"
    assert f"| `tiny` | 8 · 0.50{times} | — | 8 · 1.25{times} ▲ |" in text
    assert f"blockmem-torch`, float32, forward: slower than eager in `tiny` (1.25{times})" in text
    assert "more memory than eager in" not in text
    assert "`compile`: `tiny` float32 forward output (3 times eager's)" in text
    assert "- `flex`: no such thing (every case)" in text
    drawn = (tmp_path / "results-float32-ratio.png").read_bytes()
    write_report([results.path], page)
    assert page.read_text(encoding="utf-8") == text
    assert (tmp_path / "results-float32-ratio.png").read_bytes() == drawn
