"""The page of a run: what it found, in words and pictures, in one file."""

import shlex
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader
from matplotlib import colormaps
from PIL import Image

from daad.config import Config
from daad.findings import Findings, remarks
from daad.io import printable, read_csv, read_json, write_text
from daad.overlay import HEAT, blend, outlined
from daad.pictures import to_bytes
from daad.report import pick_rows
from daad.verdict import ANOMALOUS

FIGURES = {"How the scores lie": ("scores", "roc"), "Training": ("history",)}
ROWS = 5  # pictures in each list of the page
THUMBNAIL = 160  # pixels


@dataclass(frozen=True)
class Shown:
    """A picture in a list of the page; `image` is its overlay, as an address that holds the data."""

    name: str
    defect: str
    score: float
    p: float
    verdict: str
    image: str


@dataclass(frozen=True)
class Rebuilt:
    """A typical picture and what the network makes of it; `images` are addresses by their heading."""

    defect: str
    score: float
    images: Mapping[str, str]


def write_report(
    folder: Path, metrics: Mapping[str, Any], config: Config, found: Findings | None = None
) -> None:
    """Write report.html into a run's folder: one file, with all pictures in it.

    It has the metrics and what they mean, lists of pictures, the figures there are, and how the run
    was made, from its config.json.
    """
    there = {path.stem: path for path in (folder / "figures").glob("*.png")}
    figures = {
        heading: {
            name: _address(there[name].read_bytes(), "png") for name in names if name in there
        }
        for heading, names in FIGURES.items()
    }
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html").render(
        metrics=metrics,
        remarks=remarks(metrics),
        settings=config.to_dict(),
        figures=figures,
        lists={} if found is None else picture_lists(found),
        rebuilt=[] if found is None else typical_pictures(found),
        made=_made(folder),
        folder=shlex.quote(str(folder)),
    )
    write_text(folder / "report.html", page)


def _made(folder: Path) -> dict[str, str]:
    """Say how a run was made: by its config.json and history, as far as they can be read."""
    made = {"written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = read_json(folder / "config.json")
        made["machine"] = str(stored["hardware"]["name"])
        made["versions"] = ", ".join(f"{name} {one}" for name, one in stored["versions"].items())
        made["command"] = shlex.join(["python", *stored["command"]])
    with suppress(OSError, ValueError, KeyError):
        seconds = sum(float(row["seconds"]) for row in read_csv(folder / "history.csv"))
        made["minutes of training"] = f"{seconds / 60:.1f}"
    return made


def picture_lists(found: Findings) -> dict[str, list[Shown]]:
    """Pick the highest scores, the worst false alarms and the misses; nothing without verdicts."""
    if found.reference is None:
        return {}
    order = found.scores.argsort(descending=True).tolist()
    verdicts = found.verdicts()
    flagged = [verdict == ANOMALOUS for _, verdict in verdicts]
    labels = found.labels.tolist()
    alarms = [i for i in order if flagged[i] and not labels[i]]
    misses = [i for i in reversed(order) if not flagged[i] and labels[i]]
    lists = {
        "Most suspicious": order,
        "Worst false alarms: good, and called anomalous": alarms,
        "Worst misses: anomalous, and called normal": misses,
    }
    return {
        heading: [_shown(found, index, *verdicts[index]) for index in members[:ROWS]]
        for heading, members in lists.items()
    }


def typical_pictures(found: Findings) -> list[Rebuilt]:
    """Pick typical pictures, as `pick_rows` says: each beside its reconstruction, error and true defect."""
    rows = pick_rows(found.samples, found.scores)
    errors = found.raw.error_maps[rows].numpy()
    shares = (errors / (float(np.percentile(errors, 99.5)) or 1.0)).clip(0, 1)
    shown = []
    for row, index in enumerate(rows):
        picture = _picture(found, index)
        rebuilt = found.raw.reconstructions[index].permute(1, 2, 0).numpy()
        images = {
            "input": picture,
            "reconstruction": Image.fromarray(rebuilt),
            "squared error": Image.fromarray(colormaps[HEAT](shares[row], bytes=True)[..., :3]),
        }
        mask, known = (one[index] for one in found.truth)
        if found.samples[index].label and known:
            images["true defect"] = outlined(picture, mask.numpy())
        addresses = {name: _thumbnail(image) for name, image in images.items()}
        defect, score = found.samples[index].defect, found.scores[index].item()
        shown.append(Rebuilt(defect, score, addresses))
    return shown


def _picture(found: Findings, index: int) -> Image.Image:
    x = found.pictures.batch(torch.tensor([index]), "cpu")[0]
    return Image.fromarray(to_bytes(x).permute(1, 2, 0).numpy())


def _thumbnail(image: Image.Image) -> str:
    data = BytesIO()
    image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC).save(data, "JPEG", quality=88)
    return _address(data.getvalue(), "jpeg")


def _shown(found: Findings, index: int, p: float, verdict: str) -> Shown:
    sample, score = found.samples[index], found.scores[index].item()
    picture = _picture(found, index).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    assert found.threshold is not None, "no threshold"
    address = _thumbnail(blend(picture, found.maps[index], found.threshold.value))
    return Shown(printable(sample.name), sample.defect, score, p, verdict, address)


def _address(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"
