"""The Python code of the README and of every page of docs/, and how it runs.

A block of ```text that follows one of ```python is what that one prints. A block that cannot run
has a line before it that says why: <!-- not run: REASON -->.
"""

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^(?:<!-- not run:(?P<reason>.*)-->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)


@dataclass
class Block:
    code: str
    line: int  # of its first line of code, from 1
    printed: str | None  # what the page says that it prints


def blocks(text: str) -> list[Block]:
    """The Python blocks of a page that are to run."""
    found: list[Block] = []
    after_code = False
    for match in BLOCK.finditer(text):
        reason = match["reason"]
        if reason is not None and not reason.strip():
            raise ValueError("a block is not run and no reason is given: <!-- not run: REASON -->")
        if match["language"] == "text" and after_code:
            found[-1].printed = match["code"]
        after_code = match["language"] == "python" and reason is None
        if after_code:
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(Block(match["code"], line, None))
    return found


def run(block: Block, page: str, namespace: dict[str, Any]) -> str:
    """What a block prints; its errors point at the line of the page."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), namespace)
    return printed.getvalue()


PAGES = {
    path.relative_to(ROOT).as_posix(): found
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if (found := blocks(path.read_text(encoding="utf-8")))
}
