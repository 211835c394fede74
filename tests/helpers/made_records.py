"""Records that tests of the page make: runs that never were, trained as the small scale has it."""

from contextlib import suppress
from typing import Any

from daad.config import Config
from daad.io import UserError
from reproduction.records import Record, choices_of
from reproduction.scales import SCALES
from reproduction.tables import DAAD, TABLES

# Division and N of the small scale.
_MEMORIES = {"ae": ("", 0), "ae-skip": ("", 0), "memae": ("pixel", 125)}
_SMALL = {kind: DAAD.config(kind, SCALES["small"], 0) for kind in ("photographs", "mnist", "video")}


def _choices(config: Config) -> dict[str, Any]:
    """What of a configuration a record names, but for its memory."""
    names = ("image_size", "width", "temperature", "epochs", "batch_size", "lr")
    return {name: getattr(config, name) for name in names}


DIGITS = {**_choices(_SMALL["mnist"]), "division": "1x1x1", "num_items": 125}
VIDEO = {**_choices(_SMALL["video"]), "num_items": 500}
PICTURE, PAPER_PICTURE = "reproduction/table4-small.png", "reproduction/table4-paper.png"
NO_MEMORY = {"division": "", "num_items": 0, "temperature": 1.0}


def _others(setting: str, subject: str, scale: str) -> str:
    """The choices without a column that the row has which is judged by such a run."""
    kind = subject.partition("-")[0] if "-" in subject else "photographs"
    kind = "video" if subject in ("ped2", "avenue") else kind
    for table in TABLES.values():
        for row in table.rows:
            if (table.kind, row.setting.run) == (kind, setting) and scale in SCALES:
                with suppress(UserError):  # a division that does not fit
                    return str(choices_of(row.setting.config(kind, SCALES[scale], 0))[-1])
    return ""


def made(setting: str, subject: str, auroc: float, seed: int = 0, **choices: Any) -> Record:
    """A run of photographs with this AUROC by R alone; `choices` are what differs."""
    scale = choices.get("scale", "small")
    division, items = _MEMORIES.get(setting, ("8x8x1", 125))
    fields: dict[str, Any] = {
        **{"scale": "small", "setting": setting, "subject": subject, "seed": seed},
        **{
            "auroc_r": auroc,
            "auroc_l": None,
            "auroc": auroc,
            "auroc_peak": None,
            "auroc_global": None,
            "auroc_within": None,
        },
        **{"pixel_auroc": None, "device": "a processor, 1 thread(s)", "minutes": 4.5},
        **{"division": division, "num_items": items, **_choices(_SMALL["photographs"])},
        "others": _others(setting, subject, scale),
    }
    return Record(**fields | choices)
