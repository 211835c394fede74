"""The reproduction from outside: what its lines and its page say, what is kept and what is run again."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daad.config import Config
from tests.helpers.paper_data import (
    NETWORKS,
    OF_DIGITS,
    OF_VIDEO,
    body,
    noting,
    page_of,
    results,
    said,
    script,
    section,
    without_time,
)
from tests.helpers.scripts import area, refused, table


def asked(data: Path) -> tuple[Any, ...]:
    only = "table3,table2-mnist,table6-ped2"
    return ("--data", data, "--only", only, "--categories", "bottle")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a call that was left to its end: one category, two digits, one video."""
    folder = tmp_path_factory.mktemp("whole")
    done = script(*asked(data), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "16 runs: 0 finished before" in done.stdout
    return folder


# What comes out


def scaled_by_clip(rows: list[dict[str, str]], column: str) -> list[dict[str, Any]]:
    """The rows with `column` scaled to [0, 1] over those of the same clip."""
    clips = {
        row["clip"]: [float(r[column]) for r in rows if r["clip"] == row["clip"]] for row in rows
    }
    low = {clip: min(values) for clip, values in clips.items()}
    width = {clip: max(values) - low[clip] for clip, values in clips.items()}
    return [
        row | {column: (float(row[column]) - low[row["clip"]]) / width[row["clip"]]} for row in rows
    ]


def test_each_line_is_of_what_its_run_scored(whole: Path) -> None:
    lines = results(whole)
    assert [(line["setting"], line["subject"]) for line in lines] == sorted(
        [(network, "bottle") for network in NETWORKS]
        + [(network, f"mnist-{digit}") for network in OF_DIGITS for digit in (3, 8)]
        + [(network, "ped2") for network in OF_VIDEO]
    )
    for line in lines:
        run = whole / "out" / "small" / line["setting"] / line["subject"] / "seed-0"
        metrics = json.loads((run / "metrics.json").read_text())
        video = line["subject"] == "ped2"
        plus = line["setting"] == "daad+"
        columns = {"auroc_r": "reconstruction", "auroc": "score"}
        if video:
            columns = {"auroc_r": "score_clip", "auroc": "fused_clip" if plus else "score_clip"}
            columns["auroc_global"] = "score_global"
            found = (metrics["frame_auroc"]["clip"], metrics["frame_auroc"]["global"])
            assert (float(line["auroc_r"]), float(line["auroc_global"])) == found
            if plus:
                hand = area(scaled_by_clip(table(run / "scores.csv"), "alignment"), "alignment")
                assert float(line["auroc_l"]) == pytest.approx(hand, abs=1e-6)
            clips = [clip["frame_auroc"] for clip in metrics["clips"].values()]
            within = [area for area in clips if area is not None]
            assert 0 < len(within) < len(clips)
            assert float(line["auroc_within"]) == pytest.approx(sum(within) / len(within))
        else:
            assert float(line["auroc"]) == metrics["image_auroc_eq7"]
            columns["auroc"] = "eq7"
            columns |= {"auroc_l": "alignment"} if plus else {}
        for name, column in columns.items():
            hand = area(table(run / "scores.csv"), column)
            assert float(line[name]) == pytest.approx(hand, abs=1e-6)
        assert (line["auroc_l"] == "") == (not plus)
        assert (line["auroc_global"] == "") == (line["auroc_within"] == "") == (not video)
        assert line["pixel_auroc"] == str(metrics.get("pixel_auroc_error") or "")
        assert (line["pixel_auroc"] == "") == (line["subject"] != "bottle")


def test_each_line_says_how_its_run_was_trained(whole: Path) -> None:
    for line in results(whole):
        run = whole / "out" / "small" / line["setting"] / line["subject"] / "seed-0"
        stored = json.loads((run / "config.json").read_text())
        config = Config.from_dict(stored["config"])
        names = ("image_size", "width", "epochs", "batch_size", "lr")
        assert [float(line[name]) for name in names] == [getattr(config, name) for name in names]
        if line["setting"] in ("ae", "ae-skip"):
            assert (line["division"], line["num_items"]) == ("", "0")
        else:
            division = config.division
            text = division if division == "pixel" else "x".join(map(str, division))
            assert (line["division"], line["num_items"]) == (text, str(config.num_items))
        others = dict(choice.split("=") for choice in line["others"].split())
        assert others["variant"] == config.variant == line["setting"]
        assert all(value == str(getattr(config, name)) for name, value in others.items())
        assert ("memory_init" in others) == (line["num_items"] != "0")
        assert ("gamma" in others) == (line["setting"] == "daad+")
        named = {*others, *line, "evaluate_every", "false_alarms", "patience", "fit", "white"}
        if line["setting"] == "daad+":
            assert named >= {field.name for field in dataclasses.fields(Config)}
        assert line["device"] == stored["hardware"]["name"]
        assert "thread" in line["device"]
        seconds = sum(float(row["seconds"]) for row in table(run / "history.csv"))
        assert float(line["minutes"]) == pytest.approx(seconds / 60, abs=0.05)


def test_the_page_has_ours_beside_the_papers(whole: Path) -> None:
    page = page_of(whole)
    ours = {
        (line["setting"], line["subject"]): f"{float(line['auroc']):.3f}"
        for line in results(whole)
    }  # fmt: skip
    of_bottle = section(page, "Table 3")
    papers = {"AE": (0.955, 0.794), "MemAE": (0.954, 0.802), "DAAD+": (0.976, 0.895)}
    papers |= {"AE+Skip": (0.713, 0.736), "DAAD": (0.975, 0.845)}
    found = body(of_bottle)
    assert found.pop("heads") == ["N", "bottle", "paper, all 15"]
    assert list(found) == ["AE", "MemAE", "AE+Skip", "DAAD", "DAAD+"]
    for label, cells in found.items():
        setting = label.lower().replace("+skip", "-skip")
        # The paper has 2048 numbers an item for N 500, and 512 for MemAE; here they are 16.
        items = {"MemAE": "16", "DAAD": "4", "DAAD+": "4"}.get(label, "-")
        one, mean = papers[label]
        assert cells == [items, f"{ours[setting, 'bottle']} ({one:.3f})", f"{mean:.3f}"]
    assert "seeds 0. 5 runs, " in of_bottle
    command = "reproduce.py --data DATA --only table3 --scale small --categories bottle --seeds 0\n"
    assert command in of_bottle

    digits = body(section(page, "Table 2, MNIST"))
    assert digits["heads"] == ["N", "3", "8", "mean", "paper"]
    (line_3, line_8) = (ours["daad", f"mnist-{digit}"] for digit in (3, 8))
    mean = (float(line_3) + float(line_8)) / 2
    assert digits["DAAD"][:3] == ["16", line_3, line_8]
    assert float(digits["DAAD"][3].removesuffix(" (0.990)")) == pytest.approx(mean, abs=1.1e-3)
    assert digits["DAAD"][4] == "0.990"
    assert digits["AE"][4] == "-"

    frames = body(section(page, "Table 6, UCSD Ped2"))
    assert frames["AE"] == ["-", f"{ours['ae', 'ped2']} (0.901)", "0.901"]
    assert frames["DAAD"] == ["4", f"{ours['daad', 'ped2']} (0.941)", "0.941"]
    assert "Not run." in section(page, "Table 6, CUHK Avenue")


def test_the_videos_curve_is_shown_and_nothing_else_is_drawn(whole: Path) -> None:
    """Clip 1 is all normal, so it is that of clip 2."""
    drawn = [path.name for path in (whole / "out" / "reproduction").glob("*.png")]
    assert drawn == ["table6-ped2-small-2.png"]
    curve = whole / "out" / "small" / "daad" / "ped2" / "seed-0" / "figures" / "curves" / "2.png"
    copy = whole / "out" / "reproduction" / drawn[0]
    assert copy.read_bytes() == curve.read_bytes()
    assert f"](reproduction/{drawn[0]})" in section(page_of(whole), "Table 6, UCSD Ped2")


# What is kept


def test_what_is_there_is_kept(whole: Path, data: Path) -> None:
    trained: list[str] = []
    train = noting(trained)
    files = [path for path in (whole / "out" / "small").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    page, lines = page_of(whole), results(whole)
    done = script(*asked(data), cwd=whole, train=train)
    assert "16 runs: 16 finished before, kept" in said(done)
    assert trained == []
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert (page_of(whole), results(whole)) == (page, lines)


def test_what_was_measured_elsewhere_stays(whole: Path, data: Path, tmp_path: Path) -> None:
    """Of a page alone, with its folder, whose runs are on another machine."""
    page = tmp_path / "results.md"
    shutil.copytree(whole / "out" / "reproduction", tmp_path / "results")
    before = results(whole)
    done = script("--only", "table3", "--page", page.name, cwd=tmp_path)
    assert "No --data: nothing is trained" in said(done)
    assert page.read_text() == page_of(whole).replace("(reproduction/", "(results/")
    assert table(tmp_path / "results" / "results.csv") == before
    assert not (tmp_path / "out").exists()

    common = ("--data", data, "--only", "table6-ped2", "--page", "results.md", "--seeds", 1)
    assert script(*common, cwd=tmp_path).returncode == 0
    after = table(tmp_path / "results" / "results.csv")
    assert [line for line in after if line["seed"] == "0"] == before
    own = [(line["setting"], line["subject"]) for line in after if line["seed"] == "1"]
    assert own == [(network, "ped2") for network in OF_VIDEO]
    assert " ± " in body(section(page.read_text(), "Table 6, UCSD"))["AE"][1]


def test_runs_of_other_settings_are_not_in_the_page(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "out" / "reproduction", tmp_path / "out" / "reproduction")
    stored = tmp_path / "out" / "reproduction" / "results.csv"
    header, first, *rest = stored.read_text().splitlines(keepends=True)
    assert first.startswith("small,ae,bottle,0,")
    assert first.count(",0.001,") == 1
    stored.write_text("".join([header, first.replace(",0.001,", ",0.002,"), *rest]))
    assert script("--only", "table3", cwd=tmp_path).returncode == 0
    assert list(body(section(page_of(tmp_path), "Table 3"))) == [
        *("heads", "MemAE", "AE+Skip", "DAAD", "DAAD+"),
    ]
    lines = results(tmp_path)
    assert len(lines) == 16
    assert lines[0]["lr"] == "0.002"  # it is in the CSV as it was
    assert without_time(lines[1:]) == without_time(results(whole)[1:])


# What is run


def test_what_another_page_has_is_not_run_again(whole: Path, data: Path, tmp_path: Path) -> None:
    assets = tmp_path / "docs" / "reproduction"
    assets.mkdir(parents=True)
    lines = (whole / "out" / "reproduction" / "results.csv").read_text().splitlines(keepends=True)
    of_mnist = next(line for line in lines if line.startswith("small,daad,mnist-3,"))
    lines.remove(of_mnist)
    (assets / "results.csv").write_text("".join(lines))
    trained: list[str] = []
    train = noting(trained)
    common = (*asked(data), "--page", Path("docs", "reproduction.md"))
    assert "16 runs: 15 finished before, kept" in said(script(*common, cwd=tmp_path, train=train))
    assert trained == ["daad, mnist-3, seed 0"]
    # A line without what one of its rows is ranked by is not enough.
    trained.clear()
    whole_csv = "".join(lines)
    of_video = next(line for line in lines if line.startswith("small,daad,ped2,"))
    cells = of_video.split(",")
    cells[9] = ""  # auroc_within
    (assets / "results.csv").write_text(whole_csv.replace(of_video, ",".join(cells)))
    said(script(*common, cwd=tmp_path, train=train))
    assert trained == ["daad, mnist-3, seed 0", "daad, ped2, seed 0"]
    (assets / "results.csv").write_text(whole_csv)
    # Another seed is another run.
    assert "32 runs: 15 finished" in said(
        script(*common, "--seeds", "0,1", cwd=tmp_path, train=train)
    )
    # A figure shows what the CSV has not, of the first seed.
    trained.clear()
    figure = ("--data", data, "--only", "figure6", "--categories", "bottle", *common[-2:])
    said(script(*figure, cwd=tmp_path, train=train))
    assert trained == [f"{name}, bottle, seed 0" for name in ("daad", "daad+")]


def test_what_was_removed_is_run_again(whole: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "small" / "ae" / "bottle")
    trained: list[str] = []
    train = noting(trained)
    assert "16 runs: 15 finished before" in said(script(*asked(data), cwd=tmp_path, train=train))
    assert trained == ["ae, bottle, seed 0"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("history.csv", None),
        ("scores.csv", lambda text: text[: text.rindex("test/")]),  # without its last line
        ("scores.csv", lambda text: text.replace(",0,", ",x,")),
        ("metrics.json", lambda text: text[:-9]),
    ],
)
def test_a_damaged_run_is_made_whole_again(
    name: str, damage: Callable[[str], str] | None, whole: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    file = tmp_path / "out" / "small" / "ae" / "bottle" / "seed-0" / name
    before = file.read_text()
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage(before))
        assert file.read_text() != before
    assert "16 runs: 15 finished before" in said(script(*asked(data), cwd=tmp_path))
    assert file.read_text() == before
    assert "16 runs: 16 finished before" in said(script(*asked(data), cwd=tmp_path))
    assert without_time(results(tmp_path)) == without_time(results(whole))


@pytest.mark.parametrize("settings", [{"config": 3}, {"config": None}, {"hardware": {}}])
def test_a_run_with_damaged_settings_is_named(
    settings: dict[str, Any], whole: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    file = tmp_path / "out" / "small" / "ae" / "bottle" / "seed-0" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    done = script(*asked(data), cwd=tmp_path)
    if "config" in settings:
        refused(done, "configuration is damaged", "move out/small/ae/bottle/seed-0 away")
    else:
        assert "16 runs: 16 finished before" in said(done)


def test_runs_on_other_data_are_refused(whole: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    moved = shutil.copytree(data, tmp_path / "moved")
    assert "16 runs: 16 finished before" in said(script(*asked(moved), cwd=tmp_path))
    (moved / "mvtec" / "bottle" / "train" / "good" / "000.png").unlink()
    refused(
        script(*asked(moved), cwd=tmp_path),
        "seed-0: was trained on other data",
        f"those in {moved / 'mvtec'}",
    )


def test_runs_of_other_settings_are_refused(whole: Path, data: Path, tmp_path: Path) -> None:
    run = Path("out", "small", "ae", "ped2", "seed-0")
    shutil.copytree(whole / run, tmp_path / run)
    stored = json.loads((tmp_path / run / "config.json").read_text())
    stored["config"]["lr"] = 5e-4
    (tmp_path / run / "config.json").write_text(json.dumps(stored))
    done = script("--data", data, "--only", "table6-ped2", cwd=tmp_path)
    refused(
        done, "cannot go on with other settings: lr (was 0.0005, now 0.001)", f"move {run} away"
    )
    assert not (tmp_path / "out" / "reproduction.md").exists()
