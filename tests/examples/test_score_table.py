"""The table of the score: what docs/photographs.md has is what the CSV gives, and how it is made."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import score_table
from daad import command
from daad.drawn import make_dataset
from score_table import (
    AS_IT_IS,
    BEGIN,
    COLUMNS,
    DOCS,
    END,
    EVEN,
    merged,
    missing,
    read_rows,
    tables,
)
from tests.helpers.scripts import call, refused, table


def row(name: str, method: str, seed: int | str = "", light: str = AS_IT_IS, **figures: Any) -> Any:
    blank = dict.fromkeys(COLUMNS, "")
    return blank | {"set": name, "method": method, "seed": str(seed), "light": light} | figures


def body(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]


def test_the_page_has_what_the_csv_gives() -> None:
    page = (DOCS / "photographs.md").read_text(encoding="utf-8")
    inside = page.partition(BEGIN)[2].partition(END)[0]
    assert inside.strip() == tables(merged(read_rows(DOCS / "score.csv"), []))


def test_figures_are_means_over_seeds_and_the_best_is_bold() -> None:
    rows = [
        row("bottle", "daad", 0, image_auroc="0.9", image_auroc_eq7="0.8"),
        row("bottle", "daad", 1, image_auroc="1.0", image_auroc_eq7="0.6"),
        row("bottle", "PCA 50", image_auroc="0.96"),
        row("grid", "daad", 0, image_auroc="0.7", image_auroc_eq7="0.5"),
        row("grid", "PCA 50", image_auroc="0.6"),
        row("grid", "PCA 50", light=EVEN, image_auroc="0.75"),
    ]
    plain, even = tables(rows).split("With even light:")
    heads, _, bottle, grid, mean = body(plain)
    assert heads == ["set", "DAAD, Eq. 7", "DAAD, score", *score_table.SIMPLE]
    assert bottle == [
        "bottle",
        "0.700 ± 0.141",
        "0.950 ± 0.071",
        "\u2013",
        "\u2013",
        "**0.960**",
        "\u2013",
    ]
    assert grid == ["grid", "0.500", "**0.700**", "\u2013", "\u2013", "0.600", "\u2013"]
    assert mean == ["mean", "0.600", "**0.825**", "\u2013", "\u2013", "0.780", "\u2013"]
    assert body(even)[2][5] == "**0.750**"


def test_new_rows_take_the_place_of_the_old_and_what_is_done_is_not_missing() -> None:
    before = [row("grid", "daad", 0, image_auroc="0.1"), row("bottle", "ae", 0)]
    rows = merged(before, [row("grid", "daad", 0, image_auroc="0.2")])
    assert [(one["set"], one["image_auroc"]) for one in rows] == [("bottle", ""), ("grid", "0.2")]
    left = missing(rows, [0])
    assert ("grid", "daad", 0) not in left
    assert ("bottle", "ae", 0) not in left
    assert len(left) == 5 * 8 - 2
    assert left[0] == ("bottle", "daad", 0)


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    options = ["--data", str(tmp_path), "--page", str(page), "--table", str(tmp_path / "x.csv")]
    refused(call(score_table.main, *options, cwd=tmp_path), "has no place for the table")
    assert page.read_text() == "no marks"


def test_a_network_is_measured_with_what_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"image_size": 32, "width": 2, "division": (2, 2, 1), "num_items": 4, "steps": 2}
    monkeypatch.setitem(command.PRESETS, "cpu", {"lr": 1e-3, "batch_size": 4} | small)
    monkeypatch.setattr(score_table, "LIGHT", 0.0)  # so that even light is measured too
    make_dataset(tmp_path / "data", image_size=32, train=8, test_good=3, test_per_defect=2)
    shutil.rmtree(tmp_path / "data" / "gear")
    given = (tmp_path / "data", "weave", "daad", 1, tmp_path / "out", "cpu", "a CPU")
    rows = score_table.measure(*given, float("inf"))
    assert [(one["method"], one["light"]) for one in rows] == [
        (name, light) for light in (AS_IT_IS, EVEN) for name in ("daad", *score_table.SIMPLE)
    ]
    assert rows[0]["seed"] == 1
    assert rows[0]["normals"] == 1
    assert set(rows[0]) == set(COLUMNS)
    assert rows[1]["seed"] == ""
    with pytest.raises(score_table.OutOfTime):
        score_table.measure(*given, 0.0)


@pytest.mark.slow
def test_runs_side_by_side_write_the_table(tmp_path: Path) -> None:
    """By real processes; out of time after the first epochs, and nothing is lost."""
    data = tmp_path / "data" / "mvtec"
    make_dataset(data, image_size=32, train=8, test_good=3, test_per_defect=2)
    (data / "gear").rename(data / "bottle")
    (data / "weave").rename(data / "cookie")
    page, csv = tmp_path / "page.md", tmp_path / "score.csv"
    page.write_text(f"{BEGIN}\n{END}\n")
    options = {"data": data.parent, "seeds": 0, "workers": 2, "minutes": 0.05, "out": tmp_path / "o",
               "table": csv, "page": page, "device": "cpu"}  # fmt: skip
    flat = [str(one) for key, value in options.items() for one in (f"--{key}", value)]
    done = call(score_table.main, *flat, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "are left, and the same command goes on with them" in " ".join(done.stdout.split())
    assert table(csv) == [] if csv.exists() else True
    assert "mean" in page.read_text()
