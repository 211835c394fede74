"""Figures that show something and a page that says what was measured, safely."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from daad.config import Config
from daad.data import Sample
from daad.plotting import DPI
from daad.report import MAX_ROWS, Findings, draw_figures, pick_rows, write_report
from daad.scoring import Raw
from tests.helpers.stand_ins import TensorPictures

METRICS: dict[str, Any] = {
    "variant": "daad+",
    "category": "bottle",
    "epoch": 1000,
    "scaling": "test",
    "even_light": False,
    "kind": "defect",
    "image_auroc": 0.97531,
    "image_auroc_peak": 0.91357,
    "image_auroc_brightness": 0.45397,
    "pixel_auroc": None,
    "counts": {"good": 20, "anomalous": 63, "masks": 61},
    "defects": {"broken_large": {"count": 20, "image_auroc": 0.98765, "pixel_auroc": 0.87654}},
}


def make_samples(counts: dict[str, int], mask: Path | None = None) -> list[Sample]:
    return [
        Sample(
            Path(f"bottle/test/{defect}/{index}.png"), defect, None if defect == "good" else mask
        )
        for defect, count in counts.items()
        for index in range(count)
    ]


def make_findings(counts: dict[str, int], *, masks: bool = True) -> Findings:
    samples = make_samples(counts, Path("mask.png") if masks else None)
    n, size = len(samples), 16
    random = torch.Generator().manual_seed(0)
    x = torch.rand(n, 3, size, size, generator=random) * 2 - 1
    error_maps = torch.rand(n, size, size, generator=random)
    labels = torch.tensor([sample.label for sample in samples])
    marked = torch.zeros(n, size, size, dtype=torch.bool)
    marked[labels == 1, 4:8, 4:8] = masks
    reconstruction = torch.rand(n, generator=random, dtype=torch.float64) + labels
    pixels = (x * 100 + 128).to(torch.uint8)
    raw = Raw(reconstruction, None, error_maps, pixels, torch.rand(n, generator=random))
    known = (labels == 0) | masks
    return Findings(samples, TensorPictures(x), raw, reconstruction, marked, known)


def history_rows(**losses: list[float]) -> list[dict[str, Any]]:
    names = ("reconstruction", "adversarial", "alignment", "discriminator")
    count = len(losses["reconstruction"])
    empty = {name: [None] * count for name in names}
    columns = empty | losses
    return [
        {"epoch": row + 1, "auroc": None, "seconds": 1.0}
        | {name: column[row] for name, column in columns.items()}
        for row in range(count)
    ]


def read_figure(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def colour_count(pixels: np.ndarray, colour: str) -> int:
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.abs(pixels - wanted).max(axis=2) < 12).sum())


# Which pictures are shown


def test_picked_rows_are_typical() -> None:
    samples = make_samples({"good": 5, "scratch": 5})
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 10.0, 30.0, 20.0, 50.0, 40.0])
    # Of five in order of score: the second and fourth for two, and the first, third, fifth for
    # three (quantiles 1/6, 1/2 and 5/6).
    assert pick_rows(samples, scores) == [3, 2, 5, 6, 8]


def test_one_row_for_a_defect_is_the_median() -> None:
    counts = {"good": 3, "a": 3, "b": 3, "c": 3, "d": 3}
    samples = make_samples(counts)
    picked = pick_rows(samples, torch.arange(15, dtype=torch.float64))
    assert [samples[index].defect for index in picked] == ["good", "good", "a", "b", "c", "d"]
    assert picked[2:] == [4, 7, 10, 13]


@pytest.mark.parametrize("defects", [1, 2, 3, 5, 8, 9, 15])
def test_rows_have_a_limit_and_every_kind_that_fits(defects: int) -> None:
    counts = {"good": 4} | {f"defect {index}": 4 for index in range(defects)}
    samples = make_samples(counts)
    picked = pick_rows(samples, torch.rand(len(samples)))
    shown = Counter(samples[index].defect for index in picked)
    assert len(picked) <= MAX_ROWS
    assert len(picked) == len(set(picked))
    assert len(shown) == min(defects, MAX_ROWS - 1) + 1


def test_a_defect_with_one_picture_is_shown_once() -> None:
    samples = make_samples({"good": 1, "scratch": 1})
    assert pick_rows(samples, torch.tensor([0.0, 1.0])) == [0, 1]


# The figures


@pytest.mark.parametrize("masks", [True, False])
def test_reconstructions_have_a_row_a_picture_and_a_column_a_kind(tmp_path, masks) -> None:
    findings = make_findings({"good": 4, "hole": 4, "a name that is far too long": 4}, masks=masks)
    draw_figures(tmp_path, findings, [])
    pixels = read_figure(tmp_path / "reconstructions.png")
    rows, columns = 8, 4 if masks else 3
    height = 0.35 + rows * 1.67 - 0.07 + 0.6
    width = 1.5 + columns * 1.67 - 0.07 + 0.15
    assert pixels.shape[:2] == pytest.approx((height * DPI, width * DPI), abs=2)
    if masks:  # outlined in orange, in the last column
        assert colour_count(pixels[:, -int(1.75 * DPI) :], "#D55E00") > 100
    # Each cell is full of picture: noise, whose neighbours differ.
    for row in range(rows):
        for column in range(3):
            top, left = (0.35 + row * 1.67) * DPI, (1.5 + column * 1.67) * DPI
            cell = pixels[int(top) + 9 : int(top) + 220, int(left) + 9 : int(left) + 220]
            assert cell.std() > 20


def test_error_maps_share_one_colour_scale(tmp_path) -> None:
    findings = make_findings({"good": 2, "hole": 1})
    findings.scores = torch.arange(3, dtype=torch.float64)
    findings.raw.error_maps[:] = torch.tensor([0.0, 0.5, 1.0])[:, None, None]
    draw_figures(tmp_path, findings, [])
    pixels = read_figure(tmp_path / "reconstructions.png")
    middle = int((1.5 + 2 * 1.67 + 0.8) * DPI)
    shades = [pixels[int((0.35 + row * 1.67 + 0.8) * DPI), middle] for row in range(3)]
    assert shades[0].tolist() == pytest.approx([0, 0, 4], abs=4)  # the foot of the scale,
    assert shades[1].tolist() == pytest.approx([183, 55, 121], abs=6)  # its middle,
    assert shades[2].tolist() == pytest.approx([252, 253, 191], abs=4)  # and its top


def test_plots_show_both_kinds_and_the_curve(tmp_path) -> None:
    draw_figures(tmp_path, make_findings({"good": 20, "hole": 40}), [])
    scores, roc = (read_figure(tmp_path / f"{name}.png") for name in ("scores", "roc"))
    assert scores.shape == roc.shape == (576, 633, 3)
    assert colour_count(scores, "#0072B2") > 3000
    assert colour_count(scores, "#D55E00") > 3000
    assert colour_count(roc, "#0072B2") > 500
    assert not (tmp_path / "history.png").exists()


def test_history_has_a_panel_for_each_loss_there_is(tmp_path) -> None:
    findings = make_findings({"good": 2, "hole": 2})
    falling = [1.0, 0.1, 0.01]
    draw_figures(tmp_path / "one", findings, history_rows(reconstruction=falling))
    one = read_figure(tmp_path / "one" / "history.png")
    # Minimax makes the adversarial loss negative, where there is no logarithm.
    rows = history_rows(
        reconstruction=falling,
        adversarial=[-0.7, -0.8, -0.6],
        alignment=[0.0, 0.0, 0.0],
        discriminator=[1.4, 1.3, 1.2],
    )
    draw_figures(tmp_path / "four", findings, rows)
    four = read_figure(tmp_path / "four" / "history.png")
    assert four.shape[0] == pytest.approx(2 * one.shape[0], abs=2)
    for y in (slice(0, 370), slice(370, None)):
        for x in (slice(0, 630), slice(630, None)):
            assert colour_count(four[y, x], "#0072B2") > 100


def test_history_of_a_single_epoch_is_drawn(tmp_path) -> None:
    findings = make_findings({"good": 2, "hole": 2})
    draw_figures(tmp_path, findings, history_rows(reconstruction=[0.5]))
    assert colour_count(read_figure(tmp_path / "history.png"), "#0072B2") > 10


def test_names_are_text_and_not_formulas(tmp_path) -> None:
    draw_figures(tmp_path, make_findings({"good": 2, "$\\frac$": 2}), [])
    assert (tmp_path / "reconstructions.png").stat().st_size > 0


# The page


def page_of(run: Path, metrics: dict[str, Any]) -> str:
    write_report(run, metrics, Config(variant="daad+").resolve())
    return (run / "report.html").read_text(encoding="utf-8")


def test_page_says_what_was_measured(tmp_path) -> None:
    page = page_of(tmp_path, METRICS)
    assert "<h1>DAAD+ on bottle</h1>" in page
    assert "20 good and 63 anomalous pictures; the defect is marked in 61" in page
    assert "<b>0.975</b>image AUROC" in page
    assert "<b>0.914</b>by the error" in page
    assert "<b>0.454</b>by brightness, no network" in page
    assert "<b>&ndash;</b>pixel AUROC" in page
    row = "<td>broken_large</td><td>20</td><td>0.988</td><td>0.877</td>"
    assert row in page
    assert "<dt>division</dt><dd>8, 8, 1</dd>" in page
    assert "<dt>lr</dt><dd>0.0002</dd>" in page
    assert "oracle" not in page


def test_page_says_where_light_was_made_even(tmp_path) -> None:
    write_report(tmp_path, METRICS, Config())
    assert "as bright as" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    write_report(tmp_path, METRICS | {"even_light": True}, Config())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "made as bright as the training pictures" in page


def test_page_without_masks_speaks_of_none(tmp_path) -> None:
    classes = {"3": {"count": 20, "image_auroc": 0.98765, "pixel_auroc": None}}
    counts = {"good": 20, "anomalous": 63, "masks": 0}
    page = page_of(tmp_path, METRICS | {"kind": "class", "counts": counts, "defects": classes})
    assert "20 good and 63 anomalous pictures. Scores" in page
    assert "<th>class</th><th>pictures</th><th>image AUROC</th></tr>" in page
    assert "<tr><td>3</td><td>20</td><td>0.988</td></tr>" in page
    assert "defect" not in page
    assert "pixel AUROC" not in page


def test_page_labels_the_oracle(tmp_path) -> None:
    oracle = {"oracle_image_auroc": 0.99123, "oracle_epoch": 640, "oracle_note": ""}
    page = page_of(tmp_path, METRICS | oracle)
    assert "<b>0.991</b>oracle: image AUROC of epoch 640" in page
    assert "chosen on the test set" in page


def test_page_escapes_names(tmp_path) -> None:
    bad = '<script>alert("x")</script>&{0}'
    defects = {bad: {"count": 1, "image_auroc": 0.5, "pixel_auroc": None}}
    page = page_of(tmp_path, METRICS | {"category": bad, "defects": defects})
    assert "<script" not in page
    escaped = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;{0}"
    assert f"<td>{escaped}</td>" in page
    assert f"<title>DAAD+ on {escaped}</title>" in page


def test_page_links_the_figures_there_are(tmp_path) -> None:
    draw_figures(tmp_path / "figures", make_findings({"good": 2, "hole": 2}), [])
    page = page_of(tmp_path, METRICS)
    for name in ("reconstructions", "scores", "roc"):
        assert f'src="figures/{name}.png"' in page
    assert "history.png" not in page
    assert "<h2>Training</h2>" not in page
