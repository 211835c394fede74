"""One class as the normal one: what is learned and tested, and the script from outside."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import daad_oneclass
from daad import stopping
from daad.config import Config
from daad.folder import finished
from daad.io import UserError
from tests.helpers.labelled_files import write_cifar10, write_mnist
from tests.helpers.scripts import call, misused, refused, table
from tests.helpers.training_runs import break_off

TINY = "--width 2 --batch-size 4 --lr 1e-3 --device cpu"


def train(*arguments):
    return call(daad_oneclass.main, "train", *arguments)


def settings(run):
    return json.loads((run / "config.json").read_text())


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    root = tmp_path_factory.mktemp("mnist")
    write_mnist(root)
    return root


@pytest.fixture(scope="module")
def trained(mnist, tmp_path_factory):
    """Digits 0 and 8, one epoch each: the folder of their runs, and what was printed."""
    out = tmp_path_factory.mktemp("trained") / "out"
    common = ("--root", mnist, "--dataset", "mnist", "--out", out, "--classes", "8,0")
    done = train(*common, "--epochs", 1, *TINY.split())
    assert done.returncode == 0, done.stderr
    return out, done.stdout


# The script


def test_classes_by_number_or_name() -> None:
    digits, animals = tuple("0123456789"), ("dog", "cat")
    assert daad_oneclass.parse_classes("all", digits) == list(digits)
    assert daad_oneclass.parse_classes("8, 0,8", digits) == ["0", "8"]
    assert daad_oneclass.parse_classes("cat,0", animals) == ["dog", "cat"]
    for text, named in (("0,10", "no class 10"), ("", "no class (empty)"), ("cat", "no class cat")):
        with pytest.raises(UserError) as caught:
            daad_oneclass.parse_classes(text, digits)
        assert named in str(caught.value)
        assert "numbers from 0 to 9 with commas between" in str(caught.value)
    with pytest.raises(UserError, match="no class cow; .* or names: dog, cat"):
        daad_oneclass.parse_classes("cow", animals)


def test_the_table_is_of_what_was_scored(trained):
    out, printed = trained
    rows = table(out / "results.csv")
    assert [row["class"] for row in rows] == ["0", "8", "mean"]
    areas = []
    for row in rows[:2]:
        assert (row["test_good"], row["test_anomalous"], row["epoch"]) == ("2", "18", "1")
        scores = table(out / row["class"] / "scores.csv")
        good, anomalous = (
            [float(line["score"]) for line in scores if line["label"] == kind] for kind in "01"
        )
        pairs = [(a > g) + (a == g) / 2 for a in anomalous for g in good]
        areas.append(sum(pairs) / len(pairs))
        assert float(row["image_auroc"]) == pytest.approx(areas[-1], abs=1e-5)
        assert f"{areas[-1]:.3f}" in printed
        assert [line["path"].split("/")[1] for line in scores[:2]] == [row["class"]] * 2
    assert float(rows[2]["image_auroc"]) == pytest.approx(sum(areas) / 2, abs=1e-5)
    assert "mean of 2" in printed
    assert "0.990" in printed  # the paper's
    assert "daad on mnist, width 2, division 1,1,1, N 16" in printed


def test_a_run_of_a_class_is_a_run_like_any_other(trained, mnist):
    run = trained[0] / "8"
    assert {path.name for path in run.iterdir()} == {
        "config.json", "history.csv", "scores.csv", "metrics.json", "checkpoint.ckpt", "figures",
        "report.html",
    }  # fmt: skip
    stored = settings(run)
    fingerprint = stored["data"].pop("fingerprint")
    assert stored["data"] == {"root": str(mnist), "dataset": "mnist", "class": "8"}
    assert fingerprint == settings(trained[0] / "0")["data"]["fingerprint"]
    config = stored["config"]
    assert (config["image_size"], config["division"], config["flips"]) == (32, [1, 1, 1], "none")
    assert config["num_items"] == 16  # the last level has D = 64, the paper's 2048 for N = 500
    assert set(json.loads((run / "metrics.json").read_text())["defects"]) == set("012345679")
    page = (run / "report.html").read_text()
    assert "<h2>By class</h2>" in page
    assert "defect" not in page
    assert "pixel" not in page


def test_evaluate_counts_for_the_table_only_with_the_choices_of_training(trained, mnist, tmp_path):
    out = shutil.copytree(trained[0], tmp_path / "out")
    before = (out / "8" / "scores.csv").read_text()
    moved = shutil.copytree(mnist, tmp_path / "moved")
    done = call(
        daad_oneclass.main, "evaluate", "--run", out / "8", "--root", moved, "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert (out / "8" / "scores.csv").read_text() == before
    metrics = json.loads((out / "8" / "metrics.json").read_text())
    assert f"{metrics['image_auroc']:.3f}" in done.stdout

    config = Config.from_dict(settings(out / "8")["config"])
    assert finished(out / "8", config, "class") == metrics
    again = ("evaluate", "--run", out / "8", "--scaling", "normals", "--device", "cpu")
    assert call(daad_oneclass.main, *again).returncode == 0
    assert finished(out / "8", config, "class") is None
    other = shutil.copytree(out / "8", tmp_path / "other")
    (other / "config.json").write_text('{"data": {"root": "r", "category": "bottle"}}')
    refused(call(daad_oneclass.main, "evaluate", "--run", other), "another script", "no class")


def test_cifar10_by_name_and_with_choices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    common = ("--root", tmp_path, "--dataset", "cifar10", "--classes", "cat", "--epochs", 1)
    done = train(*common, "--variant", "daad+", "--division", "2,2,1", *TINY.split())
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "cifar10" / "daad+"
    assert "0.753" in done.stdout
    assert [row["class"] for row in table(out / "results.csv")] == ["cat", "mean"]
    config = settings(out / "cat")["config"]
    assert (config["flips"], config["division"], config["num_items"]) == ("both", [2, 2, 1], 4)

    out = tmp_path / "memae"
    choices = ("--variant", "memae", "--num-items", 7, "--flips", "horizontal")
    done = train(*common, "--out", out, *choices, *TINY.split())
    assert done.returncode == 0, done.stderr
    assert "division pixel, N 7" in done.stdout
    config = settings(out / "cat")["config"]
    assert (config["flips"], config["division"]) == ("horizontal", "pixel")
    assert config["num_items"] == 7


@pytest.mark.slow
def test_what_was_interrupted_goes_on(mnist, tmp_path, monkeypatch):
    """0 is finished, 5 breaks off between two checkpoints, 8 has not begun."""
    common = ("--root", mnist, "--dataset", "mnist", *TINY.split(), "--epochs", 3)
    common = (*common, "--classes")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(*common, "0,5,8", "--out", whole).returncode == 0

    with monkeypatch.context() as patch:
        patch.setattr(stopping, "SAVE_EVERY", 0)
        break_off(patch, epoch=6)
        assert train(*common, "0,5,8", "--out", broken).returncode != 0
    assert [row["class"] for row in table(broken / "results.csv")] == ["0", "mean"]
    assert not (broken / "8").exists()
    before = (broken / "0" / "checkpoint.ckpt").stat().st_mtime_ns

    trains = []
    monkeypatch.setattr(daad_oneclass, "run", _noting(trains, daad_oneclass.run))
    done = train(*common, "0,5,8", "--out", broken, "--resume")
    assert done.returncode == 0, done.stderr
    assert trains == ["mnist 5", "mnist 8"]
    assert "mnist 0: finished before, kept" in done.stdout
    assert (broken / "0" / "checkpoint.ckpt").stat().st_mtime_ns == before
    assert (broken / "results.csv").read_text() == (whole / "results.csv").read_text()
    for name in ("0", "5", "8"):
        scores = [(out / name / "scores.csv").read_text() for out in (whole, broken)]
        assert scores[0] == scores[1]


def _noting(names, run):
    def noted(config, category, *rest, **choices):
        names.append(category.name)
        return run(config, category, *rest, **choices)

    return noted


def test_classes_may_be_trained_in_parts(trained, mnist, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(trained[0], out)
    stored = settings(out / "8")  # as if it had been trained otherwise
    stored["config"]["lr"] = 5e-4
    (out / "8" / "config.json").write_text(json.dumps(stored))
    common = ("--root", mnist, "--dataset", "mnist", *TINY.split(), "--epochs", 1)
    done = train(*common, "--out", out, "--classes", 3)
    assert done.returncode == 0, done.stderr
    rows = table(out / "results.csv")
    assert [row["class"] for row in rows] == ["0", "3", "mean"]  # 8 is no part of the same table
    assert "mean of 2" in done.stdout


def test_a_result_counts_only_when_it_is_whole(trained, tmp_path):
    run = shutil.copytree(trained[0] / "8", tmp_path / "8")
    config = Config.from_dict(settings(run)["config"])
    assert finished(run, config, "class")["category"] == "mnist 8"
    assert finished(run, config, "labels") is None
    longer = Config.from_dict(config.to_dict() | {"epochs": 2})
    assert finished(run, longer, "dataset") is None
    metrics = (run / "metrics.json").read_text()
    (run / "metrics.json").write_text(metrics[:30])
    assert finished(run, config, "class") is None
    (run / "metrics.json").unlink()
    assert finished(run, config, "class") is None


def test_refusals_before_anything_is_written(mnist, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ("--root", mnist, "--dataset", "mnist", *TINY.split())
    refused(
        train("--root", mnist, "--dataset", "cifar10"), "data_batch_1", "t10k-images-idx3-ubyte"
    )
    refused(train(*common, "--classes", "8,x"), "--classes 8,x", "no class x")
    refused(train(*common, "--division", "3,3,1"), "division 3,3,1 does not fit level 1")
    refused(train(*common, "--num-items", 0), "--num-items 0: must be above 0")
    misused(train(*common, "--flips", "vertical"), "vertical", "'horizontal'")
    refused(train(*common, "--image-size", 16), "--image-size 16", "28x28")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(train(*common), "give each its --classes")
    assert list(tmp_path.iterdir()) == []


def test_runs_that_exist_are_refused_and_kept(trained, mnist, tmp_path):
    out = shutil.copytree(trained[0], tmp_path / "out")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    common = ("--root", mnist, "--dataset", "mnist", "--out", out, "--epochs", 1, *TINY.split())
    refused(train(*common, "--classes", "3,8"), "out/8 exists", "--resume")
    other = train(*common, "--classes", "3,8", "--resume", "--seed", 9)
    refused(other, "out/8/config.json: cannot go on with other settings: seed (was 0, now 9)")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_runs_on_other_pixels_are_refused(trained, mnist, tmp_path):
    """As where the official files take the place of a copy of theirs, of the same sizes."""
    out = shutil.copytree(trained[0], tmp_path / "out")
    moved = shutil.copytree(mnist, tmp_path / "moved")
    common = ("--dataset", "mnist", "--out", out, "--classes", "0", "--resume", *TINY.split())
    assert train("--root", moved, *common, "--epochs", 1).returncode == 0
    pixels = moved / "train-images-idx3-ubyte"
    content = bytearray(pixels.read_bytes())
    content[-1] ^= 1
    pixels.write_bytes(content)
    done = train("--root", moved, *common, "--epochs", 1)
    refused(done, f"{out / '0'}: was trained on other data, then in {mnist}")


@pytest.mark.slow
def test_the_script_itself_refuses_in_one_line(tmp_path):
    script = Path(daad_oneclass.__file__)
    command = [sys.executable, script, "train", "--root", "none", "--dataset", "mnist"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    refused(done, "none: no such folder")
