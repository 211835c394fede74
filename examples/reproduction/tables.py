"""The paper's results: what is trained for each row of a table or point of a figure, and its figure.

All figures of the paper stand here. They are image AUROCs, over the fifteen categories of MVTec AD
where none is named; for video they are frame AUROCs. A row is judged by runs. Rows share runs, so that
DAAD is trained once for all tables.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daad.classes import CLASSES
from daad.io import UserError
from daad.mvtec import TABLE_ORDER
from reproduction.scales import SCALES, Scale, Setting

# What pictures are ranked by: R(x) or L(x) of Eq. 7 alone, or both; or, which is not the paper's, by
# the peak of the error map. For frames R is their PSNR, and R and L are scaled over each clip; "global"
# is R scaled over all clips, "within" the mean of its areas within clips, which no scaling changes.
SCORES = ("R", "L", "R + L", "peak", "global", "within")
NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


@dataclass(frozen=True)
class Row:
    """A line of a table. `paper` is its figure over all categories, None where it gives none.

    score: what its pictures are ranked by, one of `SCORES`.
    by_category: the paper's figures by category, where it gives them.
    """

    label: str
    setting: Setting
    paper: float | None = None
    score: str = "R + L"
    by_category: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of the paper, the curve of a figure, or one of ours.

    kind: the kind of data, a key of `config.KINDS`. subjects: the classes or the video that its
    figures are means over; empty for the categories there are in MVTec layout.
    """

    title: str
    rows: Sequence[Row]
    kind: str = "photographs"
    subjects: Sequence[str] = ()


@dataclass(frozen=True)
class Paper:
    """What is reproduced: tables by the names of their sections, and the scales it is run at."""

    tables: Mapping[str, Table]
    scales: Mapping[str, Scale]


def rows_that_fit(table: Table, scale: Scale) -> tuple[list[Row], list[str]]:
    """Give the rows whose division fits a scale, and for each other one a line that says why not."""
    reasons = {row.label: _misfit(row, table.kind, scale) for row in table.rows}
    left_out = [f"{label}: {reason}" for label, reason in reasons.items() if reason]
    return [row for row in table.rows if not reasons[row.label]], left_out


def _misfit(row: Row, kind: str, scale: Scale) -> str:
    try:
        row.setting.config(kind, scale, 0)
    except UserError as error:
        return str(error).partition(": change ")[0]  # which is advice for other scripts
    return ""


# Image AUROC, mean over the classes. MemAE's was measured on a part of the test set (footnote 1).
TABLE_2 = {"mnist": {"DAAD": 0.990, "MemAE": 0.975}, "cifar10": {"DAAD": 0.753, "MemAE": 0.609}}
# Table 3, one column each, its categories from top to bottom; the last figure is its row "Mean".
_TABLE_3 = {
    "AE": (
        *(0.411, 0.841, 0.615, 0.696, 0.961, 0.955, 0.688, 0.819),
        *(0.884, 0.565, 0.882, 0.956, 0.977, 0.776, 0.878, 0.794),
    ),
    "MemAE": (
        *(0.454, 0.946, 0.611, 0.630, 0.967, 0.954, 0.694, 0.831),
        *(0.891, 0.537, 0.883, 0.992, 0.972, 0.793, 0.871, 0.802),
    ),
    "AE+Skip": (
        *(0.385, 0.879, 0.570, 0.986, 0.977, 0.713, 0.579, 0.747),
        *(0.828, 0.336, 0.853, 1.000, 0.742, 0.749, 0.696, 0.736),
    ),
    "DAAD": (
        *(0.671, 0.975, 0.628, 0.825, 0.957, 0.975, 0.720, 0.866),
        *(0.893, 0.552, 0.898, 1.000, 0.989, 0.814, 0.906, 0.845),
    ),
    "DAAD+": (
        *(0.866, 0.957, 0.862, 0.882, 0.982, 0.976, 0.844, 0.767),
        *(0.921, 0.758, 0.900, 0.987, 0.992, 0.876, 0.859, 0.895),
    ),
}
# Table 4, row "AUROC", columns r_h & r_w.
_TABLE_4 = {1: 0.716, 2: 0.784, 4: 0.821, 8: 0.845, 16: 0.813}
# Table 5, column "AUROC": no further loss and R(x); L_adv and R(x); then L_adv and L_ali with R(x),
# with L(x), and with both.
_TABLE_5 = {
    "AE": (0.794, 0.812, 0.817, 0.819, 0.835),
    "MemAE": (0.802, 0.825, 0.835, 0.841, 0.853),
    "DAAD": (0.845, 0.847, 0.855, 0.874, 0.895),
}

AE, MEMAE = Setting("ae", {"variant": "ae"}), Setting("memae", {"variant": "memae"})
AE_SKIP = Setting("ae-skip", {"variant": "ae-skip"})
DAAD, DAAD_PLUS = Setting("daad", {"variant": "daad"}), Setting("daad+", {"variant": "daad+"})


def _table_3() -> list[Row]:
    settings = (AE, MEMAE, AE_SKIP, DAAD, DAAD_PLUS)
    rows = []
    for setting, (label, figures) in zip(settings, _TABLE_3.items(), strict=True):
        by_category = dict(zip(TABLE_ORDER, figures[:-1], strict=True))
        rows.append(Row(label, setting, figures[-1], by_category=by_category))
    return rows


def _by_peak() -> list[Row]:
    """Rank the runs of Table 3 in another way, of which the paper has no figures."""
    return [
        dataclasses.replace(row, paper=None, score="peak", by_category={}) for row in _table_3()
    ]


def _table_4() -> list[Row]:
    return [
        Row(f"r {r}", DAAD if r == 8 else _daad(f"r{r}", division=(r, r, 1)), paper)
        for r, paper in _TABLE_4.items()
    ]


def _table_5() -> list[Row]:
    """Give each network five rows, of three runs: with both losses one run is ranked in three ways."""
    rows = []
    for label, bare in {"AE": AE, "MemAE": MEMAE, "DAAD": DAAD}.items():
        both = Setting(f"{bare.run}-adv-ali", {**bare.choices, "discriminator": True})
        if bare is DAAD:
            both = DAAD_PLUS
        adversarial = Setting(
            f"{bare.run}-adv", {**bare.choices, "discriminator": True, "lambda_ali": 0.0}
        )
        kinds = (
            ("", bare, "R"),
            (", L_adv", adversarial, "R"),
            *((", L_adv, L_ali", both, score) for score in SCORES[:3]),
        )
        for (losses, setting, score), paper in zip(kinds, _TABLE_5[label], strict=True):
            rows.append(Row(f"{label}{losses}: {score}", setting, paper, score))
    return rows


def _figure_7() -> list[Row]:
    """Give a row for each N; only 500, DAAD of Table 3, has a figure that can be read to three digits."""
    rows = []
    for items in (100, 250, 500, 1000, 2000):
        setting = Setting(f"daad-n{items}", DAAD.choices, items / 500)
        paper = _TABLE_3["DAAD"][-1] if items == 500 else None
        rows.append(Row(f"N {items}", DAAD if items == 500 else setting, paper))
    return rows


def _left_open() -> list[Row]:
    """Vary what the paper leaves open, and add its own choices where the defaults here are others."""
    squared = {**DAAD_PLUS.choices, "distance": "squared"}
    heavy = {**squared, "lambda_rec": 5000.0}
    both = {**heavy, "alignment_distance": "squared"}
    apart = Setting("daad+-apart", {**DAAD_PLUS.choices, "alignment_trains_discriminator": False})
    return [
        Row("DAAD as it is", DAAD, _TABLE_3["DAAD"][-1]),
        Row("temperature 0.2", _daad("t0.2", temperature=0.2)),
        Row("temperature 0.05", _daad("t0.05", temperature=0.05)),
        Row("weights made to sum to 1", _daad("renormalized", renormalize=True)),
        Row("no threshold", _daad("no-threshold", threshold=0.0)),
        Row("norm of Eq. 4, as printed", _daad("l2", distance="l2")),
        Row("DAAD+ as it is", DAAD_PLUS, _TABLE_3["DAAD+"][-1]),
        Row("DAAD+, squares in Eq. 4", Setting("daad+-squared", squared)),
        Row("DAAD+, squares in Eq. 4, λ_rec 5000", Setting("daad+-squared-heavy", heavy)),
        Row("DAAD+, squares in Eq. 4, 6, λ_rec 5000", Setting("daad+-squares-heavy", both)),
        Row("DAAD+, L_ali not for D", apart),
    ]


def _daad(name: str, **choices: Any) -> Setting:
    return dataclasses.replace(DAAD, run=f"daad-{name}", choices={**DAAD.choices, **choices})


def _one_class(dataset: str) -> Table:
    """Give "Ours" of Table 2 to DAAD: the paper does not say whether it is DAAD or DAAD+."""
    papers = TABLE_2[dataset]
    settings = {"AE": AE, "MemAE": MEMAE, "DAAD": DAAD, "DAAD+": DAAD_PLUS}
    rows = [Row(label, setting, papers.get(label)) for label, setting in settings.items()]
    subjects = [f"{dataset}-{name}" for name in CLASSES[dataset]]
    return Table(f"Table 2, {NAMES[dataset]}, one class normal", rows, dataset, subjects)


def _video(name: str, title: str, ae: float, ours: float) -> Table:
    """Give "Ours" of Table 6 to DAAD: the paper does not say which it is, and the rate is DAAD+'s.

    Only scores that are scaled over each clip are the paper's.
    """
    rows = [Row("AE", AE, ae, "R"), Row("DAAD", DAAD, ours, "R")]
    rows += [Row(f"DAAD+: {score}", DAAD_PLUS, None, score) for score in SCORES[:3]]
    for words, score in (("scaled over all clips", "global"), ("mean within clips", "within")):
        for label, setting in {"AE": AE, "DAAD": DAAD, "DAAD+": DAAD_PLUS}.items():
            rows.append(Row(f"{label}: R, {words}", setting, None, score))
    return Table(title, rows, "video", (name,))


def _figure_2() -> list[Row]:
    """Give the networks of which the paper shows pictures; MemAE at 8x, 4x, 2x has fewer levels."""
    rows = [Row("AE", AE), Row("AE+Skip", AE_SKIP)]
    for levels in (1, 2, 3):
        choices = {**MEMAE.choices, "levels": levels}
        rows.append(Row(f"MemAE {2**levels}x", Setting(f"memae-{2**levels}x", choices)))
    memae_skip = Setting("memae-skip", {"variant": "memae-skip"})
    return [*rows, Row("MemAE 16x", MEMAE), Row("MemAE+Skip", memae_skip), Row("DAAD", DAAD)]


TABLES = {
    "table2-mnist": _one_class("mnist"),
    "table2-cifar10": _one_class("cifar10"),
    "table3": Table("Table 3, networks", _table_3()),
    "peak": Table("The networks of Table 3, ranked by the peak of the error", _by_peak()),
    "table4": Table("Table 4, division rates r_h and r_w", _table_4()),
    "table5": Table("Table 5, losses and scores", _table_5()),
    "table6-ped2": _video("ped2", "Table 6, UCSD Ped2", 0.901, 0.941),
    "table6-avenue": _video("avenue", "Table 6, CUHK Avenue", 0.805, 0.829),
    "figure2": Table("Figure 2, networks and MemAE's depth", _figure_2()),
    "figure6": Table("Figure 6, anomaly score and anomaly area", _table_3()[-2:]),
    "figure7": Table("Figure 7, memory size: the paper's N, and the scale's", _figure_7()),
    "open": Table("What the paper leaves open", _left_open()),
}
PAPER = Paper(TABLES, SCALES)
# What other tables are about; any other subject is a category.
NO_CATEGORIES = frozenset(subject for table in TABLES.values() for subject in table.subjects)
