"""The ablations of the DAAD paper, Tables 3, 4, 5 and Figure 7, and of what it leaves open.

python examples/daad_ablations.py --root ROOT --only table3
python examples/daad_ablations.py --root ROOT --categories bottle,grid --seeds 0,1,2 --scale small

What is finished in OUT is kept, what was stopped goes on, what is missing is run. A run is a folder
as daad_mvtec.py makes it, OUT/SCALE/SETTING/CATEGORY/seed-SEED; OUT/results.csv has them all.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from daad.config import Config
from daad.data import list_categories, load_category
from daad.devices import pick_device
from daad.errors import UserError
from daad.options import Device, auroc_text, make_app, parse_seeds, pick_names, run_app
from daad.runs import Hardware
from paper.jobs import (
    Job,
    execute,
    missing_jobs,
    plan,
    require_none,
    require_one_process,
    say_if_little_room,
    subject_name,
    too_large,
)
from paper.records import collect, write_results
from paper.settings import SCALE_HELP, check_scale
from paper.summaries import Summary, summarize
from paper.tables import ABLATIONS, DAAD, Row, memory_parameters, rows_that_fit
from paper.tables import Table as Results

app = make_app(__doc__)
console = Console()


@app.command()
def ablate(
    root: Annotated[Path, typer.Option(help="Folder of categories in MVTec layout.")],
    only: Annotated[
        str, typer.Option(help=f"Which, with commas between: {', '.join(ABLATIONS)}; or all.")
    ] = "all",
    categories: Annotated[
        str, typer.Option(help="Such as bottle,grid,screw; all that are in ROOT.")
    ] = "all",
    seeds: Annotated[str, typer.Option(help="Such as 0,1,2: mean and deviation over them.")] = "0",
    scale: Annotated[str, typer.Option(help=SCALE_HELP)] = "paper",
    settings: Annotated[
        str,
        typer.Option(help="Some of the rows alone, by their run folders, such as daad,daad-r4."),
    ] = "all",
    out: Annotated[Path, typer.Option(help="Folder of the runs and results.csv.")] = Path(
        "runs/ablations"
    ),
    device: Device = "auto",
    yes: Annotated[
        bool, typer.Option("--yes", help="Start even what does not fit the memory that is free.")
    ] = False,
) -> None:
    """Run what is missing of the ablations, and print it beside the paper's figures."""
    require_one_process()
    check_scale(scale)
    tables = {name: ABLATIONS[name] for name in pick_names("--only", only, ABLATIONS)}
    numbers = parse_seeds(seeds)
    rows = _rows_to_run(tables, scale, settings)
    names = pick_names("--categories", categories, list_categories(root))
    known = [load_category(root, name) for name in names]
    chosen = [row.setting for part in rows.values() for row in part]
    jobs = missing_jobs(plan(out, scale, chosen, known, numbers), console)
    refused = too_large(jobs, pick_device(device), console)
    if refused and not yes:
        raise UserError(
            f"{next(iter(refused.values()))}; leave it out by naming the others with --settings, "
            f"use a machine with more, or add --yes to try"
        )
    say_if_little_room(jobs, out, console)
    failed: list[Job] = []
    for _ in execute(jobs, Hardware(device), console, failed):
        write_results(out / "results.csv", collect(out))
    records = collect(out)
    write_results(out / "results.csv", records)
    asked = [record for record in records if record.seed in numbers]
    subjects = [subject_name(category) for category in known]
    for name, part in rows.items():
        table = dataclasses.replace(tables[name], rows=part)
        _show(table, scale, summarize(asked, table, scale, subjects))
    console.print(f"All results: {out / 'results.csv'}", soft_wrap=True)
    require_none(failed)


def _rows_to_run(tables: dict[str, Results], scale: str, settings: str) -> dict[str, list[Row]]:
    """The rows of each table that were asked for; those that do not fit the scale are said."""
    runs = dict.fromkeys(row.setting.run for table in tables.values() for row in table.rows)
    wanted = pick_names("--settings", settings, runs)
    rows: dict[str, list[Row]] = {}
    for name, table in tables.items():
        known = [row for row in table.rows if row.setting.run in wanted]
        rows[name], left_out = rows_that_fit(known, table.kind, scale)
        for line in left_out:
            console.print(f"Left out of {name} at scale {scale}: {line}")
    if not any(rows.values()):
        raise UserError(f"--scale {scale}: none of the rows fits it; see above, give another one")
    return rows


def _show(results: Results, scale: str, summaries: Sequence[Summary]) -> None:
    if not results.rows:
        return
    table = Table(title=results.title, caption=_describe(scale))
    for heading in ("", "category"):
        table.add_column(heading)
    for heading in ("N", "image AUROC", "seeds", "paper", "paper, all 15"):
        table.add_column(heading, justify="right")
    for row in results.rows:
        config = row.setting.config(results.kind, scale, 0)
        items = str(config.num_items) if memory_parameters(config) else "-"
        head = (row.label, items)
        own = [summary for summary in summaries if summary.row is row]
        count = sum(summary.subject is not None for summary in own)
        for summary in own:
            name = summary.subject or f"mean of {count}"
            papers = (
                auroc_text(summary.paper),
                "" if summary.subject else auroc_text(summary.paper_all),
            )
            table.add_row(head[0], name, head[1], str(summary), str(len(summary.values)), *papers)
            head = ("", "")
        table.add_section()
    console.print(table)


def _describe(scale: str) -> str:
    """What the scale is, and that it is not the paper's where it is not."""

    def text(config: Config) -> str:
        sizes = f"{config.image_size}x{config.image_size}, width {config.width}"
        return f"{sizes}, N {config.num_items}, {config.epochs} epochs, lr {config.lr:g}"

    papers, own = (text(DAAD.config("photographs", name, 0)) for name in ("paper", scale))
    if scale == "paper":
        return f"The paper's settings: DAAD with {papers}; the deviation is over seeds"
    return (
        f"Not the paper's settings but scale {scale}: DAAD with {own}; the "
        f"paper has {papers}. The deviation is over seeds."
    )


def run(arguments: Sequence[str] | None = None) -> None:
    """The script on `arguments`, as `run_app` says."""
    run_app(app, arguments)


if __name__ == "__main__":
    run()
