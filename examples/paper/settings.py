"""What is trained for the paper's results: choices beside those of a scale and a kind of data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daad.config import Config, items_at_paper_ratio
from daad.errors import UserError
from daad.oneclass import IMAGE_SIZE, OWN_DIVISION, OWN_FLIPS
from daad.video_runs import DIVISION, VIDEO

# By kind of data, what is set otherwise than for photographs in MVTec layout.
OWN: dict[str, dict[str, Any]] = {
    "photographs": {},
    "mnist": {"image_size": IMAGE_SIZE, "division": OWN_DIVISION, "flips": OWN_FLIPS["mnist"]},
    "cifar10": {"image_size": IMAGE_SIZE, "division": OWN_DIVISION, "flips": OWN_FLIPS["cifar10"]},
    "video": {"division": DIVISION, **VIDEO},
}
# A tenth of the paper's steps at ten times its learning rate, which must then come to rest.
_SMALL = {"width": 16, "lr": 1e-3, "schedule": "cosine", "checkpoint_every": 5}
# What the scales set otherwise than the paper, by kind of data. `small` fits two cores: five to
# twelve minutes a run on one of them; `small-256` has the paper's size of pictures, and half the width.
SCALES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "photographs": {},
        "mnist": {"epochs": 40, "checkpoint_every": 5},
        "cifar10": {"epochs": 40, "checkpoint_every": 5},
        "video": {},
    },
    "small": {
        # N and the first items were chosen on bottle: docs/reproduction.md, Table 3.
        "photographs": {
            **{"image_size": 128, "epochs": 40, "batch_size": 4, **_SMALL},
            **{"num_items": 125, "memory_init": "blocks"},
        },
        "mnist": {"epochs": 5, "batch_size": 16, "temperature": 0.1, **_SMALL},
        "cifar10": {"epochs": 5, "batch_size": 16, "temperature": 0.1, **_SMALL},
        # D/N is 2 at the first level, as in the paper with 16,16,1 and N 2000.
        "video": {
            **{"image_size": 128, "division": (8, 8, 1), "epochs": 5, **_SMALL},
            **{"num_items": 500, "memory_init": "blocks"},
        },
    },
}
# Photographs alone, where every division of Table 4 fits: 16,16,1 wants a last map of 16x16.
SCALES["small-256"] = {
    "photographs": {**SCALES["small"]["photographs"], "image_size": 256, "width": 8}
}
# Photographs alone, for textures such as grid, of which 40 epochs teach little: 15 to 20 minutes.
SCALES["small-120"] = {"photographs": {**SCALES["small"]["photographs"], "epochs": 120}}
SCALE_HELP = (
    f"paper: its settings, a GPU's work; {', '.join(name for name in SCALES if name != 'paper')}: "
    "for two cores, not them."
)


def check_scale(scale: str) -> None:
    """UserError where `scale` is none of `SCALES`."""
    if scale not in SCALES:
        raise UserError(f"--scale {scale}: choose one of {', '.join(SCALES)}")


@dataclass(frozen=True)
class Setting:
    """What is trained, in a folder named `run`: fields of `Config` beside those of the scale.

    items: N, in multiples of the scale's.
    """

    run: str
    choices: Mapping[str, Any]
    items: float = 1

    def config(self, kind: str, scale: str, seed: int) -> Config:
        """The resolved configuration for a kind of data at a scale.

        N is the scale's, or keeps the paper's D/N at the scale's own division; it stays when a row
        divides otherwise. UserError where the division does not fit the scale, or the scale has no
        such data.
        """
        if kind not in SCALES[scale]:
            raise UserError(f"scale {scale} is for {', '.join(SCALES[scale])} alone")
        chosen = OWN[kind] | SCALES[scale][kind]
        if self.choices["variant"] not in ("daad", "daad+"):
            chosen.pop("num_items", None)
        if self.choices["variant"].startswith("memae"):
            chosen.pop("division", None)  # by pixels
        if self.choices["variant"].startswith("ae"):
            chosen.pop("memory_init", None)
        plain = Config(**chosen, variant=self.choices["variant"]).resolve()
        items = chosen.get("num_items") or items_at_paper_ratio(plain)
        chosen["num_items"] = max(1, round(items * self.items))
        return Config(**chosen | dict(self.choices) | {"seed": seed}).resolve()
