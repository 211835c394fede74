"""The reproduction on a folder of one's own, with some of the rows: --root and --settings."""

import statistics
from pathlib import Path

import pytest

import reproduce
from daad.io import UserError
from reproduction import jobs
from tests.helpers.paper_data import body, noting, page_of, results, said, script, section
from tests.helpers.scripts import refused


@pytest.fixture
def root(data: Path) -> Path:
    """Two categories: bottle, which the paper has, and carpet."""
    return data / "mvtec"


def test_a_table_is_of_the_rows_and_seeds_that_were_asked_for(root: Path, tmp_path: Path) -> None:
    common = ("--root", root, "--only", "table5", "--settings", "daad,daad+")
    said(script(*common, "--seeds", "0,1", cwd=tmp_path))
    lines = results(tmp_path)
    runs = {
        (run, category, seed)
        for run in ("daad", "daad+") for category in ("carpet", "bottle") for seed in "01"
    }  # fmt: skip
    assert {(one["setting"], one["subject"], one["seed"]) for one in lines} == runs
    assert len(lines) == len(runs)
    found = body(section(page_of(tmp_path), "Table 5"))
    rows = {"DAAD: R": ("daad", "auroc_r"), "DAAD, L_adv, L_ali: L": ("daad+", "auroc_l")}
    for row, (setting, column) in rows.items():
        own = [one for one in lines if one["setting"] == setting]
        means = [
            statistics.fmean(float(one[column]) for one in own if one["seed"] == seed)
            for seed in "01"
        ]
        expected = f"{statistics.fmean(means):.3f} ± {statistics.stdev(means):.3f}"
        assert found[row][3] == expected, row
    assert found["DAAD, L_adv, L_ali: L"][-1] == "0.874"  # the paper's


def test_what_does_not_fit_the_scale_is_said(root: Path, tmp_path: Path) -> None:
    common = ("--root", root, "--only", "table4", "--categories", "bottle")
    text = said(script(*common, "--settings", "daad-r2,daad-r4", cwd=tmp_path))
    assert "Left out of table4 at scale small: r 4: division 4,4,1 does not fit level 4" in text
    assert [line["setting"] for line in results(tmp_path)] == ["daad-r2"]
    refused(script(*common, "--settings", "daad-r4", cwd=tmp_path), "none of the rows fits it")


def test_other_data_is_left_out(root: Path, tmp_path: Path) -> None:
    trained: list[str] = []
    asked = ("--root", root, "--only", "table3,table6", "--settings", "ae")
    text = said(script(*asked, cwd=tmp_path, train=noting(trained)))
    assert "is for photographs alone, without table6-ped2, table6-avenue" in text
    assert trained == ["ae, bottle, seed 0", "ae, carpet, seed 0"]


def test_a_memory_that_does_not_fit_is_started_all_the_same_with_yes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(jobs, "available_memory", lambda: int(15.7e9))
    common = ("--root", root, "--only", "table4", "--categories", "bottle", "--settings", "daad-r1")
    for choice in ((), ("--yes",)):
        done = script(*common, *choice, cwd=tmp_path, scale="paper", train=noting(trained))
        assert "daad-r1: 983 M memory parameters, in training 15.7 GB" in said(done)
        assert trained == ["daad-r1, bottle, seed 0"] * len(choice)


def test_refusals_before_anything_is_written(root: Path, tmp_path: Path) -> None:
    common = ("--root", root)
    refused(script("--root", tmp_path / "none", cwd=tmp_path), "none: no such folder")
    refused(script(*common, "--data", root, cwd=tmp_path), "--root", "give one of them")
    refused(script(*common, "--categories", "zipper", cwd=tmp_path), "no zipper", "carpet, bottle")
    refused(script(*common, "--settings", "daad-r3", cwd=tmp_path), "no daad-r3", "daad-r16")
    assert list(tmp_path.iterdir()) == []


def test_names_and_seeds_are_read() -> None:
    assert reproduce.pick_names("--only", "b, a", ["a", "b", "c"]) == ["a", "b"]
    assert reproduce.pick_names("--only", "all", ["a", "b"]) == ["a", "b"]
    with pytest.raises(UserError, match="--only d: no d; give all, or some of these"):
        reproduce.pick_names("--only", "d", ["a"])
    assert reproduce.parse_seeds("2, 0,2") == [0, 2]
    with pytest.raises(UserError, match="--seeds 1,x"):
        reproduce.parse_seeds("1,x")
