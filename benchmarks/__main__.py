"""`python -m benchmarks` measures, `python -m benchmarks plot` draws what was measured."""

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.host import measure_host
from benchmarks.machine import TORCH_DTYPES, Device
from benchmarks.providers import PROVIDERS
from benchmarks.report import write_report
from benchmarks.results import FOLDER, ROOT, Findings, Results
from benchmarks.suite import Outcome, Selection, run_suite
from benchmarks.terminal import show, warn_if_busy
from benchmarks.workloads import MODES, WORKLOADS, AnyWorkload, own

BUDGET, QUICK_BUDGET = 3.0, 0.5  # seconds of timing a case, beside its gate and its compiling
OWN_OUT = ROOT / "build" / "benchmarks-own.csv"
QUICK_OUT = ROOT / "build" / "benchmarks-quick.csv"  # too few runs to be kept

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
console = Console(stderr=True)


@app.callback(invoke_without_command=True)
def measure(
    context: typer.Context,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")] = (
        "auto"
    ),
    workload: Annotated[
        list[str] | None, typer.Option(help="Only workloads whose name matches, such as 'daad-*'.")
    ] = None,
    provider: Annotated[
        list[str] | None, typer.Option(help=f"Only these: {', '.join(PROVIDERS)}.")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="Of float32, tf32, bfloat16, float16. On a CPU float32 if not given, "
            "on a GPU float32 and bfloat16."
        ),
    ] = None,
    mode: Annotated[list[str] | None, typer.Option(help=f"Only {' or '.join(MODES)}.")] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map", help="A map of your own, B,C,*S, such as 8,64,128,128, in place of workloads."
        ),
    ] = None,
    block: Annotated[
        list[str] | None, typer.Option(help="Its blocks, c,*s, such as 64,16,16; one for each map.")
    ] = None,
    items: Annotated[
        list[int] | None, typer.Option(help="N, one for each map, or one for all.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="A few small workloads, a few runs each: under two minutes.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The CSV; cases in it that are not measured now are kept. "
            "benchmarks/results/DEVICE.csv if not given; in build/ with --quick or --map."
        ),
    ] = None,
) -> None:
    """What blockmem costs and saves, beside what one would write instead.

    Each of --workload, --provider, --dtype and --mode may be given several times. So may --map with
    its --block: python -m benchmarks --map 8,64,128,128 --block 64,16,16 --items 500
    """
    if context.invoked_subcommand is not None:
        return
    if (block or items) and not map_:
        raise typer.BadParameter("give the map too, such as --map 8,64,128,128", param_hint="--map")
    mine = _own(map_ or [], block or [], items or [])
    if mine and (workload or quick):
        raise typer.BadParameter("goes without --workload and --quick", param_hint="--map")
    chosen = Device(_device(device))
    selection = Selection(
        workloads=mine or _workloads(workload, quick),
        providers=_names("--provider", provider, PROVIDERS),
        dtypes=_names("--dtype", dtype or list(chosen.default_dtypes), TORCH_DTYPES),
        modes=_names("--mode", mode, MODES),
        budget=QUICK_BUDGET if quick else BUDGET,
    )
    if not selection.cases():
        raise typer.BadParameter("no workload of those has that mode", param_hint="--mode")
    if out is None:
        out = OWN_OUT if mine else QUICK_OUT if quick else FOLDER / f"{_slug(chosen.name)}.csv"
    results = Results(out, chosen)
    warn_if_busy(Console(stderr=True))
    _run(selection, chosen, results)
    measured = [(one.name, dtype, mode) for one, dtype, mode in selection.cases()]
    rows = [row for row in results.rows if row.device_name == chosen.name]
    show(
        Findings([row for row in rows if row.provider in selection.providers]), measured, Console()
    )
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)


@app.command()
def plot(
    results: Annotated[
        list[Path] | None,
        typer.Argument(help="CSVs; all of benchmarks/results/ if none is given."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write a page too, such as docs/benchmarks.md.")
    ] = None,
) -> None:
    """Draw what was measured: figures beside each CSV, and a page of all tables where one is asked for."""
    sources = results or sorted(FOLDER.glob("*.csv"))
    for source in sources:
        if not source.is_file():
            raise typer.BadParameter(f"{source} is not a file", param_hint="RESULTS")
    if not sources:
        raise typer.BadParameter(
            "nothing measured yet; run python -m benchmarks", param_hint="RESULTS"
        )
    for path in write_report(sources, page):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command()
def host(
    out: Annotated[Path | None, typer.Option(help="A CSV to add to; build/ if not given.")] = None,
) -> None:
    """Measure what Python costs in a call of the Triton backend; no GPU is needed."""
    results = Results(out or OWN_OUT, Device("cpu"))
    measure_host(results, BUDGET)
    for line in Findings(results.rows).host():
        console.print(line, highlight=False, soft_wrap=True)


def _run(selection: Selection, device: Device, results: Results) -> None:
    names = [f"{workload.name} {dtype} {mode}" for workload, dtype, mode in selection.cases()]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(names[0], total=len(names))
        for number, outcomes in enumerate(run_suite(selection, device, results), start=1):
            told = "  ".join(map(_tell, outcomes))
            progress.console.print(f"{names[number - 1]}: {told}", highlight=False, soft_wrap=True)
            following = names[number] if number < len(names) else "done"
            progress.update(task, advance=1, description=following)


def _tell(outcome: Outcome) -> str:
    if not outcome.seconds:
        return f"{outcome.provider} -"
    milliseconds = 1000 * torch.tensor(outcome.seconds).median().item()
    return f"{outcome.provider} {milliseconds:.3g} ms"


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{name!r}: expected auto, cpu or cuda", param_hint="--device")
    if name == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("PyTorch sees no CUDA device here", param_hint="--device")
    return name


def _workloads(patterns: list[str] | None, quick: bool) -> list[AnyWorkload]:
    if patterns is None:
        return [w for w in WORKLOADS if (w.quick if quick else w.default)]
    found = [w for w in WORKLOADS if any(fnmatch(w.name, pattern) for pattern in patterns)]
    if not found:
        names = ", ".join(w.name for w in WORKLOADS)
        raise typer.BadParameter(f"none matches; there are {names}", param_hint="--workload")
    return found


def _own(maps: list[str], blocks: list[str], items: list[int]) -> list[AnyWorkload]:
    """Make workloads of somebody's own shapes."""
    if len(items) == 1:
        items = items * len(maps)
    if not len(maps) == len(blocks) == len(items):
        raise typer.BadParameter(
            f"{len(maps)} of --map, {len(blocks)} of --block, {len(items)} of --items: give one of "
            "each for every map, or --items once for all",
            param_hint="--map",
        )
    try:
        shapes = zip(map(_sizes, maps), map(_sizes, blocks), items, strict=True)
        return [own(*shape) for shape in shapes]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--map") from None


def _sizes(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{text!r}: expected numbers with commas between, as in 64,16,16"
        ) from None


def _names(option: str, given: list[str] | None, known: Iterable[str]) -> list[str]:
    """Those given, in the order of those known; all where none is given."""
    names = list(known)
    for name in given or ():
        if name not in names:
            message = f"{name!r}: expected one of {', '.join(names)}"
            raise typer.BadParameter(message, param_hint=option)
    return [name for name in names if given is None or name in given]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
