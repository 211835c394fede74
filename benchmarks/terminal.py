"""What a run says at its end: a table, a sentence for each case, and a warning where it was busy."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.machine import BUSY, Others
from benchmarks.providers import DEFAULT, PROVIDERS
from benchmarks.report import TIMES, digits
from benchmarks.results import OURS, Findings

MUCH = 0.9  # of another's memory: what is worth a word
COLUMNS = (
    *("time, ms", f"{TIMES} eager", "20\N{EN DASH}80 %", f"{TIMES} products"),
    *("MiB", f"{TIMES} eager", "error"),
)
UNSTEADY = 1.5  # the 80 % quantile of eager's times over the 20 % one
WATCHED = 0.5  # seconds before a run
Case = tuple[str, str, str]  # workload, dtype, mode


def show(findings: Findings, cases: Sequence[Case], console: Console) -> None:
    """Print the table of `cases`, what to use in each, and what cannot be trusted."""
    for case in cases:
        console.print(_table(findings, case))
    for (provider, note), refused in findings.refusals().items():
        if set(refused) & set(cases):
            console.print(f"[dim]{escape(provider)}: {escape(note)}[/dim]", highlight=False)
    for case in cases:
        console.print(f"{' '.join(case)}: {advice(findings, case)}", highlight=False)
    unsteady = [case for case in cases if findings.spread(*case) > UNSTEADY]
    if unsteady:
        console.print(
            f"[bold red]Times of eager varied[/bold red] by more than {UNSTEADY} times in "
            f"{len(unsteady)} of {len(cases)} cases: {', '.join(' '.join(case) for case in unsteady)}",
            highlight=False,
        )
    busy = {case: cores for case, cores in findings.busy().items() if case in cases}
    if busy:
        most = max(busy.values())
        console.print(
            f"[bold red]This machine was busy[/bold red]: in {len(busy)} of {len(cases)} cases "
            f"other programs used up to {most:.1f} cores. Do not trust these times; stop the other "
            "programs and measure again.",
            highlight=False,
        )


def _table(findings: Findings, case: Case) -> Table:
    """Put a case into a table that 80 columns hold."""
    table = Table(title=" ".join(case), title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("provider", min_width=len(OURS[-1]))
    for name in COLUMNS:
        table.add_column(name, justify="right", min_width=len(name))
    for provider in findings.providers:
        if cells := _cells(findings, case, provider):
            table.add_row(provider, *cells)
    return table


def warn_if_busy(console: Console) -> None:
    """Say before a run that other programs use the machine."""
    others = Others()
    time.sleep(WATCHED)
    cores = others.cores()
    if cores is not None and cores >= BUSY:
        console.print(
            f"[bold red]This machine is busy[/bold red]: other programs use {cores:.1f} cores. Stop "
            "them, or do not trust the times.",
            highlight=False,
        )


def _cells(findings: Findings, case: Case, provider: str) -> list[str]:
    workload, dtype, mode = case
    key = (workload, provider, dtype, mode)
    time = findings.value(*key, "time", "median")
    if time is None:
        return []
    ratio = findings.ratio(*key, "median", "eager")
    over = findings.value(*key, "ratio_products", "median")
    memory = findings.value(*key, "peak_memory", "peak")
    less = findings.ratio(*key, "peak_memory", "eager")
    error = findings.value(*key, "error", "output")
    return [
        digits(time),
        f"{ratio.value:.2f}" if ratio else "",
        f"{ratio.low:.2f}\N{EN DASH}{ratio.high:.2f}" if ratio else "",
        "" if over is None else f"{over:.2f}",
        "" if memory is None else digits(memory),
        f"{less.value:.2f}" if less else "",
        "" if error is None else f"{error:.0e}",
    ]


def advice(findings: Findings, case: Case) -> str:
    """Say in a sentence what to use: the fastest, and what memory the others need."""
    workload, dtype, mode = case

    def values(metric: str, statistic: str) -> dict[str, float]:
        found = {
            name: findings.value(workload, name, dtype, mode, metric, statistic)
            for name in findings.providers
        }
        return {name: value for name, value in found.items() if value is not None}

    times, memory = values("time", "median"), values("peak_memory", "peak")
    same = [name for name in times if PROVIDERS[name].formula == DEFAULT]  # who compute the formula
    ours = min((name for name in same if name in OURS), key=times.__getitem__, default="")
    rival = min((name for name in same if name not in OURS), key=times.__getitem__, default="")
    if not ours or not rival:
        return f"{ours or rival} alone has a time." if times else "nothing has a time."
    ratio = findings.ratio(workload, ours, dtype, mode, "median", rival)
    share = ratio.value if ratio is not None else times[ours] / times[rival]
    need = memory[ours] / memory[rival] if memory.get(rival) and ours in memory else None
    of_memory = "" if need is None else f"it needs {need:.2f} of {rival}'s memory"
    if ratio is not None and ratio.even:
        end = f"; {of_memory}" if of_memory else ""
        return f"{ours} takes as long as {rival} within the noise{end}."
    if share < 1:
        joined = "but" if need is not None and need > 1 else "and"
        end = f", {joined} {of_memory}" if of_memory else ""
        return f"use {ours}: it takes {share:.2f} of {rival}'s time{end}."
    if need is not None and need < MUCH:
        return f"use {rival} for time, {ours} for memory: {of_memory}, and {share:.2f} of its time."
    return f"use {rival}: {ours} takes {share:.2f} of its time."
