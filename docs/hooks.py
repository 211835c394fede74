"""What MkDocs does beyond its plugins.

- Figures from beside docs/ become files of the site.
- The long page of the paper's results, one file for GitHub, becomes a page a section, its tables folded.
- Formulas, in pages and in docstrings, become MathML, which browsers draw by themselves.
"""

import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown.extensions.toc import slugify
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent
FIGURES = "benchmarks/results"
LONG, SECTIONS = "reproduction.md", "paper-results"
DISPLAYED = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
IN_DOCSTRING = re.compile(r":math:<code>(.*?)</code>")
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Put the sections of the long page below it in the navigation."""
    pages = [{title: f"{SECTIONS}/{slug}.md"} for title, slug, _ in _sections()]
    for entry in config.nav:
        for title, inside in entry.items():
            if isinstance(inside, list):
                entry[title] = [_unfolded(one, pages) for one in inside]
    return config


def _unfolded(entry: dict[str, Any], pages: list[dict[str, str]]) -> dict[str, Any]:
    ((title, target),) = entry.items()
    return {title: [target, *pages]} if target == LONG else entry


def on_files(files: Files, config: Any) -> Files:
    """Add the benchmarks' figures, which lie beside their CSV files, and the sections."""
    for path in sorted((DOCS.parent / FIGURES).glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    for title, slug, text in _sections():
        content = f"# {title}\n{_folded(_from_below(text))}"
        files.append(File.generated(config, f"{SECTIONS}/{slug}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to where the site has things; files that it has not become their names."""
    if page.file.src_path == LONG:
        markdown = markdown.partition("\n## ")[0]
        links = [f"- [{title}]({SECTIONS}/{slug}.md)" for title, slug, _ in _sections()]
        markdown += "\n\n" + "\n".join(links) + "\n"
    markdown = re.sub(rf"\]\({LONG}#([\w-]+)\)", rf"]({SECTIONS}/\1.md)", markdown)
    markdown = markdown.replace(f"](../{FIGURES}/", "](results/")
    if page.file.src_path.startswith(SECTIONS):
        return markdown
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"`\1`", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Make MathML of formulas: what arithmatex has marked, and what docstrings write as :math:."""
    html = DISPLAYED.sub(lambda found: f"<p>{_mathml(found[1], 'block')}</p>", html)
    html = INLINE.sub(lambda found: _mathml(found[1], "inline"), html)
    return IN_DOCSTRING.sub(lambda found: _mathml(found[1], "inline"), html)


def _mathml(formula: str, display: str) -> str:
    formula = unescape(formula).strip()
    if "&" in formula:
        raise PluginError(f"Formulas cannot be aligned; write one for each line: {formula}")
    return convert(formula, display=display)


def _sections() -> list[tuple[str, str, str]]:
    """Split the long page at its headings: title, address and text of each section."""
    parts = (DOCS / LONG).read_text(encoding="utf-8").split("\n## ")[1:]
    titled = [part.partition("\n") for part in parts]
    return [(title, slugify(title, "-"), text) for title, _, text in titled]


def _from_below(text: str) -> str:
    """Lead relative links to where they led from the folder above."""
    return re.sub(r"\]\((?!https?:|#)", "](../", text)


def _folded(text: str) -> str:
    """Fold tables, so that one sees what they come to; those of the notes, after the last command, stay."""
    figures, command, notes = text.rpartition("\n```\n")
    return _fold(figures) + command + notes


def _fold(text: str) -> str:
    return TABLE.sub(
        lambda found: (
            f'<details markdown="1"><summary>All figures</summary>\n\n{found[0]}\n</details>\n'
        ),
        text,
    )
