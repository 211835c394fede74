"""Files and errors: what is written is whole or absent, and what cannot be read is said in one line."""

import csv
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock


class UserError(Exception):
    """Input that its giver can mend: what was wrong, what was expected and what to do, in one line."""


class OutOfTime(Exception):
    """Training stopped at its deadline, with a checkpoint to go on from."""


class Interrupted(KeyboardInterrupt):
    """Training stopped by a signal (`number`), with a checkpoint to go on from; its text says where."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


def alone_at(path: Path) -> FileLock:
    """Lock `path` while it is written; Timeout where another process does. It ends with its process.

    Within a process one may lock it several times.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=0, is_singleton=True)


def printable(text: str) -> str:
    """Escape what a terminal or a UTF-8 file would take amiss: control characters, bytes of no letter."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in safe)


def csv_cell(value: Any) -> Any:
    """Make text safe for a table: printable, and never a formula of a spreadsheet's."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
    return text


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, of its suffix, then rename it in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of a length that any file system takes, whatever the name's own is
    temporary = path.with_name(f".{os.getpid()}.{threading.get_native_id()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_strays(folder: Path) -> None:
    """Remove what `write_atomically` left in `folder` and below when its process was killed."""
    for path in folder.rglob(".*"):
        if re.fullmatch(r"\.\d+\.\d+(\.\w+)?", path.name):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content`, indented, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of JSON; OSError or ValueError where there is none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("no object of JSON")
    return content


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    write_atomically(path, write)


def write_means(
    path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], averaged: Sequence[str]
) -> None:
    """Write `rows` as a table, and below it "mean": of columns `averaged`, over what values there are."""
    last = dict.fromkeys(columns, "") | {columns[0]: "mean"}
    for column in averaged:
        values = [row[column] for row in rows if row[column] is not None]
        last[column] = round(sum(values) / len(values), 6) if values else ""
    write_csv(path, columns, [[row[column] for column in columns] for row in [*rows, last]])


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table as one dict a row; OSError or ValueError where there is none."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fingerprint(root: Path, paths: Iterable[Path]) -> str:
    """Give a word for the files `paths`, by names below `root` and sizes: to notice other data."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(paths):
        digest.update(os.fsencode(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0"))
    return digest.hexdigest()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, of tensors and plain values, whole or not at all; UserError if it cannot be."""
    try:
        write_atomically(path, lambda temporary: torch.save(state, temporary))
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of PyTorch's writer
        raise UserError(
            f"{path}: cannot be written ({str(error).splitlines()[0]}); make room on that disk, "
            f"or give a folder on another; what was written before is whole"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, and no code; UserError where nothing is readable."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; train first, or give the folder of a run")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state.keys() >= {"config", "epoch", "generator"}:
            return state
        raise ValueError("of another kind")
    except Exception as error:  # a file of another kind fails in any way at all
        raise UserError(
            f"{path}: not a readable checkpoint (cut short, or another kind of file); "
            f"restore it from a copy, or delete it and train again"
        ) from error
