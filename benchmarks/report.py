"""docs/benchmarks.md: what the CSVs say, in tables and words."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.plot import draw_ratios, draw_scaling
from benchmarks.results import MACHINE, OURS, Findings, read_rows
from benchmarks.workloads import MODES
from daad.io import write_text

LOSS = " ▲"
TIMES = "\N{MULTIPLICATION SIGN}"

INTRODUCTION = """\
# Benchmarks

What blockmem costs and saves, against what one would write instead. This page is made by
`python -m benchmarks plot` from the files in `benchmarks/results/`; do not edit it.

| provider | what it is |
|---|---|
| `eager` | `F.normalize`, `softmax`, `where`, matrix products, einops: what a careful user writes |
| `compile` | `torch.compile` of that, in the mode that stands below with the machine |
| `memae` | shrinkage as MemAE publishes it, by ReLU, and an L1 norm of 1 |
| `flex` | FlexAttention in two passes: log-sum-exp, then the items above the threshold |
| `blockmem-torch`, `blockmem-triton` | this library's backends |

How it is measured:

- All providers get the same tensors in the same process and take turns, run by run. Times are
  medians; the CSV has the 20 and 80 % quantiles, and ratios are medians of round-by-round ratios.
  Compiling and warming up are not counted.
- Inputs are random, blocks and items scattered round four prototypes, so that no weight comes
  within rounding of the threshold and every provider must keep the same items.
- Memory is the peak of what PyTorch's allocator hands out, beyond inputs and outputs.
- Before anything of a case is written, the provider's output and gradients are compared with
  float64, at full size. If blockmem is off by more than twice what eager is off at the same
  dtype, on a sample of the blocks or on all, it gets no number. Others are timed up to ten times,
  and listed below: compiled code may add up less carefully than eager, and to leave it out for
  that would flatter blockmem.
- PyTorch multiplies float32 matrices by MKL. On some CPUs oneDNN, which it holds too and blockmem
  uses, is faster; the machine's rate below is that of the faster.
- A share of the roofline of 100 % would mean that the case took no longer than its matrix products
  and its bytes, each counted once, take at the rates measured on this machine.
- `memae` computes what this library calls `renormalize=True`, which is a little more work.

To measure on your machine: `python -m benchmarks`, and `python -m benchmarks --help` for less.
"""


def write_report(sources: Sequence[Path], page: Path) -> None:
    """The page, and beside each CSV its figures."""
    parts = [INTRODUCTION]
    for source in sources:
        rows = read_rows(source)
        for device in dict.fromkeys(row.device_name for row in rows):
            findings = Findings([row for row in rows if row.device_name == device])
            parts += _device_section(device, findings, source, page)
    write_text(page, "\n".join(parts))


def _device_section(name: str, findings: Findings, source: Path, page: Path) -> list[str]:
    parts = [f"## {name}\n", _made_with(findings)]
    for dtype in findings.dtypes:
        ratios = source.with_name(f"{source.stem}-{dtype}-ratio.png")
        draw_ratios(findings, dtype, ratios)
        parts.append(_image(f"Time and memory over eager's, {dtype}", ratios, page))
        curves = source.with_name(f"{source.stem}-{dtype}-scaling.png")
        if draw_scaling(findings, dtype, curves):
            parts.append(_image(f"Training time and memory against Q, N, D, {dtype}", curves, page))
        for mode in MODES:
            if findings.workloads(dtype, mode):
                parts.append(f"### {dtype}, {mode}\n")
                parts += [_times(findings, dtype, mode), _memories(findings, dtype, mode)]
    return [*parts, _images(findings), _losses(findings), _inexact(findings), _refusals(findings)]


def _made_with(findings: Findings) -> str:
    def said(field: str) -> str:
        return ", ".join(dict.fromkeys(getattr(row, field) for row in findings.rows)) or "none"

    lines = [
        f"PyTorch {said('torch')}, Triton {said('triton')}, commit {said('commit')}, "
        f"measured {said('date')}. This machine's rates:\n"
    ]
    for dtype in findings.dtypes:
        matmul, copy = (
            findings.value(MACHINE, "torch", dtype, "", "roofline", rate) or 0.0
            for rate in ("matmul_rate", "copy_rate")
        )
        lines.append(f"- {dtype}: {matmul:.4g} GFLOP/s in a matrix product, {copy:.3g} GB/s copied")
    modes = {
        row.note for row in findings.rows if (row.workload, row.metric) == (MACHINE, "compile")
    }
    if modes:
        lines.append(f"- torch.compile's mode: {', '.join(sorted(modes))}")
    return "\n".join(lines) + "\n"


def _times(findings: Findings, dtype: str, mode: str) -> str:
    return f"Time in ms, times eager's, share of the roofline.{_legend()}\n\n" + _table(
        findings, dtype, mode, ("time", "median"), "median", share=True
    )


def _memories(findings: Findings, dtype: str, mode: str) -> str:
    return f"Peak memory in MiB, times eager's.{_legend()}\n\n" + _table(
        findings, dtype, mode, ("peak_memory", "peak"), "peak_memory", share=False
    )


def _legend() -> str:
    return f"{LOSS} marks where blockmem loses to eager or compile."


def _table(
    findings: Findings, dtype: str, mode: str, metric: tuple[str, str], ratio: str, share: bool
) -> str:
    lines = _header(["workload", *findings.providers])
    for workload in findings.workloads(dtype, mode):
        cells = []
        for provider in findings.providers:
            key = (workload, provider, dtype, mode)
            value = findings.value(*key, *metric)
            if value is None:
                cells.append("—")
                continue
            cell = f"{value:.3g}"
            over_eager = findings.value(*key, "ratio_eager", ratio)
            if over_eager is not None:
                cell += f" · {over_eager:.2f}{TIMES}"
            roofline = findings.value(*key, "roofline", "share") if share else None
            if roofline is not None:
                cell += f" · {roofline:.0%}"
            cells.append(cell + (LOSS if _loses(findings, key, ratio) else ""))
        lines.append(_line([f"`{workload}`", *cells]))
    return "\n".join(lines) + "\n"


def _loses(findings: Findings, key: tuple[str, str, str, str], ratio: str) -> bool:
    if key[1] not in OURS:
        return False
    found = (findings.value(*key, f"ratio_{other}", ratio) for other in ("eager", "compile"))
    return any(value is not None and round(value, 2) > 1 for value in found)


def _images(findings: Findings) -> str:
    """Whole networks, in images a second."""
    lines = []
    for workload, dtype, mode in findings.cases():
        rates = [
            findings.value(workload, provider, dtype, mode, "time", "images_per_second")
            for provider in findings.providers
        ]
        if any(rates):
            cells = ["—" if rate is None else f"{rate:.3g}" for rate in rates]
            lines.append(_line([f"`{workload}`, {dtype}", *cells]))
    if not lines:
        return ""
    header = _header(["images a second", *findings.providers])
    return "\n".join(["### Whole networks\n", *header, *lines]) + "\n"


def _losses(findings: Findings) -> str:
    grouped: dict[str, list[str]] = {}
    for loss in findings.losses():
        title = f"`{loss.provider}`, {loss.dtype}, {loss.mode}: {loss.what} {loss.other}"
        grouped.setdefault(title, []).append(f"`{loss.workload}` ({loss.ratio:.2f}{TIMES})")
    lines = [f"- {title} in {', '.join(cases)}" for title, cases in grouped.items()]
    return "\n".join(["### Where blockmem loses\n", *(lines or ["Nowhere."])]) + "\n"


def _inexact(findings: Findings) -> str:
    lines = []
    for provider, rows in findings.inexact().items():
        cases = (f"`{r.workload}` {r.dtype} {r.mode} {r.statistic} ({r.note})" for r in rows)
        lines.append(f"- `{provider}`: {', '.join(cases)}")
    return "\n".join(["### Less exact than twice eager's error\n", *lines]) + "\n" if lines else ""


def _refusals(findings: Findings) -> str:
    lines = []
    for (provider, note), cases in findings.refusals().items():
        which = _which(findings, cases)
        lines.append(f"- `{provider}`: {note} ({which})")
    return "\n".join(["### What has no number\n", *(lines or ["Nothing."])]) + "\n"


def _which(findings: Findings, cases: Sequence[tuple[str, str, str]]) -> str:
    """The cases named, or "every case" for short."""
    if set(cases) == set(findings.cases()):
        return "every case"
    return ", ".join(f"`{workload}` {dtype} {mode}" for workload, dtype, mode in cases)


def _image(text: str, path: Path, page: Path) -> str:
    return f"![{text}]({os.path.relpath(path, page.parent)})\n"


def _header(cells: Iterable[str]) -> list[str]:
    names = list(cells)
    return [_line(names), _line(["---"] * len(names))]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
