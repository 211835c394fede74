"""The Python code of the README and of every page of docs/ runs, and prints what the page says.

Blocks of one page run in order, in one namespace, from seed 0, in an empty folder.
"""

import re
from typing import Any

import pytest
import torch

from tests.helpers.pages import BLOCK, PAGES, ROOT, blocks, run


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
