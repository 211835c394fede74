"""What the tests of the scripts share: a call from outside, its refusals, the tables it left, AUROC."""

import contextlib
import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Done(NamedTuple):
    """How a call of a script ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def call(run: Callable[[Sequence[str]], None], *arguments: Any, cwd: Path | None = None) -> Done:
    """`run` of a script on `arguments`, as if from the shell in `cwd`."""
    printed, complained = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(cwd or before)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
            run([str(argument) for argument in arguments])
    except SystemExit as end:
        return Done(end.code, printed.getvalue(), complained.getvalue())
    finally:
        os.chdir(before)
    raise AssertionError("the script ended without an exit code")


def refused(done: Done, *texts: str) -> None:
    """Code 2 and one line of an error, with all of `texts` in it."""
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for text in texts:
        assert text in line


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def area(rows: list[dict[str, str]], column: str) -> float:
    """AUROC by counted pairs."""
    good, bad = ([float(r[column]) for r in rows if r["label"] == label] for label in "01")
    return sum((a > b) + 0.5 * (a == b) for a in bad for b in good) / (len(good) * len(bad))
