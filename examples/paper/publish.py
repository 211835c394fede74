"""What is kept of runs: results.csv, the figures, and the page that shows both."""

from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from daad.files import write_text
from paper.page import SECTIONS, page
from paper.records import Record, collect, read_results, write_results
from paper.summaries import is_current

RESULTS = "results.csv"


def assets_of(path: Path) -> Path:
    """The folder beside the page `path` with its CSV, figures and notes: its name less the suffix."""
    return path.with_suffix("")


def gather(path: Path, out: Path) -> list[Record]:
    """The records of the page `path`, with those of the runs in `out` in place of its own.

    What was measured elsewhere and is only in the CSV stays. A run that was trained otherwise than
    its row is now takes the place of nothing.
    """
    stored = assets_of(path) / RESULTS
    known = read_results(stored) if stored.exists() else []
    found = collect(out)
    records = {record.key: record for record in known}
    for record in found:
        if is_current(record) or record.key not in records:
            records[record.key] = record
    return sorted(records.values(), key=lambda record: record.order)


def update_page(path: Path, out: Path) -> None:
    """Write the page `path` again, with the runs in `out` as they are now.

    One process at a time, or one would take back what another has just added.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        write_page(path, gather(path, out))


def write_page(path: Path, records: Sequence[Record]) -> None:
    """Write the CSV and the page, with the figures and notes (NAME.md) that lie beside the CSV."""
    assets = assets_of(path)
    write_results(assets / RESULTS, records)
    notes = {note.stem: note.read_text(encoding="utf-8") for note in assets.glob("*.md")}
    pictures = {
        name: [f"{assets.name}/{picture.name}" for picture in _pictures(assets, name)]
        for name in SECTIONS
    }
    write_text(path, page(records, notes, pictures, assets.name))


def _pictures(assets: Path, name: str) -> list[Path]:
    return sorted([*assets.glob(f"{name}.png"), *assets.glob(f"{name}-*.png")])
