"""What an evaluated run leaves behind, and what its checkpoint knows of normal pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from daad.config import Config
from daad.form import Form
from daad.io import UserError, load_checkpoint
from daad.mvtec import Category, load_category, write_summary
from daad.network import CHECKPOINT, load_networks
from daad.pictures import PictureFiles
from daad.run import evaluate, fit_reference
from daad.scoring import score_pictures
from daad.verdict import ANOMALOUS, NORMAL
from tests.helpers.picture_runs import CPU, SIZE, make_measured_run, make_run, save_picture
from tests.helpers.scripts import table

SCORE_COLUMNS = [
    *("path", "label", "defect", "score", "p", "verdict", "eq7"),
    *("reconstruction", "alignment", "peak", "brightness"),
]


@pytest.fixture
def category(tmp_path: Path) -> Category:
    """Three good pictures; two scratches, one without a mask; one hole."""
    folder = tmp_path / "data" / "toy"
    for index in range(4):
        save_picture(folder / "train" / "good" / f"{index}.png", index)
    for index in range(3):
        save_picture(folder / "test" / "good" / f"{index}.png", 10 + index)
    for defect, index in (("scratch", 0), ("scratch", 1), ("hole", 0)):
        save_picture(folder / "test" / defect / f"{index}.png", 20 + index, spot=2 + 8 * index)
        if index == 0:
            mask = np.zeros((SIZE, SIZE), np.uint8)
            mask[4:6, 4:6] = 255
            (folder / "ground_truth" / defect).mkdir(parents=True)
            Image.fromarray(mask).save(folder / "ground_truth" / defect / f"{index}_mask.png")
    return load_category(tmp_path / "data", "toy")


def history_row(epoch: int, auroc: float | None = None) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "reconstruction": 1 / epoch,
        "adversarial": None,
        "alignment": None,
        "discriminator": None,
        "auroc": auroc,
        "seconds": 0.1,
    }


def count_pairs(anomalous: np.ndarray, good: np.ndarray) -> float:
    difference = anomalous[:, None] - good[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


# evaluate


def test_evaluation_without_a_discriminator(tmp_path: Path, category: Category) -> None:
    run = make_measured_run(tmp_path / "run", category)
    metrics = evaluate(run, category, CPU)

    rows = table(run / "scores.csv")
    assert list(rows[0]) == SCORE_COLUMNS
    assert [row["path"] for row in rows] == [
        *("test/good/0.png", "test/good/1.png", "test/good/2.png"),
        *("test/hole/0.png", "test/scratch/0.png", "test/scratch/1.png"),
    ]
    assert [row["label"] for row in rows] == ["0", "0", "0", "1", "1", "1"]
    assert {row["alignment"] for row in rows} == {""}
    error = np.array([float(row["reconstruction"]) for row in rows])
    eq7 = np.array([float(row["eq7"]) for row in rows])
    np.testing.assert_allclose(eq7, (error - error.min()) / (error.max() - error.min()))
    scores = np.array([float(row["score"]) for row in rows])
    assert all(row["score"] == repr(float(row["score"])) for row in rows)

    assert metrics == json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["variant"], metrics["category"], metrics["epoch"]) == ("daad", "toy", 7)
    assert metrics["scaling"] == "test"
    assert metrics["counts"] == {"good": 3, "anomalous": 3, "masks": 2}
    assert "oracle_image_auroc" not in metrics
    columns = {"score": "", "eq7": "_eq7", "brightness": "_brightness"}
    for name, ending in columns.items():
        values = np.array([float(row[name]) for row in rows])
        expected = count_pairs(values[3:], values[:3])
        assert metrics[f"image_auroc{ending}"] == pytest.approx(expected, abs=1e-6)
    assert set(metrics["baselines"]) == {"brightness", "mean picture", "PCA 50", "nearest patch"}
    defects = metrics["defects"]
    assert list(defects) == ["hole", "scratch"]
    assert [defects[name]["count"] for name in defects] == [1, 2]
    for name, part in (("hole", scores[3:4]), ("scratch", scores[4:])):
        expected = count_pairs(part, scores[:3])
        assert defects[name]["image_auroc"] == pytest.approx(expected, abs=1e-6)


def test_pixels_count_where_their_mask_is_known(tmp_path: Path, category: Category) -> None:
    run = make_measured_run(tmp_path / "run", category)
    metrics = evaluate(run, category, CPU)

    config = Config.from_dict(load_checkpoint(run / CHECKPOINT)["config"])
    networks = load_networks(run)[1]
    pictures = PictureFiles([sample.path for sample in category.test], Form(SIZE))
    maps = score_pictures(networks, pictures, config).error_maps.numpy()
    mask = np.zeros((SIZE, SIZE), bool)
    mask[4:6, 4:6] = True
    good = maps[:3].ravel()
    hole, scratch = maps[3], maps[4]  # the sixth picture has no mask, and counts nowhere
    rest = np.concatenate([good, hole[~mask], scratch[~mask]])
    marked = np.concatenate([hole[mask], scratch[mask]])
    assert metrics["pixel_auroc_error"] == pytest.approx(count_pairs(marked, rest), abs=1e-6)
    expected = count_pairs(scratch[mask], np.concatenate([good, scratch[~mask]]))
    found = metrics["defects"]["scratch"]["pixel_auroc_error"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_without_masks_the_pixel_area_is_null(tmp_path: Path, category: Category) -> None:
    for mask in (tmp_path / "data" / "toy" / "ground_truth").rglob("*.png"):
        mask.unlink()
    bare = load_category(tmp_path / "data", "toy")
    run = make_measured_run(tmp_path / "run", bare)
    metrics = evaluate(run, bare, CPU)
    assert metrics["pixel_auroc"] is None
    assert metrics["aupro"] is None
    assert metrics["defects"]["hole"]["pixel_auroc_error"] is None
    assert '"pixel_auroc": null' in (run / "metrics.json").read_text(encoding="utf-8")


def test_scores_with_a_discriminator_are_equation_7(tmp_path: Path, category: Category) -> None:
    run = make_measured_run(tmp_path / "run", category, "daad+", gamma=0.75)
    evaluate(run, category, CPU)
    rows = table(run / "scores.csv")
    parts = {
        key: np.array([float(row[key]) for row in rows]) for key in ("reconstruction", "alignment")
    }
    scaled = {key: (v - v.min()) / (v.max() - v.min()) for key, v in parts.items()}
    expected = 0.75 * scaled["reconstruction"] + 0.25 * scaled["alignment"]
    np.testing.assert_allclose([float(row["eq7"]) for row in rows], expected, rtol=1e-12)


def test_even_light_leaves_brightness_nothing_to_tell(tmp_path: Path, category: Category) -> None:
    run = make_measured_run(tmp_path / "run", category)
    assert evaluate(run, category, CPU)["image_auroc_brightness"] == 1.0
    before = table(run / "scores.csv")
    metrics = evaluate(run, category, CPU, even_light=True)
    assert metrics["even_light"] is True
    assert metrics["image_auroc_brightness"] == 0.5
    assert "as bright as" in (run / "report.html").read_text(encoding="utf-8")

    rows = table(run / "scores.csv")
    paths = sorted((tmp_path / "data" / "toy" / "train" / "good").iterdir())
    normal = np.mean([np.asarray(Image.open(path)).mean() / 255 for path in paths])
    (evened,) = {float(row["brightness"]) for row in rows}
    assert evened == pytest.approx(normal, abs=1e-4)
    assert all(
        row["reconstruction"] != old["reconstruction"]
        for row, old in zip(rows, before, strict=True)
    )


def test_all_files_are_there_and_no_temporary_ones(tmp_path: Path, category: Category) -> None:
    run = make_measured_run(tmp_path / "run", category, history=[history_row(1), history_row(2)])
    evaluate(run, category, CPU)
    found = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    figures = [f"figures/{name}.png" for name in ("history", "reconstructions", "roc", "scores")]
    assert found == [CHECKPOINT, *figures, "metrics.json", "report.html", "scores.csv"]


def test_oracle_is_the_best_epoch_and_says_so(tmp_path: Path, category: Category) -> None:
    history = [history_row(1, 0.6), history_row(2), history_row(3, 0.9), history_row(4, 0.7)]
    run = make_measured_run(tmp_path / "run", category, history=history)
    metrics = evaluate(run, category, CPU)
    assert metrics["oracle_image_auroc_eq7"] == 0.9
    assert metrics["oracle_epoch"] == 3
    assert "chosen on the test set" in metrics["oracle_note"]


def test_eq7_scaled_by_normals(tmp_path: Path, category: Category) -> None:
    run = make_measured_run(tmp_path / "run", category, scaling="normals")
    metrics = evaluate(run, category, CPU)
    assert metrics["scaling"] == "normals"
    low, high = load_checkpoint(run / CHECKPOINT)["reference"]["scale"]["reconstruction"]
    assert low < high
    for row in table(run / "scores.csv"):
        expected = (float(row["reconstruction"]) - low) / (high - low)
        assert float(row["eq7"]) == pytest.approx(expected, rel=1e-12)


def test_verdicts_are_those_of_the_rate_that_is_asked_for(
    tmp_path: Path, category: Category
) -> None:
    run = make_measured_run(tmp_path / "run", category, false_alarms=0.5)
    metrics = evaluate(run, category, CPU)
    normal = load_checkpoint(run / CHECKPOINT)["reference"]["scores"].numpy()
    assert metrics["verdict"]["false_alarms_asked"] == 0.5
    assert metrics["verdict"]["false_alarms"] == 0.5
    assert metrics["verdict"]["threshold"] == normal[-2]  # two of the five may be as high
    assert (metrics["verdict"]["normals"], metrics["verdict"]["source"]) == (4, "train")
    flagged = []
    for row in table(run / "scores.csv"):
        p = (1 + int((normal >= float(row["score"])).sum())) / 5
        assert float(row["p"]) == pytest.approx(p)
        assert row["verdict"] == (ANOMALOUS if p <= 0.5 else NORMAL)
        flagged.append((row["label"] == "1", p <= 0.5))
    recall = np.mean([high for bad, high in flagged if bad])
    assert metrics["verdict"]["recall"] == pytest.approx(recall, abs=1e-6)
    alarms = np.mean([high for bad, high in flagged if not bad])
    assert metrics["verdict"]["false_alarms_found"] == pytest.approx(alarms, abs=1e-6)


def test_without_what_normal_pictures_are_like_nothing_is_written(
    tmp_path: Path, category: Category
) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="knows no normal pictures"):
        evaluate(run, category, CPU)
    assert not (run / "scores.csv").exists()


# fit_reference


def test_reference_joins_the_checkpoint(tmp_path: Path, category: Category) -> None:
    run = make_run(tmp_path / "run", "daad+")
    before = load_checkpoint(run / CHECKPOINT)
    fit_reference(run, category, CPU)
    after = load_checkpoint(run / CHECKPOINT)
    reference = after["reference"]
    assert reference["source"] == "train"
    assert len(reference["scores"]) == 4
    assert reference["mean"].shape == reference["deviation"].shape == (SIZE, SIZE)
    assert all(low < high for low, high in reference["scale"].values())
    assert not torch.equal(reference["mean"], after["reference_even"]["mean"])
    assert after["epoch"] == before["epoch"]
    assert all(torch.equal(after["generator"][k], v) for k, v in before["generator"].items())


def test_held_out_pictures_give_the_scores(tmp_path: Path, category: Category) -> None:
    run = make_measured_run(tmp_path / "run", category, held_out=0.5)
    reference = load_checkpoint(run / CHECKPOINT)["reference"]
    assert reference["source"] == "held-out"
    assert len(reference["scores"]) == 2


# Runs without a test set, or without good pictures in it


def test_a_run_without_a_test_set_says_what_verdicts_go_by(
    tmp_path: Path, category: Category
) -> None:
    shutil.rmtree(tmp_path / "data" / "toy" / "test")
    shutil.rmtree(tmp_path / "data" / "toy" / "ground_truth")
    good_alone = load_category(tmp_path / "data", "toy")
    run = make_measured_run(tmp_path / "run", good_alone, held_out=0.5)
    metrics = evaluate(run, good_alone, CPU)
    assert metrics["image_auroc"] is None
    assert metrics["counts"] == {"good": 0, "anomalous": 0, "masks": 0}
    assert metrics["verdict"]["normals"] == 2
    assert not (run / "scores.csv").exists()
    assert "no anomalous pictures to test with" in (run / "report.html").read_text("utf-8")


def test_held_out_pictures_stand_in_for_good_ones(tmp_path: Path, category: Category) -> None:
    shutil.rmtree(tmp_path / "data" / "toy" / "test" / "good")
    bad_alone = load_category(tmp_path / "data", "toy")
    run = make_measured_run(tmp_path / "run", bad_alone, held_out=0.5)
    metrics = evaluate(run, bad_alone, CPU)
    assert metrics["counts"]["good"] == 2
    paths = [row["path"] for row in table(run / "scores.csv") if row["label"] == "0"]
    assert paths == ["train/good/1.png", "train/good/3.png"]
    with pytest.raises(UserError, match="--held-out above 0"):
        evaluate(run, bad_alone, CPU, held_out=0.0)


# write_summary


def test_summary_is_in_the_order_of_the_paper_with_a_mean(tmp_path: Path) -> None:
    rows = [
        {"category": "cookie", "image_auroc": 0.5, "pixel_auroc": None},
        {"category": "bottle", "image_auroc": 1.0, "pixel_auroc": 0.75},
        {"category": "apple", "image_auroc": 0.75, "pixel_auroc": None},
        {"category": "grid", "image_auroc": 0.75, "pixel_auroc": 0.25},
    ]
    write_summary(tmp_path / "summary.csv", rows)
    assert (tmp_path / "summary.csv").read_text(encoding="utf-8") == (
        "category,image_auroc,pixel_auroc\n"
        "grid,0.75,0.25\n"
        "bottle,1.0,0.75\n"
        "apple,0.75,\n"
        "cookie,0.5,\n"
        "mean,0.75,0.5\n"
    )


def test_summary_without_any_mask_has_no_pixel_mean(tmp_path: Path) -> None:
    rows = [{"category": "cookie", "image_auroc": 0.5, "pixel_auroc": None}]
    write_summary(tmp_path / "summary.csv", rows)
    last = (tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()[-1]
    assert last == "mean,0.5,"
