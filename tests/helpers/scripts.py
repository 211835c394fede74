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
    printed = io.StringIO()
    # With an encoding, as a terminal has it: tyro asks for it, to draw its boxes
    complained = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    before = Path.cwd()
    os.chdir(cwd or before)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
            run([str(argument) for argument in arguments])
        code: Any = 0
    except SystemExit as end:
        code = end.code
    finally:
        os.chdir(before)
    return Done(code, printed.getvalue(), complained.buffer.getvalue().decode())


def refused(done: Done, *texts: str) -> None:
    """Code 2 and one line of an error, with all of `texts` in it."""
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for text in texts:
        assert text in line


def misused(done: Done, *texts: str) -> None:
    """Code 2 and tyro's words on options that cannot be, with all of `texts` in them."""
    assert done.returncode == 2
    for text in texts:
        assert text in done.stderr


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def area(rows: list[dict[str, str]], column: str) -> float:
    """AUROC by counted pairs."""
    good, bad = ([float(r[column]) for r in rows if r["label"] == label] for label in "01")
    return sum((a > b) + 0.5 * (a == b) for a in bad for b in good) / (len(good) * len(bad))
