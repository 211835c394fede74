"""The page of results: for every table and figure of the paper ours beside it, from results.csv."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from urllib.parse import quote

from daad.data import table_place
from daad.options import auroc_text
from paper.records import Record
from paper.settings import SCALES
from paper.summaries import Summary, matching, summarize
from paper.tables import CLASSES, TABLES, Row, Table, memory_parameters, rows_that_fit

INTRODUCTION = """# The paper's results, run again

Every table and figure of the DAAD paper (Hou et al., "Divide-and-Assemble: Learning Block-wise Memory
for Unsupervised Anomaly Detection", ICCV 2021), as far as its data could be had, ours beside the
paper's. Figures are AUROCs after the last epoch, mean ± standard deviation where there are several
seeds. Its Table 1 compares others with DAAD+, whose column is in Table 3.

`python examples/reproduce.py --data DATA` runs what is missing and writes such a page from
[results.csv]({assets}/results.csv), which has a line for each run with its choices, device and minutes
of training. No number stands in a table without such lines. A mean over categories is over the seeds
that all of them have, which are named where some have more."""
_SMALL = (
    "At a small scale, for two cores, not the paper's settings: {}, at a higher learning rate that "
    "falls to 0 by a cosine"
)
SCALE_WORDS = {
    "paper": "At the paper's settings",
    "small": _SMALL.format("fewer channels, smaller pictures, fewer epochs"),
    "small-256": _SMALL.format("pictures of its size, but an eighth of the channels, fewer epochs"),
    "small-120": _SMALL.format("fewer channels, smaller pictures, an eighth of the epochs"),
}
# Of pictures that are 32x32 at any scale.
SMALL_ALREADY = _SMALL.format("fewer channels, fewer epochs")
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
    records: Sequence[Record],
    notes: Mapping[str, str],
    pictures: Mapping[str, Sequence[str]],
    assets: str,
) -> str:
    """The page in Markdown.

    notes: what was written by hand, by the section's name: why ours differs; and by NAME-data, which
    stands first: how the data is not the paper's.
    pictures: files by the section's name, as paths from the page. assets: the folder of
    results.csv from there.
    """
    parts = [INTRODUCTION.format(assets=assets), notes.get("introduction", "")]
    for name in SECTIONS:
        parts += _section(name, records, notes, pictures.get(name, ()))
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _section(
    name: str, records: Sequence[Record], notes: Mapping[str, str], pictures: Sequence[str]
) -> Iterator[str]:
    heading, text = HEADINGS.get(name, ("", ""))
    yield f"## {heading or TABLES[name].title}"
    yield text
    yield notes.get(f"{name}-data", "")
    left = {path: _parts(name, path) for path in pictures}
    found = bool(pictures)
    for scale in _scales(TABLES[name], records) if name in TABLES else ():
        lines = list(_table(name, TABLES[name], scale, records))
        found = found or bool(lines)
        yield from lines
        for path in [path for path, (of, _) in left.items() if of == scale]:
            yield from _picture(name, path, *left.pop(path))
    for path, parts in left.items():
        yield from _picture(name, path, *parts)
    if not found:
        yield "Not run."
    yield notes.get(name, "")


def _parts(name: str, path: str) -> tuple[str, str]:
    """Of a picture's file its scale, and the category or clip; empty where it is of none."""
    rest = PurePosixPath(path).stem.removeprefix(name).removeprefix("-")
    fitting = [scale for scale in SCALES if f"{rest}-".startswith(f"{scale}-")]
    scale = max(fitting, key=len, default="")
    return scale, rest.removeprefix(scale).removeprefix("-")


def _picture(name: str, path: str, scale: str, subject: str) -> Iterator[str]:
    """A picture and its caption; with the command for it where no table above has one."""
    heading, _ = HEADINGS.get(name, ("", ""))
    words = [heading or TABLES[name].title, *filter(None, (scale, subject))]
    what = f"clip {subject}" if name.startswith("table6-") else subject
    caption = f"\n\n*{what}*" if subject else ""
    yield f"![{', '.join(words)}]({quote(path)}){caption}"
    if name not in TABLES:
        data, which = (
            (" --data DATA", f" --scale {scale} --categories {subject}") if scale else ("", "")
        )
        yield f"```sh\npython examples/reproduce.py{data} --only {name}{which}\n```"


def _scales(table: Table, records: Sequence[Record]) -> list[str]:
    """The scales with runs; variants of small not with one setting where another compares several.

    They are for some tables, and DAAD's run of those belongs in most of the others too.
    """
    settings = {
        scale: {record.setting for record in matching(records, table, scale)} for scale in SCALES
    }
    least = dict.fromkeys(SCALES, 1)
    if any(len(names) > 1 for names in settings.values()):
        least |= {scale: 2 for scale in SCALES if scale.startswith("small-")}
    return [scale for scale, names in settings.items() if len(names) >= least[scale]]


def _table(name: str, table: Table, scale: str, records: Sequence[Record]) -> Iterator[str]:
    """What there is of a table at a scale: its words, its rows, how they were made."""
    fitting, left_out = rows_that_fit(table.rows, table.kind, scale)
    table = replace(table, rows=fitting)
    used = matching(records, table, scale)
    subjects = sorted({record.subject for record in used}, key=table_place)
    wanted = list(table.subjects) or subjects
    summaries = summarize(records, table, scale, wanted) if subjects else []
    if not summaries:
        return
    small_already = scale != "paper" and table.kind in CLASSES
    yield f"**{SMALL_ALREADY if small_already else SCALE_WORDS[scale]}.**"
    yield _rows(table, scale, wanted, summaries)
    yield _how(name, table, scale, used, summaries)
    missing = [row.label for row in table.rows if all(one.row is not row for one in summaries)]
    notes = [f"Not run at this scale: {'; '.join(missing)}"] if missing else []
    notes += [f"Does not fit this scale: {line}" for line in left_out]
    if notes:
        yield "\n".join(f"- {note}." for note in notes)


def _rows(table: Table, scale: str, subjects: Sequence[str], summaries: Sequence[Summary]) -> str:
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
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _items(table: Table, row: Row, scale: str) -> str:
    config = row.setting.config(table.kind, scale, 0)
    return str(config.num_items) if memory_parameters(config) else "-"


def _cell(summary: Summary | None) -> str:
    """Mean and deviation over the seeds, and in parentheses the paper's figure."""
    if summary is None:
        return ""
    return f"{summary}" if summary.paper is None else f"{summary} ({summary.paper:.3f})"


def _how(
    name: str,
    table: Table,
    scale: str,
    used: Sequence[Record],
    summaries: Sequence[Summary],
) -> str:
    """How the runs of a table were made: sizes, seeds, device, minutes, command."""
    seeds = ",".join(map(str, sorted({record.seed for record in used})))
    sizes = _distinct(f"{r.image_size}x{r.image_size}, width {r.width}" for r in used)
    training = _distinct(
        f"{r.epochs} epochs of batches of {r.batch_size}, lr {r.lr:g}" for r in used
    )
    temperatures = ", ".join(sorted({f"{r.temperature:g}" for r in used if r.num_items}))
    addressing = "" if temperatures in ("", "1") else f" temperature {temperatures};"
    devices = _distinct(record.device for record in used)
    minutes = sum(record.minutes for record in used)
    command = f"python examples/reproduce.py --data DATA --only {name} --scale {scale}"
    if table.kind == "photographs":
        categories = sorted({record.subject for record in used}, key=table_place)
        command += f" --categories {','.join(categories)}"
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
