"""What MkDocs does beyond its plugins: files from beside docs/, and formulas in docstrings."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "benchmarks/results"


def on_files(files: Files, config: Any) -> Files:
    """Add the benchmarks' figures, which lie beside their CSV files."""
    for path in sorted((ROOT / RESULTS).glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to where the site has them; files that it has not become their names."""
    up = "../" * page.file.src_path.count("/")
    markdown = markdown.replace(f"](../{RESULTS}/", f"]({up}results/")
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"`\1`", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Make formulas of what docstrings write as :math:."""
    return re.sub(r":math:<code>(.*?)</code>", r'<span class="arithmatex">\\(\1\\)</span>', html)
