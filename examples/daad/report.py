"""What a run found on its test set: figures, and one page that shows them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from torch import Tensor
from torchmetrics.functional.classification import binary_roc

from daad.batches import Pictures, to_bytes
from daad.config import Config
from daad.data import GOOD, Sample
from daad.files import write_text
from daad.plotting import BLUE, INK, ORANGE, PALE, Layout, calm, picture_grid, save_figure
from daad.progress import LOSSES
from daad.scoring import Raw, image_auroc, peaks, to_unit_interval

HEAT = "magma"  # perceptually uniform: an equal step in error is an equal step in lightness
MAX_ROWS = 10  # of the reconstructions: a good picture and up to nine defects
# Room for row labels at the left, a colour bar at the foot
LAYOUT = Layout(cell=1.6, gap=0.07, left=1.5, top=0.35, right=0.15, bottom=0.6)
PLOT = (4.4, 4.0)  # inches


@dataclass
class Findings:
    """A scored test set of n pictures: samples, scores A (n,), masks (n, S, S), known (n,)."""

    samples: Sequence[Sample]
    pictures: Pictures
    raw: Raw
    scores: Tensor
    masks: Tensor
    known: Tensor

    @cached_property
    def peaks(self) -> Tensor:
        """The peak of each error map, (n,)."""
        return peaks(self.raw.error_maps)


def draw_figures(folder: Path, findings: Findings, history: Sequence[Mapping[str, Any]]) -> None:
    """Write reconstructions.png, scores.png, roc.png and, with a history, history.png."""
    labels = torch.tensor([sample.label for sample in findings.samples])
    save_figure(folder / "reconstructions.png", _reconstructions(findings))
    save_figure(folder / "scores.png", _histogram(findings.scores, labels))
    save_figure(folder / "roc.png", _roc(findings.scores, labels))
    if history:
        draw_history(folder / "history.png", history)


def pick_rows(samples: Sequence[Sample], scores: Tensor) -> list[int]:
    """Indices of typical pictures: good ones, then of each defect those about its median score.

    Picked at evenly spaced quantiles of the score, so neither the best nor the worst are chosen.
    """
    counts = Counter(sample.defect for sample in samples if sample.label)
    frequent = {defect for defect, _ in counts.most_common(MAX_ROWS - 1)}
    defects = [defect for defect in counts if defect in frequent]
    goods = 2 if len(defects) <= MAX_ROWS - 2 else 1
    each = max(1, min(3, 6 // max(1, len(defects))))
    picked: list[int] = []
    for defect, wanted in [(GOOD, goods), *((defect, each) for defect in defects)]:
        members = [index for index, sample in enumerate(samples) if sample.defect == defect]
        members.sort(key=lambda index: scores[index].item())
        wanted = min(wanted, len(members))
        picked += [members[int((i + 0.5) / wanted * len(members))] for i in range(wanted)]
    return picked


def _reconstructions(findings: Findings) -> Figure:
    rows = pick_rows(findings.samples, findings.scores)
    shown = findings.pictures.batch(torch.tensor(rows), "cpu")
    inputs = to_bytes(shown).permute(0, 2, 3, 1).numpy()
    outputs = findings.raw.reconstructions[rows].permute(0, 2, 3, 1).numpy()
    errors = findings.raw.error_maps[rows].numpy()
    truth = any(sample.mask for sample in findings.samples)
    titles = ["input", "reconstruction", "squared error"] + ["ground truth"] * truth
    figure, grid = picture_grid(len(rows), titles, LAYOUT)
    # A few glaring pixels would leave the rest of a scale up to the maximum in the dark.
    top = float(np.percentile(errors, 99.5)) or 1.0
    heat = None
    for row, index in enumerate(rows):
        sample, score = findings.samples[index], findings.scores[index].item()
        defect = sample.defect.replace("_", " ")
        defect = defect if len(defect) <= 20 else f"{defect[:19]}\u2026"
        grid[row][0].set_ylabel(
            f"{defect}\nscore {score:.3f}",
            color=ORANGE if sample.label else BLUE,
            fontsize=9,
            rotation=0,
            ha="right",
            va="center",
            parse_math=False,
        )
        grid[row][0].imshow(inputs[row])
        grid[row][1].imshow(outputs[row])
        heat = grid[row][2].imshow(errors[row], cmap=HEAT, vmin=0, vmax=top)
        if truth:
            mask = findings.masks[index].numpy() if findings.known[index] else None
            _draw_mask(grid[row][3], inputs[row], mask)
    _colour_bar(figure, grid[-1][2], heat)
    return figure


def _colour_bar(figure: Figure, above: Axes, heat: Any) -> None:
    """Below the axes `above` and as wide."""
    box = above.get_position()
    inch = 1 / figure.get_figheight()
    axes = figure.add_axes((box.x0, box.y0 - 0.2 * inch, box.width, 0.09 * inch))
    bar = figure.colorbar(heat, cax=axes, orientation="horizontal", extend="max")
    bar.outline.set_visible(False)
    bar.ax.xaxis.set_major_locator(MaxNLocator(3))
    bar.ax.tick_params(labelsize=7, length=2, color=PALE, labelcolor=INK)


def _draw_mask(axes: Axes, picture: np.ndarray, mask: np.ndarray | None) -> None:
    """The defect in orange over a pale copy of the picture; a word where there is none to show."""
    pale = 255 - (255 - picture.mean(axis=2)) * 0.45
    axes.imshow(pale, cmap="gray", vmin=0, vmax=255)
    if mask is None or not mask.any():
        word = "no defect" if mask is not None else "not known"
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 3}
        middle = picture.shape[0] / 2
        axes.text(middle, middle, word, fontsize=8, color=INK, ha="center", va="center", bbox=box)
        return
    fill = np.zeros((*mask.shape, 4))
    fill[mask] = (0.835, 0.369, 0.0, 0.55)
    axes.imshow(fill)
    if not mask.all():
        axes.contour(mask.astype(float), levels=[0.5], colors=ORANGE, linewidths=1)


def _histogram(scores: Tensor, labels: Tensor) -> Figure:
    """Good above, anomalous below, in the same bins; each has a count axis of its own."""
    values, anomalous = scores.numpy(), labels.bool().numpy()
    count = int(np.clip(2 * np.sqrt(len(values)), 10, 50))
    edges = np.histogram_bin_edges(values, bins=count).tolist()
    figure = Figure(figsize=PLOT, facecolor="white", layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    kinds = [(values[~anomalous], BLUE, "good"), (values[anomalous], ORANGE, "anomalous")]
    for axes, (part, colour, name) in zip(panels, kinds, strict=True):
        calm(axes)
        axes.hist(part, edges, color=colour, edgecolor="white", linewidth=0.6)
        axes.set_title(f"{name} ({len(part)})", fontsize=10, color=colour, loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("pictures", fontsize=9, color=INK)
    panels[1].set_xlabel("anomaly score", fontsize=9, color=INK)
    return figure


def _roc(scores: Tensor, labels: Tensor) -> Figure:
    figure = Figure(figsize=PLOT, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    calm(axes)
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=1, linestyle="--", label="chance")
    area = image_auroc(scores, labels)
    if area is not None:
        false_rate, true_rate, _ = binary_roc(to_unit_interval(scores), labels.long())
        curve = f"AUROC {area:.3f}"
        axes.plot(false_rate.numpy(), true_rate.numpy(), color=BLUE, linewidth=2, label=curve)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xlabel("false positive rate", fontsize=9, color=INK)
    axes.set_ylabel("true positive rate", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right", reverse=True)
    return figure


def draw_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the losses by epoch: one panel each, logarithmic where one falls by much."""
    names = [name for name in LOSSES if history[0][name] is not None]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2 * PLOT[0], 2.6 * rows), facecolor="white", layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.remove()
    epochs = [entry["epoch"] for entry in history]
    for axes, name in zip(panels, names, strict=False):
        values = [entry[name] for entry in history]
        calm(axes)
        # A line through a single epoch would not be seen.
        axes.plot(epochs, values, "o" if len(epochs) == 1 else "-", color=BLUE, linewidth=1.5)
        if min(values) > 0 and max(values) > 5 * min(values):
            _log_axis(axes, max(values) / min(values))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.set_title(f"{name} loss", fontsize=10, color=INK, loc="left")
        axes.set_xlabel("epoch", fontsize=9, color=INK)
    save_figure(path, figure)


def _log_axis(axes: Axes, span: float) -> None:
    """A logarithmic y axis with plain numbers at 1, 2, 5, or at the powers of ten alone."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 1000 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 920px; padding: 48px 32px; background: #fff; color: #26323d;
  font: 15px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }}
h1 {{ margin: 0; font-size: 28px; font-weight: 600; }}
h2 {{ margin: 48px 0 12px; font-size: 18px; font-weight: 600; }}
p {{ margin: 4px 0 0; color: #5d6873; }}
.areas {{ display: flex; flex-wrap: wrap; gap: 16px; margin-top: 28px; }}
.area {{ flex: 1 1 170px; padding: 16px 20px; border: 1px solid #e1e5e9; border-radius: 8px; }}
.area b {{ display: block; font-size: 36px; line-height: 1.3; font-weight: 600;
  font-variant-numeric: tabular-nums; }}
table {{ width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 6px 12px 6px 0; text-align: left; border-bottom: 1px solid #e1e5e9; }}
th {{ font-weight: 600; }}
.kinds th + th, .kinds td + td {{ text-align: right; padding: 6px 0 6px 16px; }}
.settings {{ columns: 2; column-gap: 40px; margin: 0; }}
.settings div {{ display: flex; justify-content: space-between; gap: 16px; padding: 4px 0;
  border-bottom: 1px solid #e1e5e9; break-inside: avoid; font-size: 14px; }}
dt {{ color: #5d6873; }} dd {{ margin: 0; overflow-wrap: anywhere; text-align: right; }}
.pair {{ display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-end; }}
img {{ display: block; max-width: 100%; height: auto; }}
.pair img {{ flex: 1 1 0; min-width: 0; }}
@media (max-width: 640px) {{ .settings {{ columns: 1; }} .pair {{ display: block; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{subtitle}</p>
<div class="areas">{areas}</div>
{sections}
</body>
</html>
"""

SCALED_OVER = {
    "test": "the test set",
    "held-out": "normal pictures held out from training",
    "train": "the training pictures",
}


def write_report(run: Path, metrics: Mapping[str, Any], config: Config) -> None:
    """Write report.html into `run`: its metrics and settings, and the figures there are."""
    counts = metrics["counts"]
    marked = f"; the defect is marked in {counts['masks']} of them" if counts["masks"] else ""
    subtitle = (
        f"Epoch {metrics['epoch']}. Tested on {counts['good']} good and {counts['anomalous']} "
        f"anomalous pictures{marked}. "
        f"Scores are scaled over {SCALED_OVER[metrics['scaling']]}."
    )
    if metrics["even_light"]:
        subtitle += " Each test picture was made as bright as the training pictures are on average."
    areas = [
        ("image AUROC", metrics["image_auroc"]),
        ("by the error's peak", metrics["image_auroc_peak"]),
    ]
    if counts["masks"]:
        areas.append(("pixel AUROC", metrics["pixel_auroc"]))
    areas.append(("by brightness, no network", metrics["image_auroc_brightness"]))
    if "oracle_image_auroc" in metrics:
        best = metrics["oracle_epoch"]
        name = f"oracle: image AUROC of epoch {best}, the best one, chosen on the test set"
        areas.append((name, metrics["oracle_image_auroc"]))
    sections = [
        _section(f"By {metrics['kind']}", _kind_table(metrics)),
        _section("Scores", _images(run, ("scores.png", "roc.png"))),
        _section("Reconstructions", _images(run, ("reconstructions.png",))),
        _section("Training", _images(run, ("history.png",))),
        _section("Settings", _settings(config)),
    ]
    page = PAGE.format(
        title=escape(f"{config.variant.upper()} on {metrics['category']}"),
        subtitle=escape(subtitle),
        areas="".join(
            f'<div class="area"><b>{_number(value)}</b>{escape(name)}</div>'
            for name, value in areas
        ),
        sections="\n".join(section for section in sections if section),
    )
    write_text(run / "report.html", page)


def _section(heading: str, body: str) -> str:
    return f"<h2>{escape(heading)}</h2>\n{body}" if body else ""


def _number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.3f}"


def _kind_table(metrics: Mapping[str, Any]) -> str:
    """A row for each defect, or other class; by pixel only where there are masks to judge by."""
    areas = ["image AUROC", "pixel AUROC"] if metrics["counts"]["masks"] else ["image AUROC"]
    head = "".join(f"<th>{name}</th>" for name in (metrics["kind"], "pictures", *areas))
    rows = [f"<tr>{head}</tr>"]
    for name, entry in metrics["defects"].items():
        values = (_number(entry[area.replace(" AUROC", "_auroc")]) for area in areas)
        cells = "".join(f"<td>{cell}</td>" for cell in (escape(name), entry["count"], *values))
        rows.append(f"<tr>{cells}</tr>")
    return '<table class="kinds">\n' + "\n".join(rows) + "\n</table>"


def _settings(config: Config) -> str:
    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return ", ".join(map(str, value))
        if isinstance(value, bool):
            return "yes" if value else "no"
        return "default" if value is None else str(value)

    rows = "\n".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(text(value))}</dd></div>"
        for name, value in config.to_dict().items()
    )
    return f'<dl class="settings">\n{rows}\n</dl>'


def _images(run: Path, names: Sequence[str]) -> str:
    present = [name for name in names if (run / "figures" / name).is_file()]
    images = "".join(f'<img src="figures/{name}" alt="{name[:-4]}">' for name in present)
    return f'<div class="pair">{images}</div>' if images else ""
