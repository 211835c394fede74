"""Every table and figure of the DAAD paper: runs what is missing, keeps what there is, writes the page.

python examples/reproduce.py --only figure1
python examples/reproduce.py --data DATA --scale small --only table3 --seeds 0,1,2
python examples/reproduce.py --data DATA --budget-minutes 20

DATA holds mvtec/CATEGORY, mnist, cifar-10-batches-py, ped2 and avenue, or some of them. The most
telling runs come first: the networks on bottle, grid and screw, MNIST, Ped2, then the ablations. A run
that the budget stops goes on at the next call.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from daad.data import Category
from daad.devices import pick_device
from daad.errors import UserError
from daad.options import Device, make_app, parse_seeds, pick_names, run_app
from daad.runs import Hardware
from paper.collection import Collection
from paper.drawings import FROM_RUNS, Drawer
from paper.jobs import (
    Job,
    Subject,
    execute,
    missing_jobs,
    plan,
    require_none,
    require_one_process,
    say_if_little_room,
    subject_name,
    too_large,
)
from paper.page import SECTIONS
from paper.publish import assets_of, gather, update_page
from paper.records import run_folder
from paper.settings import SCALE_HELP, SCALES, check_scale
from paper.summaries import is_whole
from paper.tables import TABLES, rows_that_fit

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

app = make_app(__doc__)
console = Console()


@app.command()
def reproduce(
    data: Annotated[
        Path | None, typer.Option(help=f"Folder of the data sets: {HOLDS}, or some of them.")
    ] = None,
    only: Annotated[
        str,
        typer.Option(help=f"With commas between, {', '.join([*SECTIONS, *STAND_FOR])}; or all."),
    ] = "all",
    scale: Annotated[str, typer.Option(help=SCALE_HELP)] = "paper",
    seeds: Annotated[str, typer.Option(help="Such as 0,1,2: mean and deviation over them.")] = "0",
    categories: Annotated[
        str, typer.Option(help="Of MVTec AD, such as bottle,grid; all that are in DATA.")
    ] = "all",
    budget_minutes: Annotated[
        float | None,
        typer.Option(help="Stop after the epoch in which they are over; the next call goes on."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/reproduce"),
    page: Annotated[
        Path | None,
        typer.Option(
            help="The page, its CSV and figures in a folder beside it; OUT/reproduction.md. What "
            "the CSV of another page has is not run again."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Run what is missing of the paper's results, and write the page that shows them."""
    start = time.monotonic()
    require_one_process()
    check_scale(scale)
    if budget_minutes is not None and not budget_minutes >= 0:
        raise UserError(f"--budget-minutes {budget_minutes:g}: give at least 0")
    names = _sections(only)
    default = out / "reproduction.md"
    page = page or default
    if assets_of(page) == page:
        raise UserError(
            f"--page {page}: give a name that ends in .md; its folder has the rest of it"
        )
    records = gather(page, out)  # a damaged CSV should not wait for the first run
    where = pick_device(device)
    numbers = parse_seeds(seeds)
    tables = _tables(names, scale)
    subjects, problems = ({}, []) if data is None else _subjects(data, tables, categories)
    if tables and data is None:
        console.print("No --data: nothing is trained, the page is written from what there is")
    _say_what_does_not_fit(subjects, scale)
    known: set[Path] = set()
    if page.resolve() != default.resolve():  # in OUT a folder that was removed is one to run again
        known = {run_folder(out, *record.key) for record in records if is_whole(record)}
        known -= {job.run for job in _jobs(out, scale, _drawn(names, subjects), numbers[:1])}
    jobs = missing_jobs(_jobs(out, scale, subjects, numbers), console, known)
    jobs = _feasible(jobs, scale, where)
    say_if_little_room(jobs, out, console)
    deadline = None if budget_minutes is None else start + 60 * budget_minutes
    failed: list[Job] = []
    for _ in execute(jobs, Hardware(device), console, failed, deadline):
        update_page(page, out)
    all_subjects = {subject_name(one): one for several in subjects.values() for one in several}
    Drawer(assets_of(page), out, scale, gather(page, out), all_subjects, where).draw(names)
    update_page(page, out)
    console.print(f"Results: {page}", soft_wrap=True)
    require_none(failed)
    if problems:
        raise UserError(f"some of the data could not be used: {'; '.join(problems)}")


def _sections(only: str) -> list[str]:
    """The sections of the page that were asked for; a name in `STAND_FOR` stands for several."""
    wanted = [name.strip() for name in only.split(",")]
    text = ",".join(",".join(STAND_FOR.get(name, (name,))) for name in wanted)
    return pick_names("--only", text, SECTIONS)


def _tables(names: Sequence[str], scale: str) -> list[str]:
    """The tables whose runs are needed, the most telling first; those not at this scale are said."""
    needed = {table for name in names for table in DRAWN_FROM.get(name, (name,))}
    fitting = [name for name in ORDER if name in needed and TABLES[name].kind in SCALES[scale]]
    others = ", ".join(name for name in ORDER if name in needed and name not in fitting)
    if others:
        text = f"scale {scale} is for {', '.join(SCALES[scale])} alone, without {others}"
        if not fitting:
            raise UserError(f"--scale {scale}: {text}; give another scale for these")
        console.print(f"Left out: {text}")
    return fitting


def _subjects(
    data: Path, tables: Sequence[str], categories: str
) -> tuple[dict[str, list[Subject]], list[str]]:
    """For each table what it is measured on, and what is wrong with data that is there.

    What is not there is said.
    """
    collection = Collection(data)
    wanted = None
    if categories != "all":
        wanted = pick_names("--categories", categories, collection.categories)
    found: dict[str, list[Subject]] = {}
    problems: dict[str, None] = {}  # each once, in their order
    for name in tables:
        table = TABLES[name]
        try:
            found[name] = collection.subjects(table, wanted)
        except UserError as error:
            console.print(f"Left out of {name}: {error}")
            problems |= {str(error): None} if collection.has(table) else {}
        else:
            if table.kind == "photographs":
                for text in map(str, collection.unusable(wanted)):
                    if text not in problems:
                        console.print(f"Left out: {text}")
                        problems[text] = None
    if tables and not found:
        nothing = f"--data {data}: none of the data sets is there; it should hold {HOLDS}"
        raise UserError(next(iter(problems), nothing))
    return found, list(problems)


def _jobs(
    out: Path, scale: str, subjects: dict[str, list[Subject]], seeds: Sequence[int]
) -> list[Job]:
    """All runs, the most telling first: seed by seed, FIRST before the other categories.

    All rows of a table on one category before the next; but a row on all classes before the next
    row, since the paper has their mean.
    """
    jobs: list[Job] = []
    for seed in seeds:
        for others in (False, True):
            for name, several in subjects.items():
                chosen = [one for one in several if _comes_late(one) == others]
                if not others:
                    chosen = sorted(chosen, key=_place_in_first)
                rows, _ = rows_that_fit(TABLES[name].rows, TABLES[name].kind, scale)
                groups = [chosen] if TABLES[name].subjects else [[one] for one in chosen]
                for group in groups:
                    jobs += plan(out, scale, [row.setting for row in rows], group, [seed])
    return jobs


def _drawn(names: Sequence[str], subjects: dict[str, list[Subject]]) -> dict[str, list[Subject]]:
    """The tables of which a figure shows more than the CSV has: the first seed has to be here."""
    shown = {FROM_RUNS[name] for name in names if name in FROM_RUNS}
    return {name: several for name, several in subjects.items() if name in shown}


def _feasible(jobs: Sequence[Job], scale: str, device: torch.device) -> list[Job]:
    """The jobs less those that do not fit the device, which are said."""
    if jobs and scale == "paper" and device.type == "cpu":
        console.print("The paper's settings are a GPU's work; for a CPU there is --scale small")
    refused = too_large(jobs, device, console)
    for reason in refused.values():
        console.print(f"Left out: {reason}")
    return [job for job in jobs if job.setting.run not in refused]


def _say_what_does_not_fit(names: Iterable[str], scale: str) -> None:
    for name in names:
        _, left_out = rows_that_fit(TABLES[name].rows, TABLES[name].kind, scale)
        for line in left_out:
            console.print(f"Left out of {name} at scale {scale}: {line}")


def _comes_late(subject: Subject) -> bool:
    return type(subject) is Category and subject.name not in FIRST


def _place_in_first(subject: Subject) -> int:
    """A sort key for those that do not come late; classes and videos stay as they are."""
    return FIRST.index(subject.name) if subject.name in FIRST else len(FIRST)


def run(arguments: Sequence[str] | None = None) -> None:
    """The script on `arguments`, as `run_app` says."""
    run_app(app, arguments)


if __name__ == "__main__":
    run()
