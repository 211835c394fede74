"""A trained run put to use: judged on a test set, or scoring a folder of pictures."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from daad import report
from daad.batches import Pictures, to_bytes
from daad.checkpoint import CHECKPOINT, load_models, save_checkpoint
from daad.data import SUFFIXES, Category, PictureFiles, load_masks, table_place
from daad.errors import UserError
from daad.files import write_atomically, write_csv, write_json, write_means
from daad.light import EvenLight, mean_brightness
from daad.scoring import Raw, Scale, fuse, image_auroc, pixel_auroc, score_pictures

METRICS = "metrics.json"


def evaluate(
    run: Path,
    category: Category,
    device: torch.device,
    pictures: Pictures | None = None,
    *,
    even_light: bool = False,
    **choices: Any,
) -> dict[str, Any]:
    """Score the test set of `category` with the checkpoint in `run`, and write what was found.

    Into `run` go scores.csv, metrics.json, figures/ and report.html; the metrics are returned.
    R and L are scaled over the test set, or with `config.scaling` "normals" by the ranges in the
    checkpoint. UserError where that has none. `choices` are fields of `Config` that only matter
    here (gamma, scaling, batch_norm), to be other than in training. `pictures` is the test set
    where it has been decoded already. `even_light` makes all of it as bright as the training
    pictures are on average, where brightness tells good from anomalous before any network does.
    """
    config, generator, discriminator, checkpoint = load_models(run, device)
    config = dataclasses.replace(config, **choices).resolve()
    stored = _stored_scale(run, checkpoint) if config.scaling == "normals" else None
    pictures = pictures or category.pictures(category.test, config.image_size)
    if even_light:
        normal = category.pictures(category.train, config.image_size)
        pictures = EvenLight(pictures, mean_brightness(normal))
    raw = score_pictures(generator, discriminator, pictures, config, device)
    scale = stored or Scale.of(raw, "test")
    scores = fuse(raw, scale, config.gamma)
    masks, known = load_masks(category.test, config.image_size)
    found = report.Findings(category.test, pictures, raw, scores, masks, known)

    history = checkpoint.get("history", [])
    metrics = {
        "variant": config.variant,
        "category": category.name,
        "epoch": checkpoint["epoch"],
        "scaling": scale.source,
        "gamma": config.gamma,
        "batch_norm": config.batch_norm,
        "even_light": even_light,
        "kind": category.kind,
        **_metrics(found),
        **oracle(history, "image_auroc"),
    }
    _write_scores(run / "scores.csv", found)
    write_json(run / METRICS, metrics)
    report.draw_figures(run / "figures", found, history)
    report.write_report(run, metrics, config)
    return metrics


def _metrics(found: report.Findings) -> dict[str, Any]:
    labels = torch.tensor([sample.label for sample in found.samples], dtype=torch.bool)
    defects: dict[str, Any] = {}
    for defect in dict.fromkeys(sample.defect for sample in found.samples if sample.label):
        members = torch.tensor([sample.defect == defect for sample in found.samples])
        defects[defect] = {"count": int(members.sum()), **_areas(found, labels, members | ~labels)}
    return {
        **_areas(found, labels, torch.ones_like(labels)),
        "counts": {
            "good": int((~labels).sum()),
            "anomalous": int(labels.sum()),
            "masks": int((found.known & labels).sum()),
        },
        "defects": defects,
    }


def _areas(found: report.Findings, labels: Tensor, members: Tensor) -> dict[str, float | None]:
    """All AUROCs over the pictures `members`; by pixel over those whose mask is known."""
    marked = members & found.known
    return {
        "image_auroc": image_auroc(found.scores[members], labels[members]),
        "image_auroc_peak": image_auroc(found.peaks[members], labels[members]),
        "image_auroc_brightness": image_auroc(found.raw.brightness[members], labels[members]),
        "pixel_auroc": pixel_auroc(found.raw.error_maps[marked], found.masks[marked]),
    }


def oracle(history: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The best of the epochs that were scored during training: an upper bound, not a result.

    name: what a script calls the AUROC that the rows of `history` hold: of pictures, or of frames.
    """
    scored = [entry for entry in history if entry["auroc"] is not None]
    if not scored:
        return {}
    best = max(scored, key=lambda entry: entry["auroc"])
    return {
        f"oracle_{name}": best["auroc"],
        "oracle_epoch": best["epoch"],
        "oracle_note": "the best epoch, chosen on the test set",
    }


def _write_scores(path: Path, found: report.Findings) -> None:
    header = (
        *("path", "label", "defect"),
        *("reconstruction", "alignment", "score", "peak", "brightness"),
    )
    scores = _score_columns(found.raw, found.scores)
    others = zip(found.peaks.tolist(), found.raw.brightness.tolist(), strict=True)
    rows = [
        (sample.name, sample.label, sample.defect, *values, *more)
        for sample, values, more in zip(found.samples, scores, others, strict=True)
    ]
    write_csv(path, header, rows)


def _score_columns(raw: Raw, scores: Tensor) -> list[tuple[float, float | str, float]]:
    """R, L (blank without a discriminator) and A of each picture; `repr` keeps every digit."""
    parts = raw.reconstruction.tolist()
    alignment = [""] * len(parts) if raw.alignment is None else raw.alignment.tolist()
    return list(zip(parts, alignment, scores.tolist(), strict=True))


def fit_scale(run: Path, pictures: Pictures, source: str, device: torch.device) -> Scale:
    """Store the ranges of R and L over normal `pictures` in the checkpoint of `run`.

    source: "held-out" or "train", where the pictures come from.
    """
    config, generator, discriminator, checkpoint = load_models(run, device)
    raw = score_pictures(generator, discriminator, pictures, config, device)
    scale = Scale.of(raw, source)
    save_checkpoint(run / CHECKPOINT, checkpoint | {"score_scale": scale.to_dict()})
    return scale


def _stored_scale(run: Path, checkpoint: Mapping[str, Any]) -> Scale:
    if checkpoint.get("score_scale") is None:
        raise UserError(
            f"{run / CHECKPOINT}: holds no ranges of R and L over normal pictures, which scores are "
            f"scaled by; finish its training, which puts them there"
        )
    return Scale.from_dict(checkpoint["score_scale"])


def predict(run: Path, folder: Path, device: torch.device, out: Path) -> list[dict[str, Any]]:
    """Score every picture in `folder` and below it, scaled as the checkpoint in `run` says.

    Into `out` go predictions.csv and, for each picture, heatmaps/<its path>.heat.png: the picture and
    beside it its error map, on one colour scale for all. Returns the rows of the table. Scores
    of pictures like the normal ones that made the scale lie in 0 to 1; others may lie beyond.
    UserError where there is no picture, or no scale in the checkpoint.
    """
    paths = _pictures_below(folder, out / "heatmaps")
    config, generator, discriminator, checkpoint = load_models(run, device)
    scale = _stored_scale(run, checkpoint)
    pictures = PictureFiles(paths, config.image_size)
    raw = score_pictures(generator, discriminator, pictures, config, device)
    names = [path.relative_to(folder).as_posix() for path in paths]
    columns = _score_columns(raw, fuse(raw, scale, config.gamma))
    header = ("path", "reconstruction", "alignment", "score")
    rows = [(name, *values) for name, values in zip(names, columns, strict=True)]
    write_csv(out / "predictions.csv", header, rows)
    _write_heatmaps(out / "heatmaps", names, pictures, raw.error_maps)
    return [dict(zip(header, row, strict=True)) for row in rows]


def _pictures_below(folder: Path, excluded: Path) -> list[Path]:
    """Every picture in `folder` and below, sorted, but for those in `excluded`: our own output."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give one that holds pictures")
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not path.name.startswith(".")
        and excluded.resolve() not in path.resolve().parents
    ]
    if not paths:
        wanted = ", ".join(suffix.lstrip(".") for suffix in SUFFIXES)
        raise UserError(f"{folder}: no pictures in it or below; expected files of type {wanted}")
    return paths


def _write_heatmaps(
    folder: Path, names: Sequence[str], pictures: Pictures, error_maps: Tensor
) -> None:
    top = float(np.percentile(error_maps.numpy(), 99.9)) or 1.0
    for index, name in enumerate(names):
        x = pictures.batch(torch.tensor([index]), "cpu")[0]
        picture = to_bytes(x).permute(1, 2, 0).numpy()
        shares = np.clip(error_maps[index].numpy() / top, 0, 1)
        heat = colormaps[report.HEAT](shares, bytes=True)[..., :3]
        image = Image.fromarray(np.concatenate([picture, heat], axis=1))
        # The whole name with its suffix: a.jpg and a.png may lie in one folder.
        write_atomically(folder / f"{name}.heat.png", image.save)


def write_summary(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of several categories' metrics: category, image_auroc, pixel_auroc, and their mean.

    In the order of the paper's Table 1, then by name.
    """
    areas = ("image_auroc", "pixel_auroc")
    ordered = sorted(rows, key=lambda row: table_place(row["category"]))
    write_means(path, ("category", *areas), ordered, areas)
