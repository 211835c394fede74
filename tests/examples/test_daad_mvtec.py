"""The script from outside: what it writes, what it prints, and how it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import daad_mvtec
from daad.config import Config
from daad.folder import finished
from tests.helpers.mvtec_script import SMALL, TINY, make_data, script
from tests.helpers.scripts import misused, refused, table


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A finished DAAD+ run of two epochs, and what the script printed."""
    folder = tmp_path_factory.mktemp("trained")
    done = script(
        "train", "--root", data, "--category", "all", "--variant", "daad+",
        "--evaluate-every", 1, "--held-out", 0.25, *TINY.split(), cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "daad+", done.stdout


def test_a_run_folder_holds_what_it_should(trained):
    run = trained[0] / "gear"
    assert {path.name for path in run.iterdir()} == {
        "config.json", "history.csv", "scores.csv", "metrics.json", "checkpoint.ckpt", "figures",
        "report.html",
    }  # fmt: skip
    assert {"reconstructions.png", "scores.png", "roc.png"} <= {
        path.name for path in (run / "figures").iterdir()
    }
    settings = json.loads((run / "config.json").read_text())
    assert settings["config"]["division"] == [2, 2, 1]
    assert settings["data"]["category"] == "gear"
    scores = table(run / "scores.csv")
    assert list(scores[0]) == [
        *("path", "label", "defect", "score", "p", "verdict", "eq7"),
        *("reconstruction", "alignment", "peak", "brightness"),
    ]
    assert len(scores) == 4 + 3 * 3
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["defects"]) == {"missing_part", "scratch", "spot"}
    assert 0 <= metrics["image_auroc"] <= 1
    assert 0 <= metrics["pixel_auroc"] <= 1
    assert metrics["verdict"]["normals"] == 3
    history = table(run / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert metrics["oracle_image_auroc_eq7"] == max(float(row["auroc"]) for row in history)


def test_several_categories_give_a_summary(trained):
    out, printed = trained
    rows = table(out / "summary.csv")
    assert [row["category"] for row in rows] == ["gear", "weave", "mean"]
    each = [json.loads((out / name / "metrics.json").read_text()) for name in ("gear", "weave")]
    mean = sum(metrics["image_auroc"] for metrics in each) / 2
    assert float(rows[-1]["image_auroc"]) == pytest.approx(mean)
    assert "Verdicts go by 3 normal picture(s) held out from training." in " ".join(printed.split())
    assert "predict --run" in printed
    assert f"{each[0]['image_auroc']:.3f}" in printed


def test_evaluate_writes_the_same_again(trained, tmp_path):
    run = shutil.copytree(trained[0] / "gear", tmp_path / "gear")
    before = (run / "scores.csv").read_text()
    (run / "scores.csv").unlink()
    done = script("evaluate", "--run", run, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (run / "scores.csv").read_text() == before


def test_evaluate_can_weigh_the_scores_anew(trained, tmp_path):
    run = shutil.copytree(trained[0] / "gear", tmp_path / "gear")
    done = script("evaluate", "--run", run, "--gamma", 1, "--scaling", "normals", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "metrics.json").read_text())["scaling"] == "normals"
    reference = torch.load(run / "checkpoint.ckpt", weights_only=True)["reference"]
    low, high = reference["scale"]["reconstruction"]
    for row in table(run / "scores.csv"):
        share = (float(row["reconstruction"]) - low) / (high - low)
        assert float(row["eq7"]) == pytest.approx(share)


def test_evaluate_can_even_the_light(trained, tmp_path):
    run = shutil.copytree(trained[0] / "gear", tmp_path / "gear")
    done = script("evaluate", "--run", run, "--even-light", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["image_auroc_brightness"] == 0.5
    config = Config.from_dict(json.loads((run / "config.json").read_text())["config"])
    assert finished(trained[0] / "gear", config, "category") is not None
    assert finished(run, config, "category") is None


def test_maps_are_written_for_other_evaluations(trained, data, tmp_path):
    run = shutil.copytree(trained[0] / "gear", tmp_path / "gear")
    common = ("evaluate", "--run", run, "--maps", tmp_path / "maps", "--device", "cpu")
    done = script(*common, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = table(run / "scores.csv")
    for row in scores:
        path = tmp_path / "maps" / "gear" / Path(row["path"]).with_suffix(".tiff")
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("F", (32, 32))
            highest = np.asarray(image).max()
        assert highest == pytest.approx(float(row["score"]), rel=1e-5)
    assert len(list((tmp_path / "maps").rglob("*.tiff"))) == len(scores)
    refused(script(*common, cwd=tmp_path), "is there already", "--maps")


def test_a_picture_has_one_score_wherever_it_is_judged(trained, data, tmp_path):
    pictures = data / "weave" / "test" / "spot"
    done = script(
        "predict", "--run", trained[0] / "weave", "--pictures", pictures, "--out", tmp_path / "p",
        "--device", "cpu", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "p" / "predictions.csv")
    assert [row["path"] for row in rows] == sorted(path.name for path in pictures.iterdir())
    assert len(list((tmp_path / "p" / "heatmaps").glob("*.heat.png"))) == len(rows)
    scores = {Path(row["path"]).name: row for row in table(trained[0] / "weave" / "scores.csv")
              if row["defect"] == "spot"}  # fmt: skip
    for row in rows:
        beside = scores[row["path"]]
        assert float(row["score"]) == pytest.approx(float(beside["score"]), rel=1e-4)
        assert (row["p"], row["verdict"]) == (beside["p"], beside["verdict"])


def test_predict_says_what_it_could_not_read(trained, data, tmp_path):
    shutil.copytree(data / "weave" / "test" / "good", tmp_path / "parts")
    (tmp_path / "parts" / "002.png").write_bytes(b"no picture")
    (tmp_path / "parts" / "notes.txt").touch()
    done = script(
        "predict", "--run", trained[0] / "weave", "--pictures", tmp_path / "parts",
        "--no-heatmaps", "--false-alarms", 0.3, "--device", "cpu", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "skipped 002.png" in done.stderr
    assert "passed over: 1 .txt" in done.stdout
    assert "A false-alarm rate" not in done.stdout  # 0.3 can be had by three pictures
    assert [row["path"] for row in table(tmp_path / "predictions" / "skipped.csv")] == ["002.png"]
    assert len(table(tmp_path / "predictions" / "predictions.csv")) == 3
    assert not (tmp_path / "predictions" / "heatmaps").exists()


def test_good_pictures_alone_are_enough(data, tmp_path):
    good = data / "gear" / "train" / "good"
    done = script("train", "--good", good, *TINY.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "daad" / "good"
    assert json.loads((run / "metrics.json").read_text())["image_auroc"] is None
    bad = data / "gear" / "test" / "spot"
    common = ("train", "--good", good, "--bad", bad, "--out", tmp_path / "out")
    done = script(*common, *TINY.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "out" / "good" / "scores.csv")
    assert [row["defect"] for row in rows] == ["good"] * 2 + ["spot"] * 3
    again = script("evaluate", "--run", tmp_path / "out" / "good", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert table(tmp_path / "out" / "good" / "scores.csv") == rows


def test_presets_are_options_that_others_count_more_than(data, tmp_path):
    common = ("train", "--root", data, "--category", "gear", "--out")
    done = script(*common, "a", "--preset", "try", "--steps", 4, *SMALL.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    chosen = json.loads((tmp_path / "a" / "gear" / "config.json").read_text())["config"]
    # 10 pictures in batches of 4 are 3 steps an epoch.
    assert {name: chosen[name] for name in ("epochs", "batch_size", "schedule", "lr", "width")} == {
        **{"epochs": 1, "batch_size": 4, "schedule": "cosine", "lr": 1e-3, "width": 4},
    }
    stored = tmp_path / "a" / "gear" / "config.json"
    done = script(*common, "b", "--config", stored, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "b" / "gear" / "config.json").read_text())["config"]
    assert again == chosen
    misused(script(*common, "c", "--preset", "huge", cwd=tmp_path), "--preset", "huge")


def test_the_demo_writes_over_nothing(tmp_path):
    assert daad_mvtec._new_folder(tmp_path / "demo") == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert daad_mvtec._new_folder(tmp_path / "demo") == tmp_path / "demo-3"


def test_refusals_before_anything_is_written(data, tmp_path):
    def train(*arguments, root=data, category="gear"):
        return script("train", "--root", root, "--category", category, *arguments, cwd=tmp_path)

    refused(train(root=tmp_path / "none"), str(tmp_path / "none"))
    refused(train(category="zipper"), "no such category", "gear, weave")
    refused(train(*TINY.split(), "--division", "8,8,1"), "does not fit level 3", "4x4")
    misused(train("--variant", "vae"), "'vae'", "--variant", "'daad+'")
    refused(train("--devices", "2", category="all"), "one category at a time")
    refused(train("--device", "tpu"), "--device tpu")
    (tmp_path / "file").touch()
    refused(train(*TINY.split(), "--out", tmp_path / "file" / "out"), "Not a directory", "file/out")
    (tmp_path / "file").unlink()
    assert list(tmp_path.iterdir()) == []


def test_refusals_of_bad_data(data, tmp_path):
    def train(root):
        return script("train", "--root", root, "--category", "gear", *TINY.split(), cwd=tmp_path)

    empty = shutil.copytree(data, tmp_path / "empty")
    shutil.rmtree(empty / "gear" / "train" / "good")
    refused(train(empty), "train/good", "no pictures")

    one_class = shutil.copytree(data, tmp_path / "one_class")
    for defect in ("missing_part", "scratch", "spot"):
        shutil.rmtree(one_class / "gear" / "test" / defect)
        shutil.rmtree(one_class / "gear" / "ground_truth" / defect)
    refused(train(one_class), "test", "only good pictures")

    for place in ("train/good", "test/spot", "ground_truth/scratch"):
        broken = shutil.copytree(data, tmp_path / place.replace("/", "-"))
        picture = sorted((broken / "gear" / place).iterdir())[1]
        picture.write_bytes(picture.read_bytes()[:60])
        refused(train(broken), str(picture))
    assert not (tmp_path / "runs").exists()  # all that before training


def test_a_run_that_exists_is_refused_and_kept(trained, data, tmp_path):
    run = shutil.copytree(trained[0] / "gear", tmp_path / "out" / "gear")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    common = [
        "train",
        "--root",
        data,
        "--category",
        "gear",
        "--out",
        tmp_path / "out",
        *TINY.split(),
    ]
    refused(script(*common, cwd=tmp_path), "out/gear exists", "--resume")
    other = script(*common, "--resume", "--variant", "daad+", "--seed", 9, cwd=tmp_path)
    refused(other, "cannot go on with other settings", "seed")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_is_no_run_is_refused(tmp_path):
    refused(script("evaluate", "--run", tmp_path, cwd=tmp_path), "not the folder of a run")
    settings = tmp_path / "config.json"
    for content in ("{", "[]", '{"data": "root"}', '{"data": {}}'):
        settings.write_text(content)
        refused(script("evaluate", "--run", tmp_path, cwd=tmp_path), "not the folder of a run")
    others = ({"labels": "ped2/frame_labels.npz"}, {"dataset": "mnist", "class": "8"})
    for data in others:
        settings.write_text(json.dumps({"data": {"root": "elsewhere"} | data}))
        refused(script("evaluate", "--run", tmp_path, cwd=tmp_path), "a run of another script")


SCRIPT = Path(daad_mvtec.__file__)


def test_the_script_itself_refuses_in_one_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "train", "--root", "none", "--category", "x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    refused(done, "none")
