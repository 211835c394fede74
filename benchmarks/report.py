"""docs/benchmarks.md: what the CSVs say, in tables and words."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.plot import draw_ratios, draw_scaling
from benchmarks.results import MACHINE, OURS, Findings, read_rows
from benchmarks.workloads import MODES, SWEEP, WORKLOADS
from daad.io import write_text

LOSS, EVEN = " ▲", " ≈"
LEGEND = "▲ marks where blockmem loses to eager or compile."
TIMES = "\N{MULTIPLICATION SIGN}"

INTRODUCTION = """\
# Benchmarks

What blockmem costs and saves, against what one would write instead. This page is made by
`python -m benchmarks plot --page docs/benchmarks.md` from the files in `benchmarks/results/`; do not
edit it.

| provider | what it is |
|---|---|
| `eager` | `F.normalize`, `softmax`, `where`, matrix products, einops: what a careful user writes |
| `eager-onednn` | the same, its products by the library that blockmem takes, where there are two |
| `compile` | `torch.compile` of that, in the mode that stands below with the machine |
| `memae` | shrinkage as MemAE publishes it, by ReLU, and an L1 norm of 1 |
| `memae-dot` | the same with dot products, as in MemAE's code |
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
- Where a ratio is the same as 1 within its quantiles it has the mark ≈, and is neither won nor lost.
- `memae` computes what this library calls `renormalize=True`, which is a little more work.
- Figures are of the commit that their section names. What has changed since may be faster.
- A case is busy where other programs used 0.15 of a core or more while it was timed. Such cases are
  listed with the machine.

To measure on your machine: `python -m benchmarks`. For shapes of your own:
`python -m benchmarks --map 8,64,128,128 --block 64,16,16 --items 500`.
"""


def write_report(sources: Sequence[Path], page: Path | None) -> list[Path]:
    """Draw the figures beside each CSV, and write the page where there is to be one; say which."""
    measured = [row for source in sources for row in read_rows(source)]
    written: list[Path] = []
    parts = [INTRODUCTION, _workloads({row.workload for row in measured})]
    for source in sources:
        rows = read_rows(source)
        for device in dict.fromkeys(row.device_name for row in rows):
            findings = Findings([row for row in rows if row.device_name == device])
            figures = _draw(findings, source)
            written += figures.values()
            parts += _device_section(device, findings, figures, page or source)
    if page is None:
        return written
    write_text(page, "\n".join(parts))
    return [*written, page]


def _draw(findings: Findings, source: Path) -> dict[tuple[str, str], Path]:
    """Draw the figures of a device; their paths, by dtype and what they show."""
    drawn = {}
    for dtype in findings.dtypes:
        if not any(findings.workloads(dtype, mode) for mode in MODES):
            continue
        ratios = source.with_name(f"{source.stem}-{dtype}-ratio.png")
        draw_ratios(findings, dtype, ratios)
        drawn[dtype, "Time and memory over eager's"] = ratios
        curves = source.with_name(f"{source.stem}-{dtype}-scaling.png")
        if draw_scaling(findings, dtype, curves):
            drawn[dtype, "Training time and memory against Q, N, D"] = curves
    return drawn


def _workloads(names: Collection[str]) -> str:
    """List the workloads of the tables with their shapes."""
    shown = [w for w in WORKLOADS if w.name in names and not w.name.startswith(SWEEP)]
    lines = [_line([f"`{workload.name}`", str(workload)]) for workload in shown]
    return "\n".join(["## Workloads\n", *_header(["workload", "map and blocks"]), *lines]) + "\n"


def _device_section(
    name: str, findings: Findings, figures: Mapping[tuple[str, str], Path], page: Path
) -> list[str]:
    parts = [f"## {name}\n", _made_with(findings)]
    for dtype in findings.dtypes:
        shown = [(words, path) for (of, words), path in figures.items() if of == dtype]
        parts += [_image(f"{words}, {dtype}", path, page) for words, path in shown]
        for mode in MODES:
            if findings.workloads(dtype, mode):
                parts.append(f"### {dtype}, {mode}\n")
                parts += [_times(findings, dtype, mode), _memories(findings, dtype, mode)]
                parts.append(_over_products(findings, dtype, mode))
    parts += [_images(findings), _host(findings), _losses(findings), _inexact(findings)]
    parts.append(_refusals(findings))
    return [part for part in parts if part]


def _made_with(findings: Findings) -> str:
    def said(field: str) -> str:
        return ", ".join(dict.fromkeys(getattr(row, field) for row in findings.rows)) or "none"

    lines = [
        f"PyTorch {said('torch')}, Triton {said('triton')}, commit {said('commit')}, "
        f"measured {said('date')}. This machine's rates:\n"
    ]
    for dtype in findings.dtypes:
        rates = findings.rates(dtype)
        lines.append(
            f"- {dtype}: {digits(rates.flops / 1e9)} GFLOP/s in a matrix product, "
            f"{digits(rates.bytes / 1e9)} GB/s copied"
        )
    modes = {
        row.note for row in findings.rows if (row.workload, row.metric) == (MACHINE, "compile")
    }
    if modes:
        lines.append(f"- torch.compile's mode: {', '.join(sorted(modes))}")
    if busy := findings.busy():
        cases = (
            f"`{name}` {dtype} {mode} ({cores:.1f})" for (name, dtype, mode), cores in busy.items()
        )
        lines.append(
            f"- measured while other programs used the machine (cores): {', '.join(cases)}"
        )
    return "\n".join(lines) + "\n"


def _times(findings: Findings, dtype: str, mode: str) -> str:
    return f"Time in ms, times eager's, share of the roofline. {LEGEND}\n\n" + _table(
        findings, dtype, mode, ("time", "median"), "median", share=True
    )


def _memories(findings: Findings, dtype: str, mode: str) -> str:
    table = _table(findings, dtype, mode, ("peak_memory", "peak"), "peak_memory", share=False)
    return f"Peak memory in MiB, times eager's. {LEGEND}\n\n{table}" if table else ""


def _over_products(findings: Findings, dtype: str, mode: str) -> str:
    table = _table(findings, dtype, mode, ("ratio_products", "median"), "", share=False)
    words = "Time over that of the matrix products alone, which no way can save."
    return f"{words}\n\n{table}" if table else ""


def _table(
    findings: Findings, dtype: str, mode: str, metric: tuple[str, str], ratio: str, share: bool
) -> str:
    """Tell of each workload what each provider has; without providers and workloads of which
    nothing is known. Empty where there is nothing at all."""
    known = {
        (workload, provider): value
        for workload in findings.workloads(dtype, mode)
        for provider in findings.providers
        for value in [findings.value(workload, provider, dtype, mode, *metric)]
        if value is not None
    }
    providers = [name for name in findings.providers if any(name == key[1] for key in known)]
    lines = _header(["workload", *providers])
    for workload in dict.fromkeys(key[0] for key in known):
        cells = []
        for provider in providers:
            value = known.get((workload, provider))
            key = (workload, provider, dtype, mode)
            cells.append("—" if value is None else _cell(findings, key, value, ratio, share))
        lines.append(_line([f"`{workload}`", *cells]))
    return "\n".join(lines) + "\n" if known else ""


def _cell(
    findings: Findings, key: tuple[str, str, str, str], value: float, ratio: str, share: bool
) -> str:
    cell = digits(value) if ratio else f"{value:.2f}"
    over_eager = findings.ratio(*key, ratio, "eager") if ratio else None
    if over_eager is not None:
        noise = EVEN if ratio == "median" and over_eager.even else ""
        cell += f" · {over_eager.value:.2f}{TIMES}{noise}"
    roofline = findings.share(*key) if share else None
    if roofline is not None:
        cell += f" · {roofline:.0%}"
    return cell + (LOSS if ratio and _loses(findings, key, ratio) else "")


def digits(value: float) -> str:
    """Write three digits of a number, thousands as they are."""
    return f"{value:.0f}" if value >= 999.5 else f"{value:.3g}"


def _loses(findings: Findings, key: tuple[str, str, str, str], ratio: str) -> bool:
    if key[1] not in OURS:
        return False
    found = (findings.ratio(*key, ratio, other) for other in ("eager", "compile"))
    return any(one is not None and one.more for one in found)


def _images(findings: Findings) -> str:
    """Whole networks, in images a second."""
    lines = []
    for workload, dtype, mode in findings.cases():
        rates = [
            findings.value(workload, provider, dtype, mode, "time", "images_per_second")
            for provider in findings.providers
        ]
        if any(rates):
            cells = ["—" if rate is None else digits(rate) for rate in rates]
            lines.append(_line([f"`{workload}`, {dtype}", *cells]))
    if not lines:
        return ""
    header = _header(["images a second", *findings.providers])
    return "\n".join(["### Whole networks\n", *header, *lines]) + "\n"


def _host(findings: Findings) -> str:
    lines = [f"- {line}" for line in findings.host()]
    words = (
        "What Python costs in a call of `blockmem-triton`, its launches and products taken out, "
        "beside eager with its arithmetic on a map that hardly has any (`python -m benchmarks host`)."
    )
    return "\n".join(["### Host time\n", f"{words}\n", *lines]) + "\n" if lines else ""


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
