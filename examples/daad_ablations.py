"""The ablations of the DAAD paper, Tables 3, 4, 5 and Figure 7, and of what it leaves open.

python examples/daad_ablations.py --root ROOT --only table3
python examples/daad_ablations.py --root ROOT --categories bottle,grid --seeds 0,1,2 --scale small

What is finished in OUT is kept, what was stopped goes on, what is missing is run. A run is a folder
as daad_mvtec.py makes it, OUT/SCALE/SETTING/CATEGORY/seed-SEED; OUT/results.csv has them all.
"""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from daad.ablation_results import Summary, areas_of, run_folder, summarize, write_results
from daad.ablations import (
    ABLATIONS,
    DAAD,
    SCALES,
    Ablation,
    Row,
    Setting,
    memory_parameters,
    training_bytes,
)
from daad.config import Config
from daad.data import Category, available_memory, list_categories, load_category
from daad.devices import pick_device
from daad.errors import UserError
from daad.options import Device, auroc_text, make_app, run_app
from daad.runs import Hardware, require_resumable, run_category

LARGE = 100e6  # parameters in memories, from which on they are announced

app = make_app(__doc__)
console = Console()


@dataclass(frozen=True)
class Job:
    """A setting to be trained on a category with a seed, in the folder `run`."""

    setting: Setting
    category: Category
    seed: int
    config: Config
    run: Path


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
    scale: Annotated[
        str, typer.Option(help="paper: its settings, a GPU's work; small: for two cores, not them.")
    ] = "paper",
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
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("one process runs all; to use several, give each its --settings or --seeds")
    if scale not in SCALES:
        raise UserError(f"--scale {scale}: choose one of {', '.join(SCALES)}")
    tables = {name: ABLATIONS[name] for name in _pick("--only", only, ABLATIONS)}
    numbers = _parse_seeds(seeds)
    rows = _rows_to_run(tables, scale, settings)
    names = _pick("--categories", categories, list_categories(root))
    known = [load_category(root, name) for name in names]
    jobs = _jobs(out, scale, [row for part in rows.values() for row in part], known, numbers)
    _run(jobs, out, pick_device(device), Hardware(device), yes=yes)
    for name, part in rows.items():
        _show(ABLATIONS[name], scale, part, summarize(out, scale, part, names, numbers))
    console.print(f"All results: {out / 'results.csv'}", soft_wrap=True)


def _pick(option: str, text: str, known: Collection[str]) -> list[str]:
    """The names in `text`, in the order of `known`; all of them for "all". UserError for others."""
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


def _parse_seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--seeds {text}: give whole numbers with commas between, such as 0,1,2")
    return sorted({int(part) for part in parts})


def _rows_to_run(tables: dict[str, Ablation], scale: str, settings: str) -> dict[str, list[Row]]:
    """The rows of each table that were asked for; those that do not fit the scale are said."""
    runs = dict.fromkeys(row.setting.run for table in tables.values() for row in table.rows)
    wanted = _pick("--settings", settings, runs)
    rows: dict[str, list[Row]] = {}
    for name, table in tables.items():
        rows[name] = []
        for row in table.rows:
            if row.setting.run not in wanted:
                continue
            try:
                row.setting.config(scale, 0)
            except UserError as error:
                console.print(f"Left out of {name} at scale {scale}: {row.label}: {error}")
            else:
                rows[name].append(row)
    if not any(rows.values()):
        raise UserError(f"--scale {scale}: none of the rows fits it; see above, give another one")
    return rows


def _jobs(
    out: Path, scale: str, rows: Sequence[Row], categories: Sequence[Category], seeds: Sequence[int]
) -> list[Job]:
    """Every run once, a seed at a time, so that a table is complete as early as can be."""
    settings = list({row.setting.run: row.setting for row in rows}.values())
    return [
        Job(
            setting,
            category,
            seed,
            setting.config(scale, seed),
            run_folder(out, scale, setting.run, category.name, seed),
        )
        for seed in seeds
        for setting in settings
        for category in categories
    ]


def _run(
    jobs: Sequence[Job], out: Path, device: torch.device, hardware: Hardware, *, yes: bool
) -> None:
    """Train and evaluate the jobs that are not finished; OUT/results.csv is new after each."""
    missing = [job for job in jobs if areas_of(job.run, job.config) is None]
    for job in missing:  # all are looked at before hours go into the first
        require_resumable(job.run, job.config, "category")
    _check_memory(missing, device, yes=yes)
    console.print(f"{len(jobs)} runs: {len(jobs) - len(missing)} finished before, kept")
    for number, job in enumerate(missing, 1):
        what = f"{job.setting.run}, {job.category.name}, seed {job.seed}"
        console.print(f"[bold]{what}[/bold]: {number} of {len(missing)} to run")
        run_category(job.config, job.category, job.run, hardware, resume=True)
        write_results(out / "results.csv", out)
    write_results(out / "results.csv", out)


def _check_memory(jobs: Sequence[Job], device: torch.device, *, yes: bool) -> None:
    """Say how large the large memories are; UserError where they do not fit and it is not `yes`."""
    for job in {job.setting.run: job for job in jobs}.values():
        parameters, needed = memory_parameters(job.config), training_bytes(job.config)
        if parameters < LARGE:
            continue
        text = (
            f"{job.setting.run}: {parameters / 1e6:.0f} M memory parameters, in training "
            f"{needed / 1e9:.1f} GB with their gradients and Adam's two moments"
        )
        console.print(text)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
        if needed > free and not yes:
            raise UserError(
                f"{text}, and {free / 1e9:.1f} GB are free on {device}; leave it out by naming "
                f"the others with --settings, use a machine with more, or add --yes to try"
            )


def _show(
    ablation: Ablation, scale: str, rows: Sequence[Row], summaries: Sequence[Summary]
) -> None:
    if not rows:
        return
    table = Table(title=ablation.title, caption=_describe(scale))
    for heading in ("", "category"):
        table.add_column(heading)
    for heading in ("N", "image AUROC", "seeds", "paper", "paper, all 15"):
        table.add_column(heading, justify="right")
    for row in rows:
        config = row.setting.config(scale, 0)
        items = str(config.num_items) if memory_parameters(config) else "-"
        head = (row.label, items)
        own = [summary for summary in summaries if summary.row is row]
        categories = sum(summary.category is not None for summary in own)
        for summary in own:
            name = summary.category or f"mean of {categories}"
            papers = (
                auroc_text(summary.paper),
                "" if summary.category else auroc_text(summary.paper_all),
            )
            table.add_row(head[0], name, head[1], _area(summary), str(len(summary.values)), *papers)
            head = ("", "")
        table.add_section()
    console.print(table)


def _area(summary: Summary) -> str:
    """Mean and standard deviation over the seeds."""
    spread = "" if summary.deviation is None else f" \u00b1 {summary.deviation:.3f}"
    return f"{auroc_text(summary.mean)}{spread}"


def _describe(scale: str) -> str:
    """What the scale is, and that it is not the paper's where it is not."""

    def text(config: Config) -> str:
        sizes = f"{config.image_size}x{config.image_size}, width {config.width}"
        return f"{sizes}, N {config.num_items}, {config.epochs} epochs, lr {config.lr:g}"

    papers, own = (text(DAAD.config(name, 0)) for name in ("paper", scale))
    if scale == "paper":
        return f"The paper's settings: DAAD with {papers}; the deviation is over seeds"
    return (
        f"Not the paper's settings but scale {scale}: DAAD with {own} (N by the paper's D/N); the "
        f"paper has {papers}. The deviation is over seeds."
    )


def run(arguments: Sequence[str] | None = None) -> None:
    """The script on `arguments`, as `run_app` says."""
    run_app(app, arguments)


if __name__ == "__main__":
    run()
