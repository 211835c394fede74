"""The Python code of the README and of every page of docs/ runs, and prints what the page says.

Blocks of one page run in order, in one namespace, from seed 0, in an empty folder. A block of
```text that follows one of ```python is what that one prints. A block that cannot run has a line
before it that says why: <!-- not run: REASON -->.
"""

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
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


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_code_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace: dict[str, Any] = {"__name__": page}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in PAGES[page]:
            printed = run(block, str(ROOT / page), namespace)
            if block.printed is not None:
                assert printed == block.printed, f"{page}, line {block.line}"


@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md", "docs/coming-from.md"])
def test_pages_with_code_are_found(page):
    assert page in PAGES


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_a_block_is_left_out_by_a_reason_alone():
    page = "```python\na = 1\n```\n\n{}```python\nprint(a)\n```\n\nprints\n\n```text\n1\n```\n"
    first, second = blocks(page.format(""))
    assert (first.line, second.line, second.printed) == (2, 6, "1\n")
    namespace: dict[str, Any] = {}
    assert [run(block, "page", namespace) for block in (first, second)] == ["", "1\n"]
    assert len(blocks(page.format("<!-- not run: needs a GPU -->\n"))) == 1
    with pytest.raises(ValueError, match="no reason is given"):
        blocks(page.format("<!-- not run: -->\n"))


def test_an_error_points_at_the_line_of_the_page():
    (block,) = blocks("# Title\n\n```python\na = 1\nb = a / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(block, "page.md", {})
    frame = caught.traceback[-1]
    assert (frame.frame.code.raw.co_filename, frame.lineno + 1) == ("page.md", 5)
