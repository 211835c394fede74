"""What an evaluated run leaves behind, and how a folder of pictures is scored."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from daad.config import Config
from daad.io import UserError, load_checkpoint, save_checkpoint
from daad.mvtec import Category, load_category, write_summary
from daad.network import CHECKPOINT, Discriminator, Generator, load_networks
from daad.pictures import PictureFiles
from daad.run import evaluate, fit_scale, predict
from daad.scoring import score_pictures

CPU = torch.device("cpu")
SIZE = 32
NETWORK = {
    "image_size": SIZE,
    "width": 4,
    "levels": 2,
    "division": (2, 2, 1),
    "num_items": 4,
    "batch_size": 3,
}
SCORE_COLUMNS = [
    *("path", "label", "defect"),
    *("reconstruction", "alignment", "score", "peak", "brightness"),
]


def save_picture(path: Path, seed: int, spot: int = 0) -> None:
    """Noise, with a bright square of `spot` pixels."""
    pixels = np.random.default_rng(seed).integers(90, 130, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[4 : 4 + spot, 4 : 4 + spot] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


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


def make_run(run: Path, variant: str = "daad", **settings: Any) -> Path:
    """The checkpoint of an untrained network; `history` and `score_scale` go into it."""
    extra = {key: settings.pop(key) for key in ("history", "score_scale") if key in settings}
    config = Config(variant=variant, **NETWORK, **settings).resolve()
    torch.manual_seed(0)
    generator = Generator(config)
    discriminator = Discriminator(config).state_dict() if config.discriminator else None
    state = {
        "config": config.to_dict(),
        "epoch": 7,
        "generator": generator.state_dict(),
        "discriminator": discriminator,
        "history": [],
        "score_scale": None,
    }
    save_checkpoint(run / CHECKPOINT, state | extra)
    return run


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


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def count_pairs(anomalous: np.ndarray, good: np.ndarray) -> float:
    difference = anomalous[:, None] - good[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


# evaluate


def test_evaluation_without_a_discriminator(tmp_path: Path, category: Category) -> None:
    run = make_run(tmp_path / "run")
    metrics = evaluate(run, category, CPU)

    rows = read_csv(run / "scores.csv")
    assert list(rows[0]) == SCORE_COLUMNS
    assert [row["path"] for row in rows] == [
        *("test/good/0.png", "test/good/1.png", "test/good/2.png"),
        *("test/hole/0.png", "test/scratch/0.png", "test/scratch/1.png"),
    ]
    assert [row["label"] for row in rows] == ["0", "0", "0", "1", "1", "1"]
    assert {row["alignment"] for row in rows} == {""}
    error = np.array([float(row["reconstruction"]) for row in rows])
    scores = np.array([float(row["score"]) for row in rows])
    np.testing.assert_allclose(scores, (error - error.min()) / (error.max() - error.min()))
    assert all(row["score"] == repr(float(row["score"])) for row in rows)

    assert metrics == json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["variant"], metrics["category"], metrics["epoch"]) == ("daad", "toy", 7)
    assert metrics["scaling"] == "test"
    assert metrics["counts"] == {"good": 3, "anomalous": 3, "masks": 2}
    assert "oracle_image_auroc" not in metrics
    assert metrics["image_auroc"] == pytest.approx(count_pairs(scores[3:], scores[:3]), abs=1e-6)
    for name in ("peak", "brightness"):
        values = np.array([float(row[name]) for row in rows])
        expected = count_pairs(values[3:], values[:3])
        assert metrics[f"image_auroc_{name}"] == pytest.approx(expected, abs=1e-6)
    defects = metrics["defects"]
    assert list(defects) == ["hole", "scratch"]
    assert [defects[name]["count"] for name in defects] == [1, 2]
    for name, part in (("hole", scores[3:4]), ("scratch", scores[4:])):
        expected = count_pairs(part, scores[:3])
        assert defects[name]["image_auroc"] == pytest.approx(expected, abs=1e-6)


def test_pixels_count_where_their_mask_is_known(tmp_path: Path, category: Category) -> None:
    run = make_run(tmp_path / "run")
    metrics = evaluate(run, category, CPU)

    config = Config.from_dict(load_checkpoint(run / CHECKPOINT)["config"])
    networks = load_networks(run)[1]
    pictures = PictureFiles([sample.path for sample in category.test], SIZE)
    maps = score_pictures(networks, pictures, config).error_maps.numpy()
    mask = np.zeros((SIZE, SIZE), bool)
    mask[4:6, 4:6] = True
    good = maps[:3].ravel()
    hole, scratch = maps[3], maps[4]  # the sixth picture has no mask, and counts nowhere
    rest = np.concatenate([good, hole[~mask], scratch[~mask]])
    marked = np.concatenate([hole[mask], scratch[mask]])
    assert metrics["pixel_auroc"] == pytest.approx(count_pairs(marked, rest), abs=1e-6)
    expected = count_pairs(scratch[mask], np.concatenate([good, scratch[~mask]]))
    assert metrics["defects"]["scratch"]["pixel_auroc"] == pytest.approx(expected, abs=1e-6)


def test_without_masks_the_pixel_area_is_null(tmp_path: Path, category: Category) -> None:
    for mask in (tmp_path / "data" / "toy" / "ground_truth").rglob("*.png"):
        mask.unlink()
    run = make_run(tmp_path / "run")
    metrics = evaluate(run, load_category(tmp_path / "data", "toy"), CPU)
    assert metrics["pixel_auroc"] is None
    assert metrics["defects"]["hole"]["pixel_auroc"] is None
    assert '"pixel_auroc": null' in (run / "metrics.json").read_text(encoding="utf-8")


def test_scores_with_a_discriminator_are_equation_7(tmp_path: Path, category: Category) -> None:
    run = make_run(tmp_path / "run", "daad+", gamma=0.75)
    evaluate(run, category, CPU)
    rows = read_csv(run / "scores.csv")
    parts = {
        key: np.array([float(row[key]) for row in rows]) for key in ("reconstruction", "alignment")
    }
    scaled = {key: (v - v.min()) / (v.max() - v.min()) for key, v in parts.items()}
    expected = 0.75 * scaled["reconstruction"] + 0.25 * scaled["alignment"]
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected, rtol=1e-12)


def test_even_light_leaves_brightness_nothing_to_tell(tmp_path: Path, category: Category) -> None:
    run = make_run(tmp_path / "run")
    assert evaluate(run, category, CPU)["image_auroc_brightness"] == 1.0
    before = read_csv(run / "scores.csv")
    metrics = evaluate(run, category, CPU, even_light=True)
    assert metrics["even_light"] is True
    assert metrics["image_auroc_brightness"] == 0.5
    assert "as bright as" in (run / "report.html").read_text(encoding="utf-8")

    rows = read_csv(run / "scores.csv")
    paths = sorted((tmp_path / "data" / "toy" / "train" / "good").iterdir())
    normal = np.mean([np.asarray(Image.open(path)).mean() / 255 for path in paths])
    (evened,) = {float(row["brightness"]) for row in rows}
    assert evened == pytest.approx(normal, abs=1e-4)
    assert all(
        row["reconstruction"] != old["reconstruction"]
        for row, old in zip(rows, before, strict=True)
    )


def test_all_files_are_there_and_no_temporary_ones(tmp_path: Path, category: Category) -> None:
    run = make_run(tmp_path / "run", history=[history_row(1), history_row(2)])
    evaluate(run, category, CPU)
    found = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    figures = [f"figures/{name}.png" for name in ("history", "reconstructions", "roc", "scores")]
    assert found == [CHECKPOINT, *figures, "metrics.json", "report.html", "scores.csv"]


def test_oracle_is_the_best_epoch_and_says_so(tmp_path: Path, category: Category) -> None:
    history = [history_row(1, 0.6), history_row(2), history_row(3, 0.9), history_row(4, 0.7)]
    metrics = evaluate(make_run(tmp_path / "run", history=history), category, CPU)
    assert metrics["oracle_image_auroc"] == 0.9
    assert metrics["oracle_epoch"] == 3
    assert "chosen on the test set" in metrics["oracle_note"]


def test_scores_scaled_by_normals(tmp_path: Path, category: Category) -> None:
    scale = {"reconstruction": [0.1, 0.3], "alignment": None, "source": "held-out"}
    run = make_run(tmp_path / "run", scaling="normals", score_scale=scale)
    metrics = evaluate(run, category, CPU)
    assert metrics["scaling"] == "held-out"
    for row in read_csv(run / "scores.csv"):
        expected = (float(row["reconstruction"]) - 0.1) / 0.2
        assert float(row["score"]) == pytest.approx(expected, rel=1e-12)


def test_scaling_by_normals_without_their_ranges(tmp_path: Path, category: Category) -> None:
    run = make_run(tmp_path / "run", scaling="normals")
    with pytest.raises(UserError, match="holds no ranges"):
        evaluate(run, category, CPU)
    assert not (run / "scores.csv").exists()


# fit_scale


def test_fitted_scale_joins_the_checkpoint(tmp_path: Path, category: Category) -> None:
    run = make_run(tmp_path / "run", "daad+")
    before = load_checkpoint(run / CHECKPOINT)
    pictures = PictureFiles([sample.path for sample in category.train], SIZE)
    scale = fit_scale(run, pictures, "train", CPU)
    after = load_checkpoint(run / CHECKPOINT)
    assert after["score_scale"] == scale._asdict()
    assert scale.source == "train"
    assert scale.reconstruction[0] < scale.reconstruction[1]
    assert scale.alignment is not None
    assert after["epoch"] == before["epoch"]
    assert all(torch.equal(after["generator"][k], v) for k, v in before["generator"].items())
    # By it, the pictures that it was made from lie between 0 and 1.
    predict(run, tmp_path / "data" / "toy" / "train", CPU, tmp_path / "out")
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    low, high = scale.reconstruction
    errors = [float(row["reconstruction"]) for row in rows]
    assert (min(errors), max(errors)) == (low, high)


# predict


@pytest.fixture
def scaled_run(tmp_path: Path) -> Path:
    scale = {"reconstruction": [0.1, 0.3], "alignment": None, "source": "train"}
    return make_run(tmp_path / "run", score_scale=scale)


def test_prediction_goes_below_the_folder(tmp_path: Path, scaled_run: Path) -> None:
    folder, out = tmp_path / "parts", tmp_path / "out"
    save_picture(folder / "a.png", 1)
    save_picture(folder / "a.JPG", 2)
    save_picture(folder / "deep" / "er" / "b.png", 3)
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    rows = predict(scaled_run, folder, CPU, out)

    assert [row["path"] for row in rows] == ["a.JPG", "a.png", "deep/er/b.png"]
    written = read_csv(out / "predictions.csv")
    assert list(written[0]) == ["path", "reconstruction", "alignment", "score"]
    assert [float(row["score"]) for row in written] == [row["score"] for row in rows]
    for row in rows:
        assert row["alignment"] == ""
        assert row["score"] == pytest.approx((row["reconstruction"] - 0.1) / 0.2, rel=1e-12)
        with Image.open(out / "heatmaps" / f"{row['path']}.heat.png") as image:
            assert image.size == (2 * SIZE, SIZE)


def test_heat_map_shows_the_picture_and_where_it_errs(tmp_path: Path, scaled_run: Path) -> None:
    folder = tmp_path / "parts"
    save_picture(folder / "a.png", 1, spot=8)
    predict(scaled_run, folder, CPU, tmp_path / "out")
    with Image.open(tmp_path / "out" / "heatmaps" / "a.png.heat.png") as image:
        shown = np.asarray(image)
    with Image.open(folder / "a.png") as image:
        np.testing.assert_array_equal(shown[:, :SIZE], np.asarray(image))
    heat = shown[:, SIZE:].astype(float).mean(axis=2)
    assert heat[4:12, 4:12].mean() > 1.5 * heat[16:].mean()


def test_prediction_into_its_own_folder_can_be_repeated(tmp_path: Path, scaled_run: Path) -> None:
    folder = tmp_path / "parts"
    save_picture(folder / "a.png", 1)
    first = predict(scaled_run, folder, CPU, folder)
    assert predict(scaled_run, folder, CPU, folder) == first


def test_prediction_without_pictures(tmp_path: Path, scaled_run: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        predict(scaled_run, tmp_path / "missing", CPU, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures"):
        predict(scaled_run, tmp_path / "empty", CPU, tmp_path / "out")


def test_prediction_without_a_scale(tmp_path: Path) -> None:
    save_picture(tmp_path / "parts" / "a.png", 1)
    with pytest.raises(UserError, match="holds no ranges"):
        predict(make_run(tmp_path / "run"), tmp_path / "parts", CPU, tmp_path / "out")


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
