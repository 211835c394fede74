"""Files that are whole or absent: everything is written to a temporary name, then renamed."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path` in one step.

    The temporary name keeps the suffix, since some writers choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(root: Path, paths: Iterable[Path]) -> str:
    """A short word for the files `paths`, by their names below `root` and their sizes.

    Their content is not read: it is there to notice other data, not damage.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_means(
    path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], averaged: Sequence[str]
) -> None:
    """The table of `rows`, and below it "mean" with the means of the columns `averaged`.

    A mean is over the rows that have a value; blank where none has, and in the other columns.
    """
    last = dict.fromkeys(columns, "") | {columns[0]: "mean"}
    for column in averaged:
        values = [row[column] for row in rows if row[column] is not None]
        last[column] = round(sum(values) / len(values), 6) if values else ""
    write_csv(path, columns, [[row[column] for column in columns] for row in [*rows, last]])


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    write_atomically(path, write)
