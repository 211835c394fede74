"""What the reproduction runs, in which order and for which sections; what it leaves out and refuses."""

import shutil
from pathlib import Path

import pytest

import reproduce
from daad.network import Discriminator, Generator
from reproduction import jobs
from reproduction.tables import DAAD, DAAD_PLUS
from tests.helpers.paper_data import (
    NETWORKS,
    OF_DIGITS,
    OF_VIDEO,
    SMALL_PAPER,
    body,
    noting,
    page_of,
    results,
    said,
    script,
    section,
)
from tests.helpers.scripts import call, refused


def test_the_most_telling_comes_first(data: Path, tmp_path: Path) -> None:
    trained: list[str] = []
    train = noting(trained)
    done = script("--data", data, "--seeds", "1,0", cwd=tmp_path, train=train)
    assert f"{len(trained)} runs: 0 finished before" in said(done)
    half = len(trained) // 2
    assert all(job.endswith("seed 0") for job in trained[:half])
    assert [job.replace("seed 1", "seed 0") for job in trained[half:]] == trained[:half]
    assert len(set(trained)) == len(trained)

    jobs = [tuple(job.split(", ")[:2]) for job in trained[:half]]
    networks = [(name, "bottle") for name in NETWORKS]
    digits = [(name, f"mnist-{digit}") for name in OF_DIGITS for digit in (3, 8)]
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


def test_bottle_is_before_what_is_before_it_in_table_1(data: Path, tmp_path: Path) -> None:
    for name in ("grid", "bottle"):
        shutil.copytree(data / "mvtec" / "bottle", tmp_path / "data" / "mvtec" / name)
    trained: list[str] = []
    train = noting(trained)
    said(script("--data", tmp_path / "data", "--only", "figure6", cwd=tmp_path, train=train))
    jobs = [(name, category) for category in ("bottle", "grid") for name in ("daad", "daad+")]
    assert trained == [f"{name}, {category}, seed 0" for name, category in jobs]


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


def test_parts_of_a_table_by_its_number(data: Path, tmp_path: Path) -> None:
    trained: list[str] = []
    train = noting(trained)
    script("--data", data, "--only", "table6", cwd=tmp_path, train=train)
    names = [f"{name}, {video}, seed 0" for video in ("ped2", "avenue") for name in OF_VIDEO]
    assert trained == names


def test_a_memory_that_does_not_fit_is_left_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train = noting(trained)
    monkeypatch.setattr(jobs, "available_memory", lambda: int(15.7e9))
    common = ("--data", data, "--only", "table4", "--categories", "bottle")
    text = said(script(*common, cwd=tmp_path, train=train, scale="paper"))
    assert "Left out: daad-r1: 983 M memory parameters, in training 15.7 GB" in text
    assert "15.7 GB are free on cpu" in text
    assert "Left out: daad-r2" not in text
    settings = ["daad-r2", "daad-r4", "daad", "daad-r16"]
    assert trained == [f"{name}, bottle, seed 0" for name in settings]


# What is left out for want of data, or refused before anything is trained


def test_checkpoints_that_do_not_fit_the_disk_are_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of DAAD and DAAD+ as here: the weights of both, and five times those of the larger."""
    train = noting([])
    daad, plus = (
        s.config("photographs", SMALL_PAPER.scales["small"], 0) for s in (DAAD, DAAD_PLUS)
    )
    common = ("--data", data, "--only", "figure6", "--categories", "bottle")
    weights = [
        4 * sum(p.numel() for net in nets for p in net.parameters())
        for nets in (
            (Generator(daad),),
            (Generator(plus), Discriminator(plus)),
        )
    ]
    needed = sum(weights) + 5 * max(weights)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    assert "Little room" not in said(script(*common, cwd=tmp_path, train=train))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    assert "Little room: checkpoints of 2 runs" in said(script(*common, cwd=tmp_path, train=train))


def test_data_that_is_not_there_is_said(data: Path, tmp_path: Path) -> None:
    trained: list[str] = []
    train = noting(trained)
    some = tmp_path / "some"
    shutil.copytree(data / "ped2", some / "ped2")
    text = said(script("--data", some, cwd=tmp_path, train=train))
    assert trained == [f"{name}, ped2, seed 0" for name in ("ae", "daad", "daad+")]
    assert "Left out of table3: " in text
    assert "Left out of table2-mnist: " in text
    assert "Left out of table6-avenue: " in text
    assert "Left out of table6-ped2" not in text

    refused(
        script("--data", some, "--only", "table2,table3", cwd=tmp_path, train=train),
        f"--data {some}: none of the data sets is there",
    )


def test_refusals_before_anything_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train = noting(trained)
    common = ("--data", data)
    refused(
        script(*common, "--only", "table9", cwd=tmp_path, train=train),
        "no table9",
        "figure1",
        "open",
    )
    refused(script(*common, "--only", "", cwd=tmp_path, train=train), "--only : no (empty)")
    refused(
        script(*common, cwd=tmp_path, train=train, scale="tiny"), "--scale tiny", "paper, small"
    )
    refused(
        script(*common, "--seeds", "0,x", cwd=tmp_path, train=train), "--seeds 0,x", "whole numbers"
    )
    refused(
        script(*common, "--categories", "zipper", cwd=tmp_path, train=train),
        "no zipper",
        "carpet, bottle",
    )
    refused(script("--data", tmp_path / "none", cwd=tmp_path, train=train), "none of the data sets")
    for bad in ("-1", "nan"):
        refused(
            script(*common, "--budget-minutes", bad, cwd=tmp_path, train=train),
            f"--budget-minutes {bad}",
        )
    refused(
        script(*common, "--page", "results", cwd=tmp_path, train=train), "--page results", ".md"
    )
    refused(call(reproduce.main, "--device", "gpu", cwd=tmp_path), "--device gpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(
        script(*common, cwd=tmp_path, train=train), "started by torchrun", "start the script itself"
    )
    assert trained == []
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_page_is_refused_before_hours_go_into_it(data: Path, tmp_path: Path) -> None:
    trained: list[str] = []
    train = noting(trained)
    stored = tmp_path / "out" / "reproduction" / "results.csv"
    stored.parent.mkdir(parents=True)
    stored.write_text("scale,setting\nsmall,ae\n")
    refused(
        script("--data", data, cwd=tmp_path, train=train),
        "results.csv: not the results of reproduce.py",
    )
    assert trained == []
    assert stored.read_text() == "scale,setting\nsmall,ae\n"


def test_a_category_that_cannot_be_used_does_not_keep_the_others_out(
    data: Path, tmp_path: Path
) -> None:
    trained: list[str] = []
    train = noting(trained)
    some = tmp_path / "some"
    shutil.copytree(data / "mvtec", some / "mvtec")
    shutil.rmtree(some / "mvtec" / "carpet" / "test" / "good")
    common = ("--data", some, "--only", "table3")
    done = script(*common, cwd=tmp_path, train=train)
    refused(done, "some of the data could not be used", "good and anomalous pictures", "carpet")
    assert trained == [f"{name}, bottle, seed 0" for name in NETWORKS]
    assert "Results: out/reproduction.md" in done.stdout
    # Where none is left, that is what is wrong.
    done = script(*common, "--categories", "carpet", cwd=tmp_path, train=train)
    refused(done, "good and anomalous pictures", "carpet")
    assert len(trained) == len(NETWORKS)


def test_damaged_data_is_not_said_to_be_missing(data: Path, tmp_path: Path) -> None:
    trained: list[str] = []
    train = noting(trained)
    some = tmp_path / "some"
    for name in ("mnist", "ped2"):
        shutil.copytree(data / name, some / name)
    (damaged,) = (some / "mnist").glob("t10k-labels*")
    damaged.write_bytes(b"none")
    done = script("--data", some, "--only", "table2,table6", cwd=tmp_path, train=train)
    refused(done, "some of the data could not be used", str(damaged))
    assert "avenue" not in done.stderr
    assert trained == [f"{name}, ped2, seed 0" for name in ("ae", "daad", "daad+")]
    refused(
        script("--data", some, "--only", "table2", cwd=tmp_path, train=train), f"error: {damaged}"
    )


def test_what_a_scale_is_not_for_is_left_out(data: Path, tmp_path: Path) -> None:
    trained: list[str] = []
    train = noting(trained)
    common = ("--data", data, "--categories", "bottle", "--only")
    text = said(
        script(*common, "table1,table2-mnist", cwd=tmp_path, train=train, scale="small-256")
    )
    assert "scale small-256 is for photographs alone, without table2-mnist" in text
    assert trained == [f"{name}, bottle, seed 0" for name in NETWORKS]
    done = script(*common, "table6", cwd=tmp_path, train=train, scale="small-256")
    refused(done, "--scale small-256", "give another one for these")


def test_the_papers_scale_on_a_cpu_is_said_to_be_a_gpus_work(data: Path, tmp_path: Path) -> None:
    train = noting([])
    common = ("--data", data, "--only", "table6-ped2")
    assert "for a CPU there is --scale small" in said(
        script(*common, cwd=tmp_path, train=train, scale="paper")
    )
    assert "a GPU's work" not in said(script(*common, cwd=tmp_path, train=train))
