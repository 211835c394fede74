"""Pictures found, judged as they come, and the files that say so."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from daad.config import Config
from daad.io import UserError
from daad.mvtec import load_folders
from daad.pictures import PictureFiles
from daad.predicting import COLUMNS, Judge, Summary, find_pictures, heat_name, predict
from daad.run import evaluate
from daad.verdict import ANOMALOUS, NORMAL
from tests.helpers.picture_files import one_line
from tests.helpers.picture_runs import CPU, SIZE, make_measured_run, make_run, save_picture
from tests.helpers.scripts import table


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for seed in range(9):
        save_picture(tmp_path / "normal" / f"{seed}.png", seed)
    return make_measured_run(tmp_path / "run", load_folders(tmp_path / "normal"), false_alarms=0.1)


def judged(run: Path, given: Sequence[Path], out: Path, **choices: float) -> Summary:
    found = find_pictures([str(one) for one in given], out)
    return predict(Judge(run, CPU, **choices), found, out)


# What is found


def names(given: Sequence[str | Path], out: Path = Path("nowhere")) -> list[str]:
    return [one.name for one in find_pictures([str(one) for one in given], out).pictures]


def test_files_folders_and_patterns_are_found_once_each(tmp_path: Path) -> None:
    for name in ("a.png", "b/10.png", "b/9.JPG", "b/c/d.tif", "e[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert names([tmp_path]) == ["a.png", "e[1].png", "b/9.JPG", "b/10.png", "b/c/d.tif"]
    assert names([tmp_path / "b"]) == ["9.JPG", "10.png", "c/d.tif"]
    assert names([tmp_path / "b" / "*.png"]) == ["10.png"]
    assert names([tmp_path / "**" / "*.png"]) == ["a.png", "b/10.png", "e[1].png"]
    assert names([tmp_path / "e[1].png"]) == ["e[1].png"]  # a name before it is a pattern
    assert names([tmp_path / "a.png", tmp_path / "b", tmp_path / "b" / "10.png"]) == [
        *("a.png", "b/9.JPG", "b/10.png", "b/c/d.tif"),
    ]


def test_what_is_no_picture_is_counted_by_its_suffix(tmp_path: Path) -> None:
    for name in ("a.png", "b.HEIC", "c.heic", "d.gif", "notes", ".hidden.png", "._a.png"):
        (tmp_path / name).touch()
    found = find_pictures([str(tmp_path)], Path("nowhere"))
    assert [one.name for one in found.pictures] == ["a.png"]
    assert found.passed_over == {".heic": 2, ".gif": 1, "without a suffix": 1}


def test_our_own_files_are_never_taken_for_pictures(tmp_path: Path, run: Path) -> None:
    folder = tmp_path / "parts"
    save_picture(folder / "a.png", 1)
    save_picture(folder / "heatmaps" / "mine.png", 2)  # a folder of theirs that is called so
    judged(run, [folder], folder / "earlier")
    assert (folder / "earlier" / "heatmaps" / "a.png.heat.png").exists()
    judged(run, [folder], folder / "later")
    rows = table(folder / "later" / "predictions.csv")
    assert [row["path"] for row in rows] == ["a.png", "heatmaps/mine.png"]


def test_nothing_to_judge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no pictures" in one_line(lambda: names([tmp_path / "empty"]))
    assert "no such file or folder" in one_line(lambda: names([tmp_path / "missing"]))
    assert "*.bmp: no such file" in one_line(lambda: names([tmp_path / "*.bmp"]))


def test_a_folder_that_cannot_be_read_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_picture(tmp_path / "a.png", 1)
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: str) -> Any:  # the superuser could read any folder
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = find_pictures([str(tmp_path)], Path("nowhere"))
    assert found.unreadable == [(str(closed), "Permission denied")]
    assert [one.name for one in found.pictures] == ["a.png"]


# What is said of it


def test_a_row_and_a_line_for_each_picture(tmp_path: Path, run: Path) -> None:
    save_picture(tmp_path / "parts" / "good.png", 20)
    save_picture(tmp_path / "parts" / "bad.png", 21, spot=12)
    out = tmp_path / "out"
    summary = judged(run, [tmp_path / "parts"], out)
    rows = table(out / "predictions.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == ["bad.png", "good.png"]
    assert rows[0]["verdict"] == ANOMALOUS
    assert float(rows[0]["p"]) == pytest.approx(1 / 10)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [{name: str(value) for name, value in line.items()} for line in lines] == rows
    assert summary.counts[ANOMALOUS] + summary.counts[NORMAL] == 2
    assert summary.highest[0].path == "bad.png"
    assert not (out / "skipped.csv").exists()


def test_a_score_does_not_depend_on_the_others_of_its_batch(tmp_path: Path, run: Path) -> None:
    for seed in range(10):
        save_picture(tmp_path / "parts" / f"{seed}.png", 30 + seed, spot=seed)
    judged(run, [tmp_path / "parts"], tmp_path / "all")
    together = table(tmp_path / "all" / "predictions.csv")
    for seed in (0, 9):
        judged(run, [tmp_path / "parts" / f"{seed}.png"], tmp_path / f"{seed}")
        (alone,) = table(tmp_path / f"{seed}" / "predictions.csv")
        assert float(alone["score"]) == pytest.approx(float(together[seed]["score"]), rel=1e-5)
        assert float(alone["eq7"]) == pytest.approx(float(together[seed]["eq7"]), rel=1e-5)
        assert alone["verdict"] == together[seed]["verdict"]


def test_scores_are_those_of_the_evaluation(tmp_path: Path) -> None:
    for seed in range(6):
        save_picture(tmp_path / "good" / f"{seed}.png", seed)
    save_picture(tmp_path / "bad" / "x.png", 50, spot=6)
    category = load_folders(tmp_path / "good", tmp_path / "bad")
    settings = {"held_out": 0.5, "scaling": "normals"}
    run = make_measured_run(tmp_path / "run", category, "daad+", **settings)
    for even_light in (False, True):
        evaluate(run, category, CPU, even_light=even_light)
        evaluated = {row["path"]: row for row in table(run / "scores.csv")}
        out = tmp_path / f"out-{even_light}"
        judged(run, [tmp_path / "bad"], out, even_light=even_light)
        (row,) = table(out / "predictions.csv")
        for name in ("score", "eq7", "p"):
            assert float(row[name]) == pytest.approx(float(evaluated["x.png"][name]), rel=1e-5)
        assert row["verdict"] == evaluated["x.png"]["verdict"]


def test_pictures_of_12_bits_and_any_proportions_are_judged_as_they_were_learned(
    tmp_path: Path,
) -> None:
    def save_deep(path: Path, seed: int, spot: int = 0, factor: int = 16) -> None:
        pixels = np.random.default_rng(seed).integers(90, 130, (SIZE, 2 * SIZE), dtype=np.uint16)
        pixels[4 : 4 + spot, 4 : 4 + spot] = 250
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels * factor).save(path)

    for seed in range(9):
        save_deep(tmp_path / "normal" / f"{seed}.png", seed)
    save_deep(tmp_path / "bad" / "0.png", 20, spot=12)
    category = load_folders(tmp_path / "normal", tmp_path / "bad")
    settings = {"held_out": 0.3, "scaling": "normals", "fit": "pad", "white": 4095}
    assert category.completed(Config(**settings | {"white": None})).white == 4095
    run = make_measured_run(tmp_path / "run", category, **settings)
    evaluate(run, category, CPU)
    (evaluated,) = [row for row in table(run / "scores.csv") if row["path"] == "0.png"]
    save_deep(tmp_path / "more" / "0.png", 20, spot=12)
    save_deep(tmp_path / "more" / "1.png", 20, factor=200)
    judged(run, [tmp_path / "more"], tmp_path / "out")
    (row,) = table(tmp_path / "out" / "predictions.csv")
    assert float(row["score"]) == pytest.approx(float(evaluated["score"]), rel=1e-5)
    (skipped,) = table(tmp_path / "out" / "skipped.csv")
    assert "white is 4095" in skipped["reason"]
    with Image.open(tmp_path / "out" / "heatmaps" / "0.png.heat.png") as image:
        assert image.size == (2 * SIZE, SIZE)


def test_broken_pictures_are_listed_and_the_others_judged(tmp_path: Path, run: Path) -> None:
    for seed in range(12):  # more than are decoded together
        save_picture(tmp_path / "parts" / f"{seed}.png", 60 + seed)
    broken = tmp_path / "parts" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    summary = judged(run, [tmp_path / "parts"], tmp_path / "out")
    assert summary.counts.total() == 11
    (row,) = table(tmp_path / "out" / "skipped.csv")
    assert row["path"] == "3.png"
    assert "cannot be read as a picture" in row["reason"]
    paths = [row["path"] for row in table(tmp_path / "out" / "predictions.csv")]
    assert paths == [f"{seed}.png" for seed in range(12) if seed != 3]


def test_names_of_any_bytes_and_lengths(tmp_path: Path, run: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    given = [b"=1+1.png", b"caf\xe9.png", b"new\nline.png", b"x" * 251 + b".png"]
    for seed, name in enumerate(given):
        save_picture(tmp_path / "one.png", 80 + seed)
        os.rename(tmp_path / "one.png", os.path.join(os.fsencode(folder), name))
    judged(run, [folder], tmp_path / "out")
    paths = [row["path"] for row in table(tmp_path / "out" / "predictions.csv")]
    assert paths == ["'=1+1.png", "caf\\xe9.png".replace("\\xe9", "\\udce9"), "new\\nline.png",
                     "x" * 251 + ".png"]  # fmt: skip
    assert len(list((tmp_path / "out" / "heatmaps").glob("*.heat.png"))) == 4


def test_long_names_are_cut_and_told_apart() -> None:
    one, other = (heat_name(f"a/{'x' * 240}{end}.png") for end in "12")
    assert one != other
    assert all(len(name.removeprefix("a/")) <= 255 for name in (one, other))
    assert heat_name("b/c.png") == "b/c.png.heat.png"


def test_a_folder_of_results_holds_those_of_one_call(tmp_path: Path, run: Path) -> None:
    save_picture(tmp_path / "parts" / "a.png", 1)
    judged(run, [tmp_path / "parts"], tmp_path / "out")
    before = (tmp_path / "out" / "predictions.csv").read_bytes()
    with pytest.raises(UserError, match="results of another call"):
        judged(run, [tmp_path / "parts"], tmp_path / "out")
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == before


def test_runs_that_cannot_judge_are_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match="knows no normal pictures"):
        Judge(make_run(tmp_path / "bare"), CPU)
    category = load_folders(tmp_path / "normal")
    with pytest.raises(UserError, match="--batch-norm batch"):
        Judge(make_measured_run(tmp_path / "batch", category, batch_norm="batch"), CPU)


# Heat maps


def test_heat_lies_over_the_picture_at_its_own_size(tmp_path: Path, run: Path) -> None:
    pixels = np.random.default_rng(0).integers(90, 130, (3 * SIZE, 5 * SIZE, 3), dtype=np.uint8)
    pixels[:SIZE, :SIZE] = 250
    (tmp_path / "parts").mkdir()
    Image.fromarray(pixels).save(tmp_path / "parts" / "wide.png")
    judged(run, [tmp_path / "parts"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "heatmaps" / "wide.png.heat.png") as image:
        shown = np.asarray(image).astype(float)
    assert shown.shape == pixels.shape
    changed = np.abs(shown - pixels).mean(axis=2)
    assert changed[:SIZE, :SIZE].mean() > 3 * changed[:, 3 * SIZE :].mean()
    assert (tmp_path / "out" / "heatmaps" / "scale.png").exists()


def test_the_colours_are_the_runs_and_not_the_calls(tmp_path: Path, run: Path) -> None:
    """A picture looks the same beside one that is far worse."""
    save_picture(tmp_path / "a" / "x.png", 1, spot=4)
    save_picture(tmp_path / "b" / "x.png", 1, spot=4)
    save_picture(tmp_path / "b" / "y.png", 2, spot=16)
    for name in ("a", "b"):
        judged(run, [tmp_path / name], tmp_path / f"out-{name}")
    heats = [
        np.asarray(Image.open(tmp_path / f"out-{name}" / "heatmaps" / "x.png.heat.png")).astype(int)
        for name in ("a", "b")
    ]
    assert np.abs(heats[0] - heats[1]).max() <= 1


def test_pictures_are_not_all_in_memory(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing decodes the whole folder: only `PictureFiles` does, and it is not asked."""
    save_picture(tmp_path / "parts" / "a.png", 1)
    monkeypatch.setattr(PictureFiles, "__init__", lambda *_, **__: pytest.fail("decodes all"))
    assert judged(run, [tmp_path / "parts"], tmp_path / "out").counts.total() == 1
