"""What finished runs came to: one line for each in results.csv."""

import csv
import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from daad.config import PIXEL, Config
from daad.folder import finished, read_settings
from daad.frames import scaled
from daad.io import UserError, read_csv, write_csv
from daad.metrics import image_auroc
from daad.mvtec import table_place
from reproduction.tables import SCORES

SEED = "seed-"  # begins the name of a run's folder
# Columns of scores.csv by what is judged, of photographs and of video.
_PICTURES = {"R": "reconstruction", "L": "alignment", "R + L": "eq7", "peak": "peak"}
_FRAMES = {"R": "score_clip", "R + L": "fused_clip", "global": "score_global"}

Areas = dict[str, float | None]  # AUROC by each of `SCORES`


@dataclass(frozen=True)
class Record:
    """A finished run. Areas are AUROCs, of pictures or of a video's frames, by each of `SCORES`.

    auroc: by both R and L. minutes: of training. The last fields are all choices of the run; `others`
    has those without a column.
    """

    scale: str
    setting: str
    subject: str
    seed: int
    auroc_r: float | None
    auroc_l: float | None
    auroc: float | None
    auroc_peak: float | None
    auroc_global: float | None
    auroc_within: float | None
    pixel_auroc: float | None
    device: str
    minutes: float
    image_size: int
    width: int
    division: str
    num_items: int
    temperature: float
    epochs: int
    batch_size: int
    lr: float
    others: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells runs apart: the folder of the run."""
        return self.scale, self.setting, self.subject, self.seed

    @property
    def order(self) -> tuple[Any, ...]:
        """A sort key."""
        return self.scale, self.setting, table_place(self.subject), self.seed

    def area(self, score: str) -> float | None:
        """Give the AUROC by one of `SCORES`."""
        pictures = (self.auroc_r, self.auroc_l, self.auroc, self.auroc_peak)
        areas = (*pictures, self.auroc_global, self.auroc_within)
        return dict(zip(SCORES, areas, strict=True))[score]


COLUMNS = tuple(field.name for field in dataclasses.fields(Record))
# Fields of a configuration on which no result depends; without memories; without a discriminator.
_SAY_NOTHING = ("evaluate_every", "false_alarms")
# Choices that earlier runs did not have, and what they did; said where a run does otherwise
_AS_EVER = {"fit": "squeeze", "white": None, "patience": 0}
_OF_MEMORIES = ("threshold", "renormalize", "memory_init")
_OF_DISCRIMINATORS = (
    *("lambda_adv", "lambda_ali", "alignment_distance", "gan_loss"),
    *("alignment_trains_discriminator", "feature", "gamma"),
)


def run_folder(out: Path, scale: str, setting: str, subject: str, seed: int) -> Path:
    """Name the folder of a run: OUT/SCALE/SETTING/SUBJECT/seed-SEED."""
    return out / scale / setting / subject / f"{SEED}{seed}"


def is_finished(run: Path, config: Config) -> bool:
    """Say whether `run` came to its end with the settings `config`, and all of it can be read."""
    return _outcome(run, config) is not None


def collect(out: Path, scales: Iterable[str]) -> list[Record]:
    """Read every finished run below `out` that `run_folder` names, whatever its settings."""
    records = []
    for scale in scales:
        for run in (out / scale).glob(f"[!.]*/[!.]*/{SEED}*"):
            setting, subject, seed = run.relative_to(out / scale).parts
            if seed.removeprefix(SEED).isdecimal():
                records += _record(run, scale, setting, subject, int(seed.removeprefix(SEED)))
    return sorted(records, key=lambda record: record.order)


def _record(run: Path, scale: str, setting: str, subject: str, seed: int) -> list[Record]:
    """Read the record of `run`; none where it is not finished."""
    try:
        stored = read_settings(run, "root")
        config = Config.from_dict(stored.get("config"))
        outcome = _outcome(run, config)
    except UserError:
        return []
    if outcome is None:
        return []
    metrics, areas, seconds = outcome
    values: tuple[Any, ...] = (
        *(scale, setting, subject, seed),
        *(areas.get(name) for name in SCORES),
        metrics.get("pixel_auroc_error"),
        stored.get("hardware", {}).get("name", ""),
        round(seconds / 60, 1),
        *choices_of(dataclasses.replace(config, epochs=metrics["epoch"])),
    )
    return [Record(*values)]


def choices_of(config: Config) -> tuple[Any, ...]:
    """Give the last fields of a `Record`; no division and no items where there is no memory."""
    has_memory = bool(config.memory_levels)
    division = PIXEL if config.division == PIXEL else "x".join(map(str, config.division or ()))
    return (
        *(config.image_size, config.width),
        *((division, config.num_items, config.temperature) if has_memory else ("", 0, 1.0)),
        *(config.epochs, config.batch_size, config.lr),
        _others(config, has_memory),
    )


def _others(config: Config, has_memory: bool) -> str:
    """Write `name=value` for all other choices that the run depends on, with spaces between."""
    left_out = {*COLUMNS, *_SAY_NOTHING}
    left_out |= set() if has_memory else set(_OF_MEMORIES)
    left_out |= set() if config.discriminator else set(_OF_DISCRIMINATORS)
    choices = config.to_dict()
    left_out |= {name for name, value in _AS_EVER.items() if choices[name] == value}
    return " ".join(f"{name}={value}" for name, value in choices.items() if name not in left_out)


def _outcome(run: Path, config: Config) -> tuple[dict[str, Any], Areas, float] | None:
    """Read the metrics of `run`, its AUROCs and the seconds of its training.

    None where it has not come to its end with the settings `config`, or some of it is missing or
    damaged. Such a run is evaluated again when its turn comes.
    """
    metrics = finished(run, config, "root")
    if metrics is None:
        return None
    try:
        rows = read_csv(run / "scores.csv")
        counts = metrics["counts"]
        scored = counts.get("frames") or counts["good"] + counts["anomalous"]
        if len(rows) != scored:
            return None  # cut short
        seconds = sum(float(row["seconds"]) for row in read_csv(run / "history.csv"))
        return metrics, _areas(rows), seconds
    except (OSError, IndexError, KeyError, TypeError, ValueError):
        return None


def _areas(rows: Sequence[dict[str, str]]) -> Areas:
    """Compute the AUROCs; without a discriminator L is None, and R + L is R."""
    video = "psnr" in rows[0]
    columns = _FRAMES if video else _PICTURES
    areas = {name: _area(rows, column) for name, column in columns.items()}
    if video:
        areas |= _areas_by_clip(rows)
    if areas["R + L"] is None:
        areas["R + L"] = areas["R"]
    return areas


def _area(rows: Sequence[dict[str, str]], column: str) -> float | None:
    """Compute the AUROC by a column; None where it is blank, or all rows are of one kind."""
    scores = _numbers(rows, column)
    return None if scores is None else image_auroc(scores, _labels(rows))


def _areas_by_clip(frames: Sequence[dict[str, str]]) -> Areas:
    """Compute what has no column of its own: L scaled over each clip, and the mean within clips."""
    names = dict.fromkeys(frame["clip"] for frame in frames)
    clips = [[frame for frame in frames if frame["clip"] == name] for name in names]
    within = [area for clip in clips if (area := _area(clip, "score_clip")) is not None]
    alignment = _numbers(frames, "alignment")
    found: Areas = {"L": None, "within": round(statistics.fmean(within), 6) if within else None}
    if alignment is not None:
        scores = scaled(alignment, [len(clip) for clip in clips], "clip")
        found["L"] = image_auroc(scores, _labels(frames))
    return found


def _numbers(rows: Sequence[dict[str, str]], column: str) -> torch.Tensor | None:
    values = [float(row[column]) for row in rows if row[column]]
    return torch.tensor(values, dtype=torch.float64) if len(values) == len(rows) else None


def _labels(rows: Sequence[dict[str, str]]) -> torch.Tensor:
    return torch.tensor([int(row["label"]) for row in rows])


def write_results(path: Path, records: Iterable[Record]) -> None:
    """Write a line for each record, with blanks for None."""
    write_csv(path, COLUMNS, [dataclasses.astuple(record) for record in records])


def read_results(path: Path) -> list[Record]:
    """Read what `write_results` wrote; UserError for another file."""
    kinds = {field.name: field.type for field in dataclasses.fields(Record)}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        if tuple(header) != COLUMNS:
            raise ValueError("other columns")
        rows = [dict(zip(COLUMNS, line, strict=True)) for line in lines]
        return [
            Record(**{name: _parse(row[name], kinds[name]) for name in COLUMNS}) for row in rows
        ]
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: not the results of reproduce.py as it is now: {error!r}; move it away, and "
            f"what lies in --out is collected again"
        ) from error


def _parse(text: str, kind: Any) -> Any:
    if kind == (float | None):
        return float(text) if text else None
    return kind(text)
