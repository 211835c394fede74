"""What the reproduction runs, from outside: in which order, for which sections, and what it leaves out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from paper_data import (
    NETWORKS,
    OF_DIGITS,
    OF_VIDEO,
    body,
    make_collection,
    make_tiny,
    noted,
    page_of,
    results,
    said,
    script,
    section,
)

from paper import jobs


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_collection(tmp_path_factory.mktemp("data"))


def test_the_most_telling_comes_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = noted(monkeypatch)
    done = script("--data", data, "--seeds", "1,0", cwd=tmp_path)
    assert f"{len(trained)} runs: 0 finished before" in said(done)
    half = len(trained) // 2
    assert all(job.endswith("seed 0") for job in trained[:half])
    assert [job.replace("seed 1", "seed 0") for job in trained[half:]] == trained[:half]
    assert len(set(trained)) == len(trained)

    jobs = [tuple(job.split(", ")[:2]) for job in trained[:half]]
    networks = [(name, "bottle") for name in NETWORKS]
    digits = [(name, f"mnist-{digit}") for digit in (3, 8) for name in OF_DIGITS]
    videos = [(network, "ped2") for network in OF_VIDEO]
    figure_2 = [(f"memae-{n}x", "bottle") for n in (2, 4, 8)] + [("memae-skip", "bottle")]
    table_4 = [("daad-r1", "bottle"), ("daad-r2", "bottle")]
    first = networks + digits + videos + figure_2 + table_4
    assert jobs[: len(first)] == first
    places = [
        *(jobs.index(("daad-adv", "bottle")), jobs.index(("daad-n100", "bottle"))),
        *(jobs.index(("daad-l2", "bottle")), jobs.index(("ae", "cifar10-airplane"))),
        *(jobs.index(("ae", "avenue")), jobs.index(("ae", "carpet"))),
    ]
    assert places == sorted(places)
    late = [name for name, subject in jobs[jobs.index(("ae", "carpet")) :] if subject == "carpet"]
    assert jobs[-len(late) :] == [(name, "carpet") for name in late]
    assert late == [name for name, subject in jobs if subject == "bottle"]


def test_a_figure_is_drawn_from_its_tables_runs(data: Path, tmp_path: Path) -> None:
    common = ("--data", data, "--only", "figure5", "--categories", "bottle")
    done = script(*common, cwd=tmp_path)
    assert "Left out of table4 at scale small: r 4: division 4,4,1 does not fit" in said(done)
    lines = results(tmp_path)
    assert [line["setting"] for line in lines] == ["daad", "daad-r1", "daad-r2"]
    drawn = [path.name for path in (tmp_path / "out" / "reproduction").glob("*.png")]
    assert drawn == ["figure5-small-bottle.png"]
    assert f"](reproduction/{drawn[0]})" in section(page_of(tmp_path), "Figure 5")
    assert list(body(section(page_of(tmp_path), "Table 4"))) == ["heads", "r 1", "r 2", "r 8"]


def test_the_toy_needs_no_data(tmp_path: Path) -> None:
    done = script("--only", "figure1", cwd=tmp_path)
    assert "No --data" not in said(done)
    assert (tmp_path / "out" / "reproduction" / "figure1.png").stat().st_size > 0
    assert "](reproduction/figure1.png)" in section(page_of(tmp_path), "Figure 1")
    assert page_of(tmp_path).count("Not run.") == 13


def test_parts_of_a_table_by_its_number(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = noted(monkeypatch)
    script("--data", data, "--only", "table6", cwd=tmp_path)
    names = [f"{name}, {video}, seed 0" for video in ("ped2", "avenue") for name in OF_VIDEO]
    assert trained == names


def test_a_memory_that_does_not_fit_is_left_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = noted(monkeypatch)
    monkeypatch.setattr(jobs, "available_memory", lambda: int(15.7e9))
    common = ("--data", data, "--only", "table4", "--categories", "bottle")
    text = said(script(*common, cwd=tmp_path, scale="paper"))
    assert "Left out: daad-r1: 983 M memory parameters, in training 15.7 GB" in text
    assert "15.7 GB are free on cpu" in text
    assert "Left out: daad-r2" not in text
    settings = ["daad-r2", "daad-r4", "daad", "daad-r16"]
    assert trained == [f"{name}, bottle, seed 0" for name in settings]
