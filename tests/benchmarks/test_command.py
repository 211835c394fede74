"""The benchmarks' command end to end, and what it says: CSV, page, figures, terminal. Nothing is timed."""

import csv
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from benchmarks import terminal
from benchmarks.__main__ import app
from benchmarks.machine import Device
from benchmarks.report import digits, write_report
from benchmarks.results import Findings, Measurement, Results, read_rows
from benchmarks.terminal import advice, show, warn_if_busy
from benchmarks.workloads import (
    FORWARD,
    MODES,
)
from blockmem import blockwise_memory

CPU = Device("cpu", rate_seconds=0)  # one run each
RUNNER = CliRunner()


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
            assert findings.share(*key) > 0
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
    page.unlink()
    done = RUNNER.invoke(app, ["plot", str(out)], catch_exceptions=False)
    assert "cpu-float32-ratio.png" in done.output.replace("\n", "")
    assert not page.exists()


def test_somebodys_own_shapes(tmp_path: Path) -> None:
    out = tmp_path / "own.csv"
    given = ["--map", "2,8,4,4", "--block", "8,2,2", "--map", "1,6,10", "--block", "3,5"]
    chosen = ["--items", "12", "--provider", "eager", "--provider", "blockmem-torch"]
    arguments = [*given, *chosen, "--device", "cpu", "--mode", FORWARD, "--out", str(out)]
    done = RUNNER.invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    names = ["2x8x4x4-in-8x2x2-n12", "1x6x10-in-3x5-n12"]
    assert Findings(read_rows(out)).workloads("float32", FORWARD) == names
    for name in names:
        assert f"{name} float32 forward: " in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--map", "8,64,16,16"], "1 of --map, 0 of --block, 0 of --items: give one of each"),
        (["--items", "5"], "give the map too"),
        (["--block", "64,1,1"], "give the map too"),
        (["--map", "8;64", "--block", "64,1,1", "--items", "5"], "'8;64': expected numbers"),
        (["--map", "8,64,9,16", "--block", "64,2,2", "--items", "5"], "height 9 of the map"),
        (["--map", "0,64,8,8", "--block", "64,2,2", "--items", "5"], "sizes of 1 or more"),
        (["--map", "8,64,8,8", "--block", "64,2,2", "--items", "0"], "expected one or more"),
        (["--map", "8,64,8", "--block", "64,2", "--items", "5", "--quick"], "goes without"),
    ],
)
def test_own_shapes_that_are_none(arguments: list[str], said: str) -> None:
    done = RUNNER.invoke(app, arguments, env={"COLUMNS": "400"})
    assert done.exit_code == 2
    assert said in done.output


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
        ("--provider", "best", "expected one of eager, eager-onednn"),
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


def findings_of(tmp_path: Path, **told: dict[str, float]) -> Findings:
    """Findings of `tiny`: of each provider its time, and ratios to eager, and memory."""
    results = Results(tmp_path / "told.csv", CPU)
    for provider, found in told.items():
        rows = [Measurement("time", "median", found["time"], "ms")]
        if "memory" in found:
            rows.append(Measurement("peak_memory", "peak", found["memory"], "MiB"))
        if "low" in found:
            names = {"median": "ratio", "q20": "low", "q80": "high"}
            rows += [
                Measurement("ratio_eager", name, found[key], "1") for name, key in names.items()
            ]
        rows.append(Measurement("load", "others", found.get("others", 0.0), "cores"))
        results.add("tiny", provider.replace("_", "-"), "float32", FORWARD, rows)
    return Findings(results.rows)


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (
            {"time": 5.0, "memory": 1.0, "ratio": 0.5, "low": 0.4, "high": 0.6},
            "use blockmem-torch: it takes 0.50 of eager's time, and it needs 0.25 of eager's memory.",
        ),
        (
            {"time": 9.9, "memory": 1.0, "ratio": 0.99, "low": 0.9, "high": 1.1},
            "blockmem-torch takes as long as eager within the noise; "
            "it needs 0.25 of eager's memory.",
        ),
        (
            {"time": 12.0, "memory": 1.0, "ratio": 1.2, "low": 1.1, "high": 1.3},
            "use eager for time, blockmem-torch for memory: it needs 0.25 of eager's memory, "
            "and 1.20 of its time.",
        ),
        (
            {"time": 12.0, "memory": 8.0, "ratio": 1.2, "low": 1.1, "high": 1.3},
            "use eager: blockmem-torch takes 1.20 of its time.",
        ),
    ],
)
def test_a_sentence_says_what_to_use(tmp_path: Path, ours: dict[str, float], said: str) -> None:
    findings = findings_of(tmp_path, eager={"time": 10.0, "memory": 4.0}, blockmem_torch=ours)
    assert advice(findings, ("tiny", "float32", FORWARD)) == said


def test_noise_counts_beside_every_rival(tmp_path: Path) -> None:
    """Also beside one that is neither eager nor compile; one with another formula is no rival."""
    ours = {"time": 5.2, "memory": 4.0}
    others = {"eager": {"time": 10.0}, "eager_onednn": {"time": 5.0, "memory": 4.0}}
    findings_of(tmp_path, memae={"time": 1.0}, blockmem_torch=ours, **others)
    results = Results(tmp_path / "told.csv", CPU)
    case = ("tiny", "float32", FORWARD)
    assert advice(Findings(results.rows), case).startswith(
        "use eager-onednn: blockmem-torch takes 1.04"
    )
    rows = [Measurement("time", "median", 5.2, "ms")]
    for name, value in (("median", 0.99), ("q20", 0.95), ("q80", 1.02)):
        rows.append(Measurement("ratio_eager-onednn", name, value, "1"))
    results.add("tiny", "blockmem-torch", "float32", FORWARD, rows)
    assert advice(Findings(results.rows), case) == (
        "blockmem-torch takes as long as eager-onednn within the noise."
    )


@pytest.mark.parametrize(("cores", "said"), [(None, False), (0.1, False), (1.2, True)])
def test_a_machine_that_is_busy_before_a_run_is_said(
    cores: float | None, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "WATCHED", 0.0)
    monkeypatch.setattr(terminal.Others, "cores", lambda self: cores)
    console = Console(width=200, record=True, file=StringIO())
    warn_if_busy(console)
    assert ("other programs use 1.2 cores" in console.export_text()) == said


def test_times_that_vary_are_said(tmp_path: Path) -> None:
    results = Results(tmp_path / "told.csv", CPU)
    for high, said in ((1.4, False), (1.6, True)):
        times = {"median": 1.2, "q20": 1.0, "q80": high}
        rows = [Measurement("time", name, value, "ms") for name, value in times.items()]
        results.add("tiny", "eager", "float32", FORWARD, rows)
        console = Console(width=200, record=True, file=StringIO())
        show(Findings(results.rows), [("tiny", "float32", FORWARD)], console)
        assert ("varied by more than 1.5 times in 1 of 1 cases" in console.export_text()) == said


def test_what_is_alone_or_missing_is_said(tmp_path: Path) -> None:
    case = ("tiny", "float32", FORWARD)
    assert advice(Findings([]), case) == "nothing has a time."
    assert advice(findings_of(tmp_path, eager={"time": 1.0}), case) == "eager alone has a time."


def test_a_busy_machine_is_said(tmp_path: Path) -> None:
    case = ("tiny", "float32", FORWARD)
    for cores, said in ((0.1, False), (0.7, True)):
        findings = findings_of(tmp_path, eager={"time": 1.0, "others": cores})
        console = Console(width=200, record=True, file=StringIO())
        show(findings, [case], console)
        text = console.export_text()
        assert ("This machine was busy: in 1 of 1 cases" in text) == said
        page = tmp_path / "page.md"
        write_report([tmp_path / "told.csv"], page)
        assert ("`tiny` float32 forward (0.7)" in page.read_text(encoding="utf-8")) == said


def test_what_is_in_the_noise_is_not_lost(tmp_path: Path) -> None:
    inside = {"time": 1.0, "ratio": 1.04, "low": 0.97, "high": 1.2}
    assert not findings_of(tmp_path, blockmem_torch=inside).losses()
    (loss,) = findings_of(tmp_path, blockmem_torch=inside | {"low": 1.01}).losses()
    assert (loss.what, loss.other, loss.ratio) == ("slower than", "eager", 1.04)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.012345, "0.0123"), (5, "5"), (99.96, "100"), (1467.2, "1467"), (999.6, "1000")],
)
def test_numbers_have_no_exponents(number: float, text: str) -> None:
    assert digits(number) == text


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
    assert f"| `tiny` | 8 · 0.50{times} | 8 · 1.25{times} ▲ |" in text  # nothing of flex
    assert f"blockmem-torch`, float32, forward: slower than eager in `tiny` (1.25{times})" in text
    assert "more memory than eager in" not in text
    assert "`compile`: `tiny` float32 forward output (3 times eager's)" in text
    assert "- `flex`: no such thing (every case)" in text
    drawn = (tmp_path / "results-float32-ratio.png").read_bytes()
    write_report([results.path], page)
    assert page.read_text(encoding="utf-8") == text
    assert (tmp_path / "results-float32-ratio.png").read_bytes() == drawn


def test_host_time_has_sentences_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "host.csv"
    results = Results(out, CPU)
    for provider, time in (("eager", 0.1), ("blockmem-triton", 0.04)):
        rows = [Measurement("time", "median", time, "ms")]
        rows += [Measurement("ratio_eager", name, 0.4, "1") for name in ("median", "q20", "q80")]
        results.add("host-small", provider, "float32", FORWARD, rows)
    findings = Findings(read_rows(out))
    (line,) = findings.host()
    assert line.startswith("`host-small`, forward: 40 ")
    assert "0.40 of eager's 100 (0.40 to 0.40)" in line
    assert not findings.workloads("float32", FORWARD)
    write_report([out], tmp_path / "page.md")
    assert f"- {line}" in (tmp_path / "page.md").read_text(encoding="utf-8")
