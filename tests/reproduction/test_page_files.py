"""The files of the page: results.csv as it is kept and refused, the page beside it; and those in docs/."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from daad.io import UserError
from reproduction import page as room
from reproduction.drawings import CURVES, curve_values
from reproduction.page import assets_of, gather, write_page
from reproduction.records import Record, read_results, write_results
from reproduction.tables import PAPER
from tests.helpers.made_records import PAPER_PICTURE, PICTURE, VIDEO, made
from tests.helpers.paper_data import section

DOCS = Path(__file__).parents[2] / "docs"


def some() -> list[Record]:
    plus = {"auroc_l": 0.7, "pixel_auroc": 0.1 + 0.2, "minutes": 0.1}
    return [
        made("ae", "bottle", 0.5),
        made("daad", "ped2", 0.9, auroc_r=None, auroc_global=0.25, auroc_within=0.5, **VIDEO),
        made("daad+", "bottle", 1 / 3, 12, **plus, device='A "GPU", of two\nlines'),
    ]


def test_a_run_of_other_settings_takes_no_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder of runs lies one from before its row was changed; the page has one from after."""
    page = tmp_path / "page.md"
    new, newer = (made("daad", "bottle", area) for area in (0.9, 0.95))
    old = dataclasses.replace(made("daad", "bottle", 0.5), others="variant=daad")
    lonely = dataclasses.replace(made("ae", "bottle", 0.4), others="variant=ae")
    write_page(page, [new], PAPER)
    for found, kept in (([old, lonely], [lonely, new]), ([newer], [newer])):
        monkeypatch.setattr(room, "collect", lambda *_, found=found: found)
        assert gather(page, tmp_path, PAPER) == kept


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", some())
    assert read_results(tmp_path / "results.csv") == some()
    write_results(tmp_path / "none.csv", [])
    assert read_results(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text.replace("minutes", "hours"),
        lambda text: text.replace("small,ae,bottle,0", "small,ae,bottle,x"),
        lambda text: text.replace("4.5", ""),
        lambda text: text[: text.rindex(",")],
        lambda text: text.replace("bottle", '"' + 200_000 * "b"),
        lambda text: text + "\N{LATIN SMALL LETTER E WITH ACUTE}",
    ],
    ids=["empty", "other", "seed", "minutes", "cut", "quote", "encoding"],
)
def test_damaged_results_are_refused(damage: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_results(path, some())
    path.write_text(damage(path.read_text()), encoding="latin-1")
    with pytest.raises(UserError, match=r"results\.csv: not the results of reproduce\.py"):
        read_results(path)


def test_new_runs_take_the_place_of_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reproduction.md"
    old = [made("daad", "bottle", 0.5, 10), made("daad", "bottle", 0.5, 9), made("ae", "tile", 0.6)]
    write_page(path, old, PAPER)
    new = [made("daad", "bottle", 0.7, 9), made("ae", "screw", 0.8)]
    monkeypatch.setattr(room, "collect", lambda *_: new)
    # By setting, then in the order of Table 1, then by seed
    assert gather(path, tmp_path / "out", PAPER) == [old[2], new[1], new[0], old[0]]
    assert gather(tmp_path / "other.md", tmp_path / "out", PAPER) == new[::-1]


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "reproduction.md"
    assets = assets_of(path)
    assets.mkdir()
    (assets / "table4.md").write_text("Why r 4 is low: \N{PLUS-MINUS SIGN}.\n", encoding="utf-8")
    for name in (PICTURE, PAPER_PICTURE, "reproduction/table44.png", "reproduction/table4.svg"):
        (tmp_path / name).write_bytes(b"a picture")
    write_page(path, some(), PAPER)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert len(before) == 7
    text = path.read_text(encoding="utf-8")
    scales = {"paper": PAPER_PICTURE, "small": PICTURE}
    title = "Table 4, division rates r_h and r_w"
    shown = [f"![{title}, {scale}]({name})" for scale, name in scales.items()]
    end = "\n\n".join([*shown, "Why r 4 is low: \N{PLUS-MINUS SIGN}."])
    assert section(text, "Table 4").endswith(f"\n\n{end}\n")
    assert text.count("](reproduction/table4") == 2
    write_page(path, gather(path, tmp_path / "none", PAPER), PAPER)
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert after == before


@pytest.mark.skipif(not (DOCS / "reproduction.md").exists(), reason="no page has been written yet")
def test_the_page_in_docs_is_that_of_its_csv(tmp_path: Path) -> None:
    shutil.copytree(DOCS / "reproduction", tmp_path / "reproduction")
    path = tmp_path / "reproduction.md"
    write_page(path, gather(path, tmp_path / "none", PAPER), PAPER)
    for name in ("reproduction.md", "reproduction/results.csv"):
        assert (tmp_path / name).read_bytes() == (DOCS / name).read_bytes(), name
    records = read_results(tmp_path / "reproduction" / "results.csv")
    assert records
    curves = [
        (picture, name, picture.stem.removeprefix(f"{name}-"))
        for name in CURVES
        for picture in (DOCS / "reproduction").glob(f"{name}-*.png")
    ]
    assert curves
    for picture, name, scale in curves:  # a figure that was drawn before a run is not of them all
        with Image.open(picture) as image:
            assert image.text["Description"] == curve_values(
                records, name, PAPER, PAPER.scales[scale]
            ), picture.name
