"""What docs/hooks.py makes of pages for the site, and how long the pages' sentences are."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.pages import ROOT

MOST_WORDS = 26  # about 25 is the habit
MADE = {
    "benchmarks.md",
    "reproduction.md",
    "transforms.md",
}  # by programs; they hold lists of names
PROSE = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name not in MADE),
]


@pytest.fixture(scope="module")
def hooks() -> Any:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("html", "display"),
    [
        (r'<span class="arithmatex">\(a &lt; b\)</span>', "inline"),
        ('<div class="arithmatex">\\[\na &lt; b\n\\]</div>', "block"),
        ("uniform :math:<code>a &lt; b</code>.", "inline"),
    ],
)
def test_formulas_become_mathml(hooks, html, display):
    made = hooks.on_page_content(html)
    assert f'display="{display}"' in made
    assert re.search(r"<mi>a</mi><mo>(<|&lt;|&#x0003C;)</mo><mi>b</mi>", made), made
    assert "arithmatex" not in made
    assert ":math:" not in made


def test_aligned_formulas_are_refused(hooks):
    with pytest.raises(Exception, match="one for each line: a &= b"):
        hooks.on_page_content(r'<span class="arithmatex">\(a &amp;= b\)</span>')


def test_tables_before_the_last_command_are_folded_alone(hooks):
    figures, notes = "| a |\n| --- |\n| 1 |\n", "| b |\n|---|\n| 2 |\n"
    made = hooks._folded(f"{figures}\n```sh\ncommand\n```\nNotes.\n\n{notes}")
    assert made.count("<details") == 1
    assert made.index("| 1 |") < made.index("</details>") < made.index("| 2 |")


def sentences(page: str) -> Iterator[str]:
    """Give the sentences of a page in Markdown, without code, tables, headings and formulas."""
    page = re.sub(r"```.*?```|\$\$.*?\$\$", "\n\n", page, flags=re.DOTALL)
    page = re.sub(r"^\s*(\||#|<|!\[).*$", "", page, flags=re.MULTILINE)
    page = re.sub(r"^\s*([-*]|\d+\.)\s+", "\n\n", page, flags=re.MULTILINE)
    page = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", page)
    page = re.sub(r"`[^`]*`|\$[^$]*\$", "1", page)
    for paragraph in re.split(r"\n\s*\n", page):
        yield from re.split(r"(?<=[.!?:])(?<!Eq\.)[\"*)]*\s+", " ".join(paragraph.split()))


@pytest.mark.parametrize("page", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_sentences_are_short(page: Path):
    for sentence in sentences(page.read_text(encoding="utf-8")):
        words = [word for word in sentence.split() if re.search(r"[A-Za-z]", word)]
        assert len(words) <= MOST_WORDS, sentence


def test_what_a_sentence_is():
    page = "# Title\n\nOne `a. b`, of Eq. 3. *Two*\n[goes](on.md).\n\n- Three: $x. y$\n- four\n\n| a. b |\n"
    expected = ["One 1, of Eq. 3.", "*Two* goes.", "Three:", "1", "four"]
    assert [found for found in sentences(page) if found] == expected
