"""Figures of one device: bars of the ratio to eager, and curves against Q, N and D."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.results import Findings
from benchmarks.workloads import BASE, MODES, SWEEP, SWEEPS, TRAINING, sweep_name
from daad.io import write_atomically

COLOURS = {
    "eager": "0.45",
    "eager-onednn": "#f0e442",
    "compile": "#56b4e9",
    "memae": "#e69f00",
    "memae-dot": "#a6761d",
    "flex": "#cc79a7",
    "blockmem-torch": "#009e73",
    "blockmem-triton": "#d55e00",
}
MARKERS = dict(zip(COLOURS, "oPs^<Dv*", strict=True))
AXIS_LABELS = {"q": "Q, blocks a batch", "n": "N, items", "d": "D, elements of a block"}
BAR = 0.13  # inches


def draw_ratios(findings: Findings, dtype: str, path: Path) -> None:
    """Time and peak memory over eager's in both modes: a bar for each provider that ran at all.

    A cross stands where such a one has no number, a line from the 20 to the 80 % quantile of the
    times. The sweeps are drawn as curves instead.
    """
    providers = [name for name in findings.providers if _has_ratio(findings, name, dtype)]
    panels = [
        (mode, statistic, what)
        for mode in MODES
        for statistic, what in (("median", "time"), ("peak_memory", "peak memory"))
    ]
    shown = {name for mode in MODES for name in findings.workloads(dtype, mode)}
    places = dict.fromkeys(row.workload for row in findings.rows)
    workloads = [name for name in places if name in shown and not name.startswith(SWEEP)]
    height = 1.5 + BAR * len(workloads) * (len(providers) + 1)
    figure = Figure(figsize=(16, height), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (mode, statistic, what) in zip(axes, panels, strict=True):
        for place, provider in enumerate(providers):
            thickness = 1 / (len(providers) + 1)
            offset = (place - (len(providers) - 1) / 2) * thickness
            _bars(axis, findings, provider, (dtype, mode, statistic), workloads, offset, thickness)
        axis.axvline(1, color=COLOURS["eager"], linewidth=1)
        axis.set_xscale("log")
        _plain_log(axis, "x")
        axis.set_title(f"{what}, {mode}", fontsize=10)
        axis.set_xlabel("times eager's (left of 1 is better)")
        axis.grid(axis="x", linewidth=0.4)
    axes[0].set_yticks(range(len(workloads)), workloads)
    axes[0].set_ylim(len(workloads) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=6)
    _save(figure, path)


def _has_ratio(findings: Findings, provider: str, dtype: str) -> bool:
    key = (provider, dtype, "ratio_eager")
    return any((row.provider, row.dtype, row.metric) == key and row.value for row in findings.rows)


def _bars(
    axis: Axes,
    findings: Findings,
    provider: str,
    what: tuple[str, str, str],
    workloads: list[str],
    offset: float,
    thickness: float,
) -> None:
    dtype, mode, statistic = what
    places, values, spread = [], [], []
    for place, workload in enumerate(workloads):
        ratio = findings.ratio(workload, provider, dtype, mode, statistic, "eager")
        if ratio is not None:
            places.append(place + offset)
            values.append(ratio.value)
            spread.append((ratio.value - ratio.low, ratio.high - ratio.value))
        elif workload in findings.workloads(dtype, mode):
            axis.plot(1, place + offset, marker="x", color=COLOURS[provider], markersize=4)
    axis.barh(
        places,
        [value - 1 for value in values],
        left=1,
        height=thickness,
        color=COLOURS[provider],
        label=provider,
    )
    if statistic == "median" and values:  # from the 20 to the 80 % quantile
        ends = list(zip(*spread, strict=True))
        axis.errorbar(values, places, xerr=ends, fmt="none", ecolor="0.25", elinewidth=0.8)


def draw_scaling(findings: Findings, dtype: str, path: Path) -> bool:
    """Time and peak memory of training against each of Q, N and D; False where none was measured."""
    if not any(name.startswith(SWEEP) for name in findings.workloads(dtype, TRAINING)):
        return False
    figure = Figure(figsize=(12, 7), layout="constrained")
    rows = (("time", "median", "time, ms"), ("peak_memory", "peak", "peak memory, MiB"))
    axes = figure.subplots(len(rows), len(SWEEPS), sharex="col", sharey="row", squeeze=False)
    for row, (metric, statistic, label) in zip(axes, rows, strict=True):
        row[0].set_ylabel(label)
        for axis, (name, sizes) in zip(row, SWEEPS.items(), strict=True):
            for provider in findings.providers:
                found = [
                    (size, findings.value(workload, provider, dtype, TRAINING, metric, statistic))
                    for size in sizes
                    for workload in [sweep_name(BASE | {name: size})]
                ]
                points = [(size, value) for size, value in found if value]
                if points:
                    axis.plot(
                        *zip(*points, strict=True),
                        color=COLOURS[provider],
                        marker=MARKERS[provider],
                        markersize=4,
                        label=provider,
                    )
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.grid(linewidth=0.4)
    for axis, name in zip(axes[-1], SWEEPS, strict=True):
        axis.set_xlabel(AXIS_LABELS[name])
        others = ", ".join(f"{key.upper()} {BASE[key]}" for key in BASE if key != name)
        axes[0][list(SWEEPS).index(name)].set_title(others, fontsize=10)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper left", ncols=6)
    _save(figure, path)
    return True


def _plain_log(axis: Axes, which: str) -> None:
    """0.1, 0.2, 0.5, 1, 2, 5 instead of powers of ten, as far as there is room for so many."""
    ticks = axis.xaxis if which == "x" else axis.yaxis
    low, high = ticks.get_view_interval()
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,), numticks=20))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())


def _save(figure: Figure, path: Path) -> None:
    def write(temporary: Path) -> None:
        # Without matplotlib's version in the file, equal figures are equal files
        figure.savefig(temporary, dpi=110, metadata={"Software": None})

    write_atomically(path, write)
