"""The paper's ablations: what is trained for each row of Tables 3, 4, 5 and Figure 7, and its figure.

A row is judged by a run; runs are shared, so that DAAD is trained once for all tables. Figures of
the paper are image AUROCs, over the fifteen categories of MVTec AD where none is named.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daad.config import Config, items_at_paper_ratio
from daad.data import TABLE_ORDER

# What the scales set otherwise than the paper. `small` fits two cores: some 15 minutes a run.
SCALES: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"image_size": 128, "width": 16, "epochs": 40, "lr": 1e-3, "checkpoint_every": 5},
}
# Columns of scores.csv by what is judged: R(x) or L(x) of Eq. 7 alone, or both.
SCORES = {"R": "reconstruction", "L": "alignment", "R + L": "score"}


@dataclass(frozen=True)
class Setting:
    """What is trained, in a folder named `run`: fields of `Config` beside those of the scale.

    items: N, in multiples of the scale's.
    """

    run: str
    choices: Mapping[str, Any]
    items: float = 1

    def config(self, scale: str, seed: int) -> Config:
        """The resolved configuration at a scale; UserError where the division does not fit it.

        N keeps the paper's D/N at the scale's own division, and stays when a row divides otherwise:
        500 for the paper's sizes, as there.
        """
        chosen = dict(SCALES[scale])
        if self.choices["variant"].startswith("memae"):
            chosen.pop("division", None)  # by pixels
        plain = Config(**chosen, variant=self.choices["variant"]).resolve()
        items = max(1, round(items_at_paper_ratio(plain) * self.items))
        return Config(**chosen | dict(self.choices) | {"num_items": items, "seed": seed}).resolve()


@dataclass(frozen=True)
class Row:
    """A line of a table. `paper` is its figure over all categories, None where it gives none.

    score: what its pictures are ranked by, a key of `SCORES`.
    by_category: the paper's figures by category, where it gives them.
    """

    label: str
    setting: Setting
    paper: float | None = None
    score: str = "R + L"
    by_category: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    """A table of the paper, or one of ours."""

    title: str
    rows: Sequence[Row]


def memory_parameters(config: Config) -> int:
    """How many numbers the memories of a resolved `config` hold: N x D summed over the levels."""
    levels = [level for level in range(1, config.levels + 1) if config.has_memory(level)]
    return sum(config.num_items * math.prod(config.block_shape(level)) for level in levels)


def training_bytes(config: Config) -> int:
    """What the memories take in training, in float32: values, gradients, Adam's two moments."""
    return 4 * 4 * memory_parameters(config)


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


def _table_4() -> list[Row]:
    return [
        Row(f"r {r}", DAAD if r == 8 else _daad(f"r{r}", division=(r, r, 1)), paper)
        for r, paper in _TABLE_4.items()
    ]


def _table_5() -> list[Row]:
    """Five rows a network, of three runs: with both losses one run is ranked in three ways."""
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
            *((", L_adv, L_ali", both, score) for score in SCORES),
        )
        for (losses, setting, score), paper in zip(kinds, _TABLE_5[label], strict=True):
            rows.append(Row(f"{label}{losses}: {score}", setting, paper, score))
    return rows


def _figure_7() -> list[Row]:
    """Its points cannot be read to three digits; at N 500 it is DAAD of Table 3."""
    rows = []
    for items in (100, 250, 500, 1000, 2000):
        setting = Setting(f"daad-n{items}", DAAD.choices, items / 500)
        paper = _TABLE_3["DAAD"][-1] if items == 500 else None
        rows.append(Row(f"N {items}", DAAD if items == 500 else setting, paper))
    return rows


def _left_open() -> list[Row]:
    """Choices that the paper does not make, one at a time, beside the defaults here."""
    norm = Setting("daad+-l2", {"variant": "daad+", "distance": "l2"})
    return [
        Row("DAAD as it is", DAAD, _TABLE_3["DAAD"][-1]),
        Row("temperature 0.2", _daad("t0.2", temperature=0.2)),
        Row("temperature 0.05", _daad("t0.05", temperature=0.05)),
        Row("weights made to sum to 1", _daad("renormalized", renormalize=True)),
        Row("no threshold", _daad("no-threshold", threshold=0.0)),
        Row("norm of Eq. 4, to the letter", _daad("l2", distance="l2")),
        Row("DAAD+ as it is", DAAD_PLUS, _TABLE_3["DAAD+"][-1]),
        Row("DAAD+, norms of Eq. 4, 6", norm),
    ]


def _daad(name: str, **choices: Any) -> Setting:
    return dataclasses.replace(DAAD, run=f"daad-{name}", choices={**DAAD.choices, **choices})


ABLATIONS = {
    "table3": Ablation("Table 3, networks", _table_3()),
    "table4": Ablation("Table 4, division rates r_h and r_w", _table_4()),
    "table5": Ablation("Table 5, losses and scores", _table_5()),
    "figure7": Ablation("Figure 7, memory size: the paper's N, and the scale's", _figure_7()),
    "open": Ablation("What the paper leaves open", _left_open()),
}
