"""Every table and figure of the DAAD paper: runs what is missing, keeps what there is, writes the page.

python examples/reproduce.py --only figure1
python examples/reproduce.py --data DATA --scale small --only table3 --seeds 0,1,2
python examples/reproduce.py --data DATA --budget-minutes 20
python examples/reproduce.py --root ROOT --only table5 --settings daad,daad+ --scale small

DATA holds mvtec/CATEGORY, mnist, cifar-10-batches-py, ped2 and avenue, or some of them; ROOT is a
folder of categories of one's own. The most telling runs come first: the networks on bottle, grid and
screw, MNIST, Ped2, then the ablations. A run that the budget stops goes on at the next call.
"""

import dataclasses
import time
from collections.abc import Collection as Names
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from daad import command
from daad.folder import Hardware
from daad.io import UserError
from daad.machine import pick_device
from daad.task import Task
from reproduction.drawings import FROM_RUNS, Drawer
from reproduction.jobs import (
    Collection,
    Job,
    Train,
    execute,
    missing_jobs,
    plan,
    require_none,
    require_one_process,
    say_if_little_room,
    subject_of,
    too_large,
    train,
)
from reproduction.page import SECTIONS, assets_of, gather, update_page
from reproduction.records import run_folder
from reproduction.scales import Scale
from reproduction.summaries import is_whole
from reproduction.tables import PAPER, Paper, Table, rows_that_fit

# The most telling categories, and the order in which tables are filled with them; the other
# categories come after all of it. Of figures, what they are drawn from.
FIRST = ("bottle", "grid", "screw")
ORDER = (
    *("table3", "table2-mnist", "table6-ped2", "figure2", "table4", "table5", "figure6", "figure7"),
    *("open", "table2-cifar10", "table6-avenue"),
)
DRAWN_FROM = {"figure1": (), "figure5": ("table4",), "peak": ("table3",)}
STAND_FOR = {
    "table1": ("table3",),  # it compares others with DAAD+, whose figures are in both
    "table2": ("table2-mnist", "table2-cifar10"),
    "table6": ("table6-ped2", "table6-avenue"),
}
HOLDS = "mvtec/CATEGORY, mnist, cifar-10-batches-py, ped2, avenue"

Tables = Mapping[str, Table]
Tasks = Mapping[str, Sequence[Task[Any]]]  # of a table, by its name

console = Console()


@dataclass(frozen=True)
class Options:
    """Run what is missing of the paper's results, and write the page that shows them."""

    data: Path | None = None
    """Folder of the data sets: mvtec/CATEGORY, mnist, cifar-10-batches-py, ped2, avenue, or some."""
    root: Path | None = None
    """In place of DATA, a folder of categories of your own in MVTec layout."""
    only: str = "all"
    """With commas between, sections of the page such as figure1,table3; or all."""
    scale: str = "paper"
    """paper: its settings, a GPU's work; small, small-256, small-120: for two cores, not them."""
    seeds: str = "0"
    """Such as 0,1,2: mean and deviation over them."""
    categories: str = "all"
    """Such as bottle,grid; all that are in DATA's mvtec or in ROOT."""
    settings: str = "all"
    """Some of the rows, by their run folders, such as daad,daad-r4."""
    budget_minutes: float | None = None
    """Stop after the epoch in which they are over; the next call goes on."""
    out: Path = Path("runs/reproduce")
    """Folder of the runs."""
    page: Path | None = None
    """The page, its CSV and figures in a folder beside it; OUT/reproduction.md. What the CSV of
    another page has is not run again."""
    device: command.Device = "auto"
    yes: bool = False
    """Start even what does not fit the memory that is free."""


def reproduce(options: Options, paper: Paper = PAPER, train: Train = train) -> None:
    """Run what is missing, draw, and write the page; UserError at its end where a run failed."""
    start = time.monotonic()
    require_one_process()
    scale, out, budget = _scale(options.scale, paper), options.out, options.budget_minutes
    if budget is not None and not budget >= 0:
        raise UserError(f"--budget-minutes {budget:g}: give at least 0")
    if options.data and options.root:
        raise UserError(f"--data {options.data} and --root {options.root}: give one of them")
    names = _sections(options.only)
    page = options.page or out / "reproduction.md"
    if assets_of(page) == page:
        raise UserError(
            f"--page {page}: give a name that ends in .md; its folder has the rest of it"
        )
    records = gather(page, out, paper)  # a damaged CSV should not wait for the first run
    device = pick_device(options.device)
    seeds = parse_seeds(options.seeds)
    tables = _rows_to_run(_tables(names, paper, scale, options.root), scale, options.settings)
    tasks, problems = _tasks(options, tables)
    jobs = _jobs(out, scale, tables, tasks, seeds)
    known: set[Path] = set()
    if page.resolve() != (out / "reproduction.md").resolve():  # in OUT, what was removed runs again
        known = {run_folder(out, *one.key) for one in records if is_whole(one, paper)}
        shown = {FROM_RUNS[name] for name in names if name in FROM_RUNS}  # more than the CSV has
        drawn = {name: several for name, several in tasks.items() if name in shown}
        known -= {job.folder for job in _jobs(out, scale, tables, drawn, seeds[:1])}
    jobs = missing_jobs(jobs, console, known)
    jobs = _feasible(jobs, scale, device, even_large=options.yes)
    say_if_little_room(jobs, out, console)
    deadline = None if budget is None else start + 60 * budget
    failed: list[Job] = []
    for _ in execute(jobs, Hardware(options.device), console, failed, deadline, train):
        update_page(page, out, paper)
    by_name = {subject_of(task): task for several in tasks.values() for task in several}
    records = gather(page, out, paper)
    Drawer(assets_of(page), out, paper, scale, records, by_name, device).draw(names)
    update_page(page, out, paper)
    console.print(f"Results: {page}", soft_wrap=True)
    require_none(failed)
    if problems:
        raise UserError(f"some of the data could not be used: {'; '.join(problems)}")


def _scale(name: str, paper: Paper) -> Scale:
    if name not in paper.scales:
        raise UserError(f"--scale {name}: choose one of {', '.join(paper.scales)}")
    return paper.scales[name]


def _sections(only: str) -> list[str]:
    """Give the sections that were asked for; a name in `STAND_FOR` stands for several."""
    wanted = [name.strip() for name in only.split(",")]
    text = ",".join(",".join(STAND_FOR.get(name, (name,))) for name in wanted)
    return pick_names("--only", text, SECTIONS)


def _tables(names: Sequence[str], paper: Paper, scale: Scale, root: Path | None) -> Tables:
    """Pick the tables whose runs are needed, the most telling first, and say which cannot be run."""
    wanted = {table for name in names for table in DRAWN_FROM.get(name, (name,))}
    needed = {name: paper.tables[name] for name in ORDER if name in wanted}
    for option, kinds in (
        (f"--scale {scale.name}", tuple(scale.choices)),
        (f"--root {root}", ("photographs",) if root else tuple(scale.choices)),
    ):
        others = [name for name, table in needed.items() if table.kind not in kinds]
        if others:
            text = f"{option} is for {', '.join(kinds)} alone, without {', '.join(others)}"
            if len(others) == len(needed):
                raise UserError(f"{text}; give another one for these")
            console.print(f"Left out: {text.removeprefix('--')}", soft_wrap=True)
        needed = {name: table for name, table in needed.items() if name not in others}
    return needed


def _rows_to_run(tables: Tables, scale: Scale, settings: str) -> Tables:
    """Keep the rows that were asked for and fit the scale; rows that do not fit are said."""
    runs = dict.fromkeys(row.setting.run for table in tables.values() for row in table.rows)
    wanted = pick_names("--settings", settings, runs) if runs else []
    chosen = {}
    for name, table in tables.items():
        rows = [row for row in table.rows if row.setting.run in wanted]
        rows, left_out = rows_that_fit(dataclasses.replace(table, rows=rows), scale)
        for line in left_out:
            console.print(f"Left out of {name} at scale {scale.name}: {line}", soft_wrap=True)
        if rows:
            chosen[name] = dataclasses.replace(table, rows=rows)
    if tables and not chosen:
        raise UserError(
            f"--scale {scale.name}: none of the rows fits it; see above, give another one"
        )
    return chosen


def _tasks(options: Options, tables: Tables) -> tuple[Tasks, list[str]]:
    """Load what each table is measured on, and say what is not there or cannot be used.

    Gives the tasks by table, and what is wrong with data that is there.
    """
    if options.data is None and options.root is None:
        if tables:
            console.print("No --data: nothing is trained, the page is written from what there is")
        return {}, []
    collection = Collection(options.data, options.root)
    wanted = None
    if options.categories != "all":
        wanted = pick_names("--categories", options.categories, collection.categories)
    found: dict[str, Sequence[Task[Any]]] = {}
    problems: dict[str, None] = {}  # each once, in their order
    for name, table in tables.items():
        try:
            found[name] = collection.tasks(table, wanted)
        except UserError as error:
            console.print(f"Left out of {name}: {error}", soft_wrap=True)
            problems |= {str(error): None} if collection.has(table) else {}
        else:
            if table.kind == "photographs":
                for text in map(str, collection.unusable(wanted)):
                    if text not in problems:
                        console.print(f"Left out: {text}", soft_wrap=True)
                        problems[text] = None
    if tables and not found:
        nothing = f"--data {options.data}: none of the data sets is there; it should hold {HOLDS}"
        raise UserError(next(iter(problems), nothing))
    return found, list(problems)


def _jobs(out: Path, scale: Scale, tables: Tables, tasks: Tasks, seeds: Sequence[int]) -> list[Job]:
    """Plan all runs, the most telling first: seed by seed, FIRST before the other categories.

    All rows of a table on one category come before the next category. On classes a row comes on all
    of them before the next row, since the paper has their mean.
    """
    jobs: list[Job] = []
    for seed in seeds:
        for late in (False, True):
            for name, several in tasks.items():
                chosen = [task for task in several if _comes_late(task) == late]
                if not late:
                    chosen = sorted(chosen, key=_place_in_first)
                settings = [row.setting for row in tables[name].rows]
                groups = [chosen] if tables[name].subjects else [[one] for one in chosen]
                for group in groups:
                    jobs += plan(out, scale, settings, group, seed)
    return jobs


def _comes_late(task: Task[Any]) -> bool:
    return task.kind == "photographs" and task.name not in FIRST


def _place_in_first(task: Task[Any]) -> int:
    """Sort those that do not come late; classes and videos stay as they are."""
    return FIRST.index(task.name) if task.name in FIRST else len(FIRST)


def _feasible(
    jobs: Sequence[Job], scale: Scale, device: torch.device, *, even_large: bool
) -> list[Job]:
    """Drop the jobs that do not fit the device, and say so; `even_large` keeps them."""
    if jobs and scale.name == "paper" and device.type == "cpu":
        console.print("The paper's settings are a GPU's work; for a CPU there is --scale small")
    refused = too_large(jobs, device, console)
    if even_large:
        return list(jobs)
    for reason in refused.values():
        console.print(f"Left out: {reason}; --yes starts it all the same", soft_wrap=True)
    return [job for job in jobs if job.setting.run not in refused]


def pick_names(option: str, text: str, known: Names[str]) -> list[str]:
    """Read names with commas between, in the order of `known`; "all" is all. UserError for others."""
    if text == "all":
        return list(known)
    wanted = {part.strip() for part in text.split(",")}
    unknown = sorted(wanted - set(known))
    if unknown:
        raise UserError(
            f"{option} {text}: no {', '.join(unknown) or '(empty)'}; give all, or some of these "
            f"with commas between: {', '.join(known)}"
        )
    return [name for name in known if name in wanted]


def parse_seeds(text: str) -> list[int]:
    """Read `"0,1,2"` as sorted numbers; UserError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--seeds {text}: give whole numbers with commas between, such as 0,1,2")
    return sorted({int(part) for part in parts})


def main(
    arguments: Sequence[str] | None = None, paper: Paper = PAPER, train: Train = train
) -> None:
    """Run the script on `arguments`, None being those of the shell."""
    with command.in_one_line():
        reproduce(tyro.cli(Options, args=arguments), paper, train)


if __name__ == "__main__":
    main()
