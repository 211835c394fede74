"""The video script from outside: what it writes, what it prints, and how it refuses."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import daad_video
from daad.config import Config
from daad.network import load_networks
from tests.helpers.scripts import Done, area, call, refused, table
from tests.helpers.video_clips import make_masks, make_video

TINY = [
    *("--image-size", "32", "--width", "4", "--division", "2,2,1", "--num-items", "4"),
    *("--lr", "1e-3", "--epochs", "1", "--device", "cpu"),
]
LENGTHS = {"2": 5, "10": 4, "11": 3}
# Clip 10 is all normal, 11 all abnormal.
LABELS = {"2": [0, 0, 1, 1, 0], "10": [0] * 4, "11": [1] * 3}


def script(*arguments: Any, cwd: Path) -> Done:
    return call(daad_video.main, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_video(tmp_path_factory.mktemp("data") / "toy", LENGTHS)
    np.savez(root / "frame_labels.npz", **{name: np.array(v) for name, v in LABELS.items()})
    return root


@pytest.fixture(scope="module", params=["daad", "daad+"])
def trained(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A finished run of one epoch, and what the script printed."""
    folder = tmp_path_factory.mktemp("trained")
    code, printed, complained = script(
        "train", "--root", data, "--variant", request.param, "--evaluate-every", 1, *TINY,
        cwd=folder,
    )  # fmt: skip
    assert code == 0, complained
    return folder / "runs" / request.param / "toy", printed


def frame_names() -> list[tuple[str, str]]:
    return [(clip, f"{frame}.png") for clip, length in LENGTHS.items() for frame in range(length)]


def test_a_run_folder_holds_what_it_should(trained: tuple[Path, str], data: Path) -> None:
    run, printed = trained
    assert {path.name for path in run.iterdir()} == {
        "config.json", "history.csv", "scores.csv", "metrics.json", "checkpoint.ckpt", "figures",
    }  # fmt: skip
    curves = run / "figures" / "curves"
    assert {path.name for path in curves.iterdir()} == {"2.png", "10.png", "11.png"}
    for path in curves.iterdir():
        with Image.open(path) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
    settings = json.loads((run / "config.json").read_text())
    assert len(settings["data"].pop("fingerprint")) == 16
    assert settings["data"] == {"root": str(data), "labels": str(data / "frame_labels.npz")}
    assert settings["config"]["flips"] == "none"
    assert settings["config"]["batch_size"] == 4

    rows = table(run / "scores.csv")
    assert list(rows[0]) == [
        "clip", "frame", "error", "psnr", "score_clip", "score_global", "alignment", "fused_clip",
        "fused_global", "label",
    ]  # fmt: skip
    assert [(row["clip"], row["frame"]) for row in rows] == frame_names()
    assert [int(row["label"]) for row in rows] == [v for part in LABELS.values() for v in part]
    assert all((row["fused_clip"] == "") == (run.parent.name == "daad") for row in rows)
    assert "all, PSNR over each clip" in printed
    assert ("PSNR and L" in printed) == (run.parent.name == "daad+")


def test_scores_are_those_of_the_network_by_mnads_formula(
    trained: tuple[Path, str], data: Path
) -> None:
    """Worked again, frame by frame, from the checkpoint and the files."""
    run, _ = trained
    _, (generator, _), _ = load_networks(run)
    ratios: dict[str, list[float]] = {}
    for clip, frame in frame_names():
        with Image.open(data / "testing" / "frames" / clip / frame) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1)
        x = torch.tensor(pixels / 255)[None]  # in [0, 1]
        with torch.no_grad():
            x_hat = (generator(2 * x - 1) + 1) / 2
        mse = ((x - x_hat) ** 2).mean().item()
        ratios.setdefault(clip, []).append(10 * math.log10(1 / mse))
    together = [ratio for own in ratios.values() for ratio in own]
    for row, (clip, frame) in zip(table(run / "scores.csv"), frame_names(), strict=True):
        own = ratios[clip]
        ratio = own[int(frame[:-4])]
        assert float(row["psnr"]) == pytest.approx(ratio, rel=1e-5)
        by_clip = 1 - (ratio - min(own)) / (max(own) - min(own))
        over_all = 1 - (ratio - min(together)) / (max(together) - min(together))
        assert float(row["score_clip"]) == pytest.approx(by_clip, abs=1e-3)
        assert float(row["score_global"]) == pytest.approx(over_all, abs=1e-3)


def test_metrics_are_those_of_the_scores(trained: tuple[Path, str]) -> None:
    run, printed = trained
    metrics = json.loads((run / "metrics.json").read_text())
    rows = table(run / "scores.csv")
    kinds = {"frame_auroc": "score"}
    if metrics["variant"] == "daad+":
        kinds["fused_frame_auroc"] = "fused"
        assert metrics["gamma"] == 0.9
    for kind, column in kinds.items():
        for over in ("clip", "global"):
            assert metrics[kind][over] == pytest.approx(area(rows, f"{column}_{over}"), abs=1e-6)
            assert f"{metrics[kind][over]:.3f}" in printed
    assert ("fused_frame_auroc" in metrics) == (metrics["variant"] == "daad+")
    assert metrics["counts"] == {"clips": 3, "frames": 12, "abnormal": 5}
    clips = metrics["clips"]
    assert list(clips) == ["2", "10", "11"]
    own = [row for row in rows if row["clip"] == "2"]
    assert clips["2"] == {
        "frames": 5, "abnormal": 2, "frame_auroc": pytest.approx(area(own, "score_clip"), abs=1e-6)
    }  # fmt: skip
    assert clips["10"] == {"frames": 4, "abnormal": 0, "frame_auroc": None}
    assert clips["11"] == {"frames": 3, "abnormal": 3, "frame_auroc": None}
    # the last epoch is the only one, so the best one scores the same
    assert metrics["oracle_frame_auroc"] == metrics["frame_auroc"]["clip"]


def test_evaluate_writes_the_same_again(trained: tuple[Path, str], tmp_path: Path) -> None:
    run = shutil.copytree(trained[0], tmp_path / "toy")
    before = {name: (run / name).read_text() for name in ("scores.csv", "metrics.json")}
    for name in before:
        (run / name).unlink()
    code, _, complained = script("evaluate", "--run", run, "--device", "cpu", cwd=tmp_path)
    assert code == 0, complained
    assert {name: (run / name).read_text() for name in before} == before


def test_evaluate_with_data_that_moved_and_another_weight(
    trained: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained[0], tmp_path / "toy")
    moved = shutil.copytree(data, tmp_path / "moved")
    (moved / "frame_labels.npz").unlink()
    for name, labels in LABELS.items():
        make_masks(moved / "testing" / "frames" / f"{name}_gt", [1 - label for label in labels])
    code, _, complained = script(
        "evaluate", "--run", run, "--root", moved, "--gamma", 1, "--device", "cpu", cwd=tmp_path
    )
    assert code == 0, complained
    before, after = table(trained[0] / "scores.csv"), table(run / "scores.csv")
    for old, new in zip(before, after, strict=True):
        assert int(old["label"]) == 1 - int(new["label"])
        assert old["error"] == new["error"]
        assert new["fused_clip"] in ("", new["score_clip"])


def test_labels_from_elsewhere_are_remembered(data: Path, tmp_path: Path) -> None:
    labels = [label for part in LABELS.values() for label in part]
    root = shutil.copytree(data, tmp_path / "toy")
    for name in ("2", "10", "11"):  # MNAD's one array takes clips in the order of their text
        (root / "testing" / "frames" / name).rename(root / "testing" / "frames" / f"{name:0>2}")
    np.save(tmp_path / "labels.npy", np.array([labels]))
    np.savez(root / "frame_labels.npz", **{"02": [1] * 5, "10": [0] * 4, "11": [0] * 3})
    done = script("train", "--root", root, "--labels", "labels.npy", *TINY, cwd=tmp_path)
    assert done[0] == 0, done[2]
    run = tmp_path / "runs" / "daad" / "toy"
    (run / "scores.csv").unlink()
    done = script("evaluate", "--run", run, "--device", "cpu", cwd=tmp_path)
    assert done[0] == 0, done[2]
    assert [int(row["label"]) for row in table(run / "scores.csv")] == labels


def test_resume_goes_on_as_if_unbroken(data: Path, tmp_path: Path) -> None:
    common = ["train", "--root", data, *TINY]
    for out, epochs in (("whole", 2), ("broken", 1)):
        done = script(*common, "--epochs", epochs, "--out", out, cwd=tmp_path)
        assert done[0] == 0, done[2]
    refused(script(*common, "--out", "broken", cwd=tmp_path), "broken exists", "--resume")
    done = script(*common, "--epochs", 2, "--out", "broken", "--resume", cwd=tmp_path)
    assert done[0] == 0, done[2]
    for name in ("scores.csv", "metrics.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "broken" / name).read_text()


def test_other_frames_are_refused(trained: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained[0], tmp_path / "run")
    moved = shutil.copytree(data, tmp_path / "moved")
    variant = json.loads((run / "metrics.json").read_text())["variant"]
    common = ("train", "--root", moved, "--out", run, "--resume", "--variant", variant, *TINY)
    assert script(*common, cwd=tmp_path).returncode == 0
    next((moved / "training" / "frames").glob("*/*")).unlink()
    refused(script(*common, cwd=tmp_path), "was trained on other data", str(moved))


def test_the_defaults_are_the_papers(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    seen: list[Config] = []

    def stop(config: Config, *_: Any, **__: Any) -> None:
        seen.append(config.resolve("video"))
        raise SystemExit(0)

    monkeypatch.setattr(daad_video, "run", stop)
    for variant in ("daad", "daad+", "memae"):
        script("train", "--root", data, "--variant", variant, cwd=data)
    for config in seen:
        assert (config.image_size, config.num_items, config.batch_size) == (256, 2000, 4)
        assert (config.epochs, config.lr, config.flips) == (60, 2e-4, "none")
    assert [config.division for config in seen] == [(16, 16, 1), (16, 16, 1), "pixel"]
    assert [seen[0].block_shape(level) for level in (1, 4)] == [(64, 8, 8), (512, 1, 1)]
    assert Config(division=(8, 8, 1)).resolve("video").division == (8, 8, 1)


def test_refusals_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    def train(*arguments: Any, root: Path = data) -> Done:
        return script("train", "--root", root, *TINY, *arguments, cwd=tmp_path)

    refused(train(root=tmp_path / "none"), "no clips")
    refused(train("--held-out", "0.2"), "--held-out 0.2", "leave both options out")
    refused(train("--division", "16,16,1"), "does not fit level 2", "8x8")
    refused(train("--labels", data / "none.npz"), "none.npz")
    np.savez(data / "short.npz", **(LABELS | {"10": [0, 1]}))
    refused(train("--labels", data / "short.npz"), "clip 10 has 4 frames", "2 were found")
    broken = shutil.copytree(data, tmp_path / "broken")
    frame = broken / "testing" / "frames" / "11" / "1.png"
    frame.write_bytes(frame.read_bytes()[:60])
    refused(train(root=broken), str(frame))
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_the_settings_of_a_run_make_it_again(
    trained: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    run = trained[0]
    common = ("--root", data, "--out", "again", "--device", "cpu")
    done = script("train", "--config", run / "config.json", *common, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "scores.csv").read_text() == (run / "scores.csv").read_text()


def test_a_run_of_photographs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"data": {"root": "r", "category": "bottle"}}')
    refused(script("evaluate", "--run", tmp_path, cwd=tmp_path), "another script", "no labels")


@pytest.mark.slow
def test_the_script_itself_refuses_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, daad_video.__file__, "train", "--root", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    refused(Done(done.returncode, done.stdout, done.stderr), "none")
