"""The page of results: every table and figure of the paper with ours beside it; its CSV and files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from filelock import FileLock

from daad.classes import CLASSES
from daad.command import auroc_text
from daad.io import write_text
from daad.mvtec import TABLE_ORDER, table_place
from reproduction.records import Record, collect, read_results, write_results
from reproduction.scales import Scale, memory_parameters
from reproduction.summaries import Summary, judged_rows, matching, summarize
from reproduction.tables import Paper, Row, Table, rows_that_fit

RESULTS = "results.csv"

INTRODUCTION = """# The paper's results, run again

Every table and figure of the DAAD paper (Hou et al., "Divide-and-Assemble: Learning Block-wise Memory
for Unsupervised Anomaly Detection", ICCV 2021), as far as its data could be had, ours beside the
paper's. Figures are AUROCs after the last epoch, mean ± standard deviation where there are several
seeds. Its Table 1 compares others with DAAD+, whose column is in Table 3.

`python examples/reproduce.py --data DATA` runs what is missing and writes such a page from
[results.csv]({assets}/results.csv), which has a line for each run with its choices, device and minutes
of training. No number stands in a table without such lines. A mean over categories is over the seeds
that all of them have, which are named where some have more.

A table that names a scale is not at the paper's settings: its runs fit two cores, at a higher learning
rate that falls to 0 by a cosine. What else differs is said with the scale."""
PAPERS = "At the paper's settings"
_SMALL = "Scale `{}`: {}"
SMALL_ALREADY = "fewer channels, fewer epochs"  # of pictures that are 32x32 at any scale
ONE_CLASS = (
    "The paper's r 8 does not fit pictures of 32x32, whose last map is 2x2, and it gives neither r nor N nor "
    'epochs for them: those here are ours at any scale. Its "Ours" stands beside DAAD; it does not say '
    "whether it is DAAD+. Its MemAE is quoted from others, who tested on a part of the test set."
)
# In the order of the paper; what it shows without figures has a heading and a sentence here.
SECTIONS = (
    *("figure1", "figure2", "table2-mnist", "table2-cifar10", "table3", "peak", "table4"),
    *("figure5", "table5", "figure6", "table6-ped2", "table6-avenue", "figure7", "open"),
)
HEADINGS = {
    "figure1": (
        "Figure 1, the idea in one picture",
        "Patterns of growing blocks are learned from A, diagonal stripes, and from nothing else. Then "
        "B, stripes like them, and C, other stripes, are assembled from them. Small blocks rebuild "
        "everything and large ones nothing but A; in between lies what rebuilds B and not C.",
    ),
    "figure2": (
        "Figure 2, reconstructions by network",
        "Below each picture R(x), its mean squared error.",
    ),
    "table2-mnist": ("", ONE_CLASS),
    "table2-cifar10": ("", ONE_CLASS),
    "figure5": (
        "Figure 5, reconstructions by division rate",
        "Blocks get smaller from left to right.",
    ),
    "figure6": (
        "Figure 6, anomaly score and anomaly area",
        "Every test picture; good ones have no area. The paper shows leather.",
    ),
}


def page(
    paper: Paper,
    records: Sequence[Record],
    notes: Mapping[str, str],
    pictures: Mapping[str, Sequence[str]],
    assets: str,
) -> str:
    """Write the page in Markdown.

    notes: what was written by hand. A note by the section's name says why ours differs; one by
    NAME-data stands first, and says how the data is not the paper's.
    pictures: files by the section's name, as paths from the page. assets: the folder of
    results.csv from there.
    """
    parts = [INTRODUCTION.format(assets=assets), notes.get("introduction", "")]
    for name in SECTIONS:
        parts += _section(paper, name, records, notes, pictures.get(name, ()))
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _section(
    paper: Paper,
    name: str,
    records: Sequence[Record],
    notes: Mapping[str, str],
    pictures: Sequence[str],
) -> Iterator[str]:
    table = paper.tables.get(name)
    heading, text = HEADINGS.get(name, ("", ""))
    title = heading or (table.title if table else name)
    yield f"## {title}"
    yield text
    yield notes.get(f"{name}-data", "")
    left = {path: _parts(paper, name, path) for path in pictures}
    found = bool(pictures)
    for scale in _scales(paper, table, records) if table else ():
        lines = list(_table(name, table, scale, records)) if table else []
        found = found or bool(lines)
        yield from lines
        for path in [path for path, (of, _) in left.items() if of == scale.name]:
            yield from _picture(title, name, path, *left.pop(path))
    for path, parts in left.items():
        yield from _picture(title, name, path, *parts)
        if table is None:  # else the command is below the table
            yield _command_for(name, *parts)
    if not found:
        yield "Not run."
    yield notes.get(name, "")


def _parts(paper: Paper, name: str, path: str) -> tuple[str, str]:
    """Read a picture's scale and its category or clip from its name; empty where it is of none."""
    rest = PurePosixPath(path).stem.removeprefix(name).removeprefix("-")
    fitting = [scale for scale in paper.scales if f"{rest}-".startswith(f"{scale}-")]
    scale = max(fitting, key=len, default="")
    return scale, rest.removeprefix(scale).removeprefix("-")


def _picture(title: str, name: str, path: str, scale: str, subject: str) -> Iterator[str]:
    """Show a picture with its caption."""
    words = [title, *filter(None, (scale, subject))]
    what = f"clip {subject}" if name.startswith("table6-") else subject
    caption = f"\n\n*{what}*" if subject else ""
    yield f"![{', '.join(words)}]({quote(path)}){caption}"


def _command_for(name: str, scale: str, subject: str) -> str:
    if not scale:
        return f"```sh\npython examples/reproduce.py --only {name}\n```"
    which = f"--only {name} --scale {scale} --categories {subject}"
    return f"```sh\npython examples/reproduce.py {_data([subject])} {which}\n```"


def _data(categories: Iterable[str]) -> str:
    """Say where the data is: in a folder of one's own where no category is the paper's."""
    own = bool(categories) and not set(categories) & set(TABLE_ORDER)
    return "--root ROOT" if own else "--data DATA"


def _scales(paper: Paper, table: Table, records: Sequence[Record]) -> list[Scale]:
    """Pick the scales with runs.

    A variant of small with one setting is left out where another scale compares several. Such scales
    are for some tables, and DAAD's run of those belongs in most of the others too.
    """
    found = [
        (scale, len({record.setting for record in matching(records, table, scale)}))
        for scale in paper.scales.values()
    ]
    several = any(count > 1 for _, count in found)
    return [
        scale
        for scale, count in found
        if count > (1 if several and scale.name.startswith("small-") else 0)
    ]


def _table(name: str, table: Table, scale: Scale, records: Sequence[Record]) -> Iterator[str]:
    """Write what there is of a table at a scale: its words, its rows, how they were made."""
    fitting, left_out = rows_that_fit(table, scale)
    table = replace(table, rows=fitting)
    used = matching(records, table, scale)
    subjects = sorted({record.subject for record in used}, key=table_place)
    wanted = list(table.subjects) or subjects
    summaries = summarize(records, table, scale, wanted) if subjects else []
    if not summaries:
        return
    words = SMALL_ALREADY if table.kind in CLASSES else scale.words
    yield f"**{_SMALL.format(scale.name, words) if scale.words else PAPERS}.**"
    yield _rows(table, scale, wanted, summaries)
    yield _how(name, table, scale, used, summaries)
    missing = [row.label for row in table.rows if all(one.row is not row for one in summaries)]
    notes = [f"Not run at this scale: {'; '.join(missing)}"] if missing else []
    notes += [f"Does not fit this scale: {line}" for line in left_out]
    if notes:
        yield "\n".join(f"- {note}." for note in notes)


def _rows(table: Table, scale: Scale, subjects: Sequence[str], summaries: Sequence[Summary]) -> str:
    papers_mean = "paper" if table.subjects else "paper, all 15"
    names = [name.removeprefix(f"{table.kind}-") for name in subjects]
    several = len(subjects) > 1
    heads = ["", "N", *names, *(["mean"] * several), papers_mean]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in table.rows:
        own = {summary.subject: summary for summary in summaries if summary.row is row}
        if not own:
            continue
        cells = [_cell(own.get(name)) for name in subjects]
        mean = [_cell(own.get(None))] * several
        lines.append([row.label, _items(table, row, scale), *cells, *mean, auroc_text(row.paper)])
    # A folder's name may hold what ends a cell.
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _items(table: Table, row: Row, scale: Scale) -> str:
    config = row.setting.config(table.kind, scale, 0)
    return str(config.num_items) if memory_parameters(config) else "-"


def _cell(summary: Summary | None) -> str:
    """Write mean and deviation over the seeds, and in parentheses the paper's figure."""
    if summary is None:
        return ""
    return f"{summary}" if summary.paper is None else f"{summary} ({summary.paper:.3f})"


def _how(
    name: str,
    table: Table,
    scale: Scale,
    used: Sequence[Record],
    summaries: Sequence[Summary],
) -> str:
    """Say how the runs of a table were made: sizes, seeds, device, minutes, command."""
    seeds = ",".join(map(str, sorted({record.seed for record in used})))
    sizes = _distinct(f"{r.image_size}x{r.image_size}, width {r.width}" for r in used)
    training = _distinct(
        f"{r.epochs} epochs of batches of {r.batch_size}, lr {r.lr:g}" for r in used
    )
    temperatures = ", ".join(sorted({f"{r.temperature:g}" for r in used if r.num_items}))
    addressing = "" if temperatures in ("", "1") else f" temperature {temperatures};"
    devices = _distinct(record.device for record in used)
    minutes = sum(record.minutes for record in used)
    photographs = table.kind == "photographs"
    categories = sorted({one.subject for one in used}, key=table_place) if photographs else []
    command = f"python examples/reproduce.py {_data(categories)} --only {name} --scale {scale.name}"
    command += f" --categories {','.join(categories)}" if categories else ""
    has_papers_figures = any(one.paper is not None for one in summaries)
    parentheses = " In parentheses the paper's figure." if has_papers_figures else ""
    counts = sorted({len(one.values) for one in summaries if one.subject is not None})
    fewer = ", ".join(map(str, counts[:-1]))
    each = f" ({fewer} or {counts[-1]} of them a figure)" if fewer else ""
    return (
        f"Pictures of {sizes}; {training};{addressing} seeds {seeds}{each}. {len(used)} runs, {minutes:.0f} "
        f"minutes of training on {devices}.{parentheses}\n\n"
        f"```sh\n{command} --seeds {seeds}\n```"
    )


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


# The files of the page


def assets_of(path: Path) -> Path:
    """Name the folder of the page `path` with its CSV, figures and notes: the page less its suffix."""
    return path.with_suffix("")


def gather(path: Path, out: Path, paper: Paper) -> list[Record]:
    """Read the records of the page `path`, with those of the runs in `out` in place of its own.

    What was measured elsewhere and is only in the CSV stays. Runs whose settings no longer match
    their row never replace a stored record.
    """
    stored = assets_of(path) / RESULTS
    known = read_results(stored) if stored.exists() else []
    records = {record.key: record for record in known}
    for record in collect(out, paper.scales):
        if judged_rows(record, paper) or record.key not in records:
            records[record.key] = record
    return sorted(records.values(), key=lambda record: record.order)


def update_page(path: Path, out: Path, paper: Paper) -> None:
    """Write the page `path` again, with the runs in `out` as they are now.

    Only one process at a time does so: else one would take back what another has just added.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        write_page(path, gather(path, out, paper), paper)


def write_page(path: Path, records: Sequence[Record], paper: Paper) -> None:
    """Write the CSV and the page, with the figures and notes (NAME.md) that lie beside the CSV."""
    assets = assets_of(path)
    write_results(assets / RESULTS, records)
    notes = {note.stem: note.read_text(encoding="utf-8") for note in assets.glob("*.md")}
    pictures = {
        name: [f"{assets.name}/{picture.name}" for picture in _pictures(assets, name)]
        for name in SECTIONS
    }
    write_text(path, page(paper, records, notes, pictures, assets.name))


def _pictures(assets: Path, name: str) -> list[Path]:
    return sorted([*assets.glob(f"{name}.png"), *assets.glob(f"{name}-*.png")])
