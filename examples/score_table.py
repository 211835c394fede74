"""The score on photographs, measured: networks at `--preset cpu` against methods without one.

python examples/score_table.py --data DATA                     write the table of docs/photographs.md
python examples/score_table.py --data DATA --workers 13 --minutes 14     and train what is missing

Trains each network on each set with each seed, several at once, and adds a line to the CSV as each is
done. Sets are those of DATA/*/NAME in MVTec AD layout; gear and weave are drawn.
"""

import dataclasses
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from tyro.conf import arg

from daad import command
from daad.config import Config, Variant
from daad.drawn import make_dataset
from daad.findings import LIGHT
from daad.folder import Hardware
from daad.io import OutOfTime, UserError, read_csv, write_csv, write_text
from daad.machine import device_name, pick_device
from daad.mvtec import load_category, split_normals
from daad.run import evaluate, run

SETS = (
    *("bottle", "grid", "screw", "cookie", "magnetic_tile", "juice_bottle"),
    *("gear", "weave"),
)
DRAWN = ("gear", "weave")
NETWORKS: dict[Variant, str] = {
    **{"ae": "AE", "memae": "MemAE", "ae-skip": "AE+Skip"},
    **{"daad": "DAAD", "daad+": "DAAD+"},
}
SIMPLE = ("brightness", "mean picture", "PCA 50", "nearest patch")
AS_IT_IS, EVEN = "as it is", "even"
FIGURES = (
    *("image_auroc", "image_auroc_eq7", "average_precision", "best_f1", "recall_at_5_percent"),
    *("pixel_auroc", "aupro"),
)
VERDICTS = ("normals", "false_alarms", "false_alarms_found", "recall")
COLUMNS = ("set", "method", "seed", "light", "device", "minutes", *FIGURES, *VERDICTS)
DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- score -->", "<!-- /score -->"

Row = dict[str, Any]
Column = tuple[str, str]  # a method, and one of `FIGURES`
console = Console(markup=False, highlight=False)


def measure(
    root: Path,
    name: str,
    variant: Variant,
    seed: int,
    out: Path,
    device: str,
    shown: str,
    deadline: float,
) -> list[Row]:
    """Train a network on a set and evaluate it; also with even light where brightness tells much.

    Return its rows, and those of the methods without a network. shown: what the device is called.
    OutOfTime where it is not done at the deadline, a time of `time.monotonic()`.
    """
    if time.monotonic() >= deadline:
        raise OutOfTime
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    category = load_category(root, name)
    settings: dict[str, Any] = dict(command.PRESETS["cpu"])
    steps = settings.pop("steps")
    config = dataclasses.replace(
        Config.of("photographs"), variant=variant, seed=seed, false_alarms=0.05, **settings
    )
    learned, _ = split_normals(category.train, config.held_out)
    config = dataclasses.replace(config, epochs=command.epochs_of(steps, len(learned), config))
    folder = out / variant / name / f"seed-{seed}"
    start = time.monotonic()
    metrics = run(
        config, category, folder, Hardware(device), resume=folder.exists(), deadline=deadline
    )
    minutes = (time.monotonic() - start) / 60
    found = _rows(name, variant, seed, AS_IT_IS, shown, minutes, metrics)
    light = metrics["image_auroc_brightness"]
    if max(light, 1 - light) > LIGHT:
        metrics = evaluate(folder, category, pick_device(device), even_light=True)
        found += _rows(name, variant, seed, EVEN, shown, minutes, metrics)
    return found


def _rows(
    name: str,
    variant: str,
    seed: int,
    light: str,
    device: str,
    minutes: float,
    metrics: Mapping[str, Any],
) -> list[Row]:
    """Make a row of the network, and one of each method without one."""
    row: Row = {
        **{"set": name, "method": variant, "seed": seed, "light": light, "device": device},
        **{"minutes": round(minutes, 1), **{key: metrics[key] for key in FIGURES}},
        **{key: metrics["verdict"][key] for key in VERDICTS},
    }
    blank = dict.fromkeys(COLUMNS, "") | {"set": name, "light": light, "device": "any"}
    simple = metrics["baselines"].items()
    return [row, *(blank | {"method": key, "image_auroc": value} for key, value in simple)]


# The CSV and the page


def read_rows(path: Path) -> list[Row]:
    """Read what has been measured; none where there is no file."""
    return list(read_csv(path)) if path.exists() else []


def merged(before: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Put rows together, the new in place of those for the same set, method, seed and light; sorted."""
    rows = {_key(row): {name: row.get(name, "") for name in COLUMNS} for row in [*before, *new]}
    return [rows[key] for key in sorted(rows, key=_order)]


def _key(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return row["set"], row["method"], str(row["seed"]), row["light"]


def _order(key: tuple[str, str, str, str]) -> tuple[Any, ...]:
    name, method, seed, light = key
    return SETS.index(name), [*NETWORKS, *SIMPLE].index(method), light, seed


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the AUROCs as a table in Markdown: means over seeds, the best of each line in bold.

    A mean of several seeds has their standard deviation beside it.
    Below it stands the same with even light, for the sets that have it.
    """
    networks = [name for name in NETWORKS if any(row["method"] == name for row in rows)]
    figures = {"Eq. 7": "image_auroc_eq7", "score": "image_auroc"}
    columns: list[Column] = [(name, one) for name in networks for one in figures.values()]
    columns += [(name, "image_auroc") for name in SIMPLE]
    heads = ["set", *(f"{NETWORKS[name]}, {one}" for name in networks for one in figures), *SIMPLE]
    found = [_table(rows, AS_IT_IS, columns, heads)]
    if any(row["light"] == EVEN for row in rows):
        found += ["With even light:", _table(rows, EVEN, columns, heads)]
    return "\n\n".join(found)


def _table(
    rows: Sequence[Mapping[str, Any]],
    light: str,
    columns: Sequence[Column],
    heads: Sequence[str],
) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    every: dict[int, list[float]] = defaultdict(list)
    for name in SETS:
        mine = [row for row in rows if row["set"] == name and row["light"] == light]
        if not mine:
            continue
        values = [_values(mine, *column) for column in columns]
        for index, seeds in enumerate(values):
            if seeds:
                every[index].append(statistics.mean(seeds))
        lines.append(_line(name, values))
    count = len(lines) - 2
    means = [
        [statistics.mean(every[index])] if count and len(every[index]) == count else []
        for index in range(len(columns))
    ]
    return "\n".join([*lines, _line("mean", means)])


def _values(rows: Sequence[Mapping[str, Any]], method: str, figure: str) -> list[float]:
    """Give the figure of each seed."""
    return [float(row[figure]) for row in rows if row["method"] == method and row[figure] != ""]


def _line(name: str, values: Sequence[Sequence[float]]) -> str:
    means = [f"{statistics.mean(seeds):.3f}" if seeds else "" for seeds in values]
    best = max(means)
    cells = [
        (f"**{mean}**" if mean == best else mean or "\N{EN DASH}")
        + (f" ± {statistics.stdev(seeds):.3f}" if len(seeds) > 1 else "")
        for mean, seeds in zip(means, values, strict=True)
    ]
    return f"| {name} | {' | '.join(cells)} |"


def write_page(page: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put the tables between their marks in `page`; UserError where there are none."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page}: has no place for the table; put {BEGIN} and {END} into it")
    write_text(page, f"{before}{begin}\n{tables(rows)}\n{end}{after}")


# The command


def missing(
    rows: Iterable[Mapping[str, Any]], seeds: Sequence[int]
) -> list[tuple[str, Variant, int]]:
    """List what is to be trained, seed by seed, so that a budget that ends early leaves whole lines."""
    done = {_key(row)[:3] for row in rows}
    return [
        (name, variant, seed)
        for seed in seeds
        for variant in ("daad", "ae", "daad+", "memae", "ae-skip")
        for name in SETS
        if (name, variant, str(seed)) not in done
    ]


def make_table(
    data: Annotated[Path, arg(help="Folder of DATA/*/NAME in MVTec AD layout.")],
    seeds: Annotated[tuple[int, ...], arg(help="Of the networks.")] = (0, 1, 2),
    workers: Annotated[int, arg(help="Runs at once; 0 trains nothing.")] = 0,
    minutes: Annotated[float, arg(help="After which runs stop; they can go on later.")] = 1e6,
    out: Annotated[Path, arg(help="Folder of the runs.")] = Path("runs/score"),
    table: Annotated[Path, arg(help="The CSV of all results.")] = DOCS / "score.csv",
    page: Annotated[Path, arg(help="The page with the table.")] = DOCS / "photographs.md",
    device: command.Device = "auto",
) -> None:
    """Train what is missing of the table, and write it."""
    rows = merged(read_rows(table), [])
    if workers:
        with tempfile.TemporaryDirectory() as drawn:
            make_dataset(Path(drawn))
            roots = {name: Path(drawn) for name in DRAWN}
            roots |= {path.name: path.parent for path in data.glob("*/*") if path.name in SETS}
            for new in _measure_all(roots, rows, seeds, workers, minutes, out, device):
                rows = merged(rows, new)
                write_csv(table, COLUMNS, [[row[name] for name in COLUMNS] for row in rows])
    write_page(page, rows)


def _measure_all(
    roots: Mapping[str, Path],
    rows: Sequence[Row],
    seeds: Sequence[int],
    workers: int,
    minutes: float,
    out: Path,
    device: str,
) -> Iterable[list[Row]]:
    """Give the rows of each run that is missing, as they are done."""
    deadline = time.monotonic() + 60 * minutes
    shown = f"{device_name(pick_device(device))}, {workers} runs at once"
    context = multiprocessing.get_context("spawn")
    late = 0
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        others = (out, device, shown, deadline)
        waiting: dict[Future[list[Row]], str] = {
            pool.submit(measure, roots[name], name, variant, seed, *others): (
                f"{variant}, {name}, seed {seed}"
            )
            for name, variant, seed in missing(rows, seeds)
            if name in roots
        }
        for job in as_completed(waiting):
            try:
                found = job.result()
            except OutOfTime:
                late += 1
            except (UserError, torch.OutOfMemoryError) as error:
                console.print(f"{waiting[job]}: failed: {error}")
            else:
                console.print(f"{waiting[job]}: AUROC {found[0]['image_auroc']:.3f}")
                yield found
    if late:
        console.print(
            f"Out of time: {late} run(s) are left, and the same command goes on with them"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script on `arguments`; exit as `command.in_one_line` says."""
    with command.in_one_line():
        tyro.cli(make_table, args=arguments, description=(__doc__ or "").partition("\n")[0])


if __name__ == "__main__":
    main()
