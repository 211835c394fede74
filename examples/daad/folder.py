"""What the folder of a run says of it, and who may write there."""

import dataclasses
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

import blockmem
from daad.config import Config
from daad.io import UserError, alone_at, load_checkpoint, read_json, write_json
from daad.machine import device_name, pick_device
from daad.network import CHECKPOINT
from daad.resuming import require_same_settings, settings_that_differ
from daad.task import Task
from daad.training import is_over

SETTINGS, METRICS = "config.json", "metrics.json"


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Where and how to compute."""

    device: str = "auto"
    """auto, cpu, cuda, or one GPU such as cuda:1."""
    devices: int = 1
    """Devices on each machine, by DDP."""
    num_nodes: int = 1
    """Machines."""
    compile: bool = False
    """Compile the networks: half a minute at the start."""

    @property
    def name(self) -> str:
        """What one of the devices is, such as "NVIDIA H200" or "AMD EPYC, 2 threads"."""
        return device_name(pick_device(self.device))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from the run; UserError where one is at it."""
    try:
        with alone_at(folder):
            yield
    except Timeout as error:
        raise UserError(
            f"{folder}: another process is at this run; wait for its end, or choose another --out"
        ) from error


def say_how_it_goes_on(folder: Path, *, resume: bool) -> None:
    """Say where --resume starts from the beginning, or goes on with other versions of the software."""
    if not resume:
        print(
            f"{folder}: no checkpoint to go on from, so training starts at the beginning",
            file=sys.stderr,
        )
        return
    before = _read(folder / SETTINGS).get("versions")
    changed = [
        f"{name} {before[name]}, now {now}"
        for name, now in _versions().items()
        if isinstance(before, dict) and before.get(name, now) != now
    ]
    if changed:
        print(
            f"{folder}: began with other versions ({'; '.join(changed)}): its results may differ from "
            f"those of a run that was never stopped",
            file=sys.stderr,
        )


def finished(folder: Path, config: Config, part: str) -> dict[str, Any] | None:
    """Read the metrics of a run that came to its end with the settings `config` (resolved).

    part: see `Task`. None where it did not, where it was evaluated with other choices since, and
    where its metrics or settings are damaged.
    """
    try:
        metrics = _read(folder / METRICS)
        differ = settings_that_differ(read_settings(folder, part).get("config"), config)
        choices = (metrics["gamma"], metrics["batch_norm"], metrics["scaling"])
        as_trained = choices == (config.gamma, config.batch_norm, config.scaling)
        evened = metrics.get("even_light", False)  # runs of before do not have it
        trained = metrics["epoch"] >= config.epochs or metrics.get("stopped_early", False)
        whole = trained and as_trained and not evened
    except (KeyError, TypeError, UserError):
        return None
    return metrics if whole and not differ else None


def require_resumable(folder: Path, config: Config, task: Task[Any]) -> None:
    """Raise UserError where training has begun in `folder` with other settings or on other data.

    config: resolved. Data is known by its fingerprint, wherever it lies; runs of before have none.
    """
    if not (folder / CHECKPOINT).exists():
        return
    settings, source = read_settings(folder, task.part), task.source
    require_same_settings(folder / SETTINGS, settings.get("config"), config)
    if settings["data"].get("fingerprint", source["fingerprint"]) != source["fingerprint"]:
        raise UserError(
            f"{folder}: was trained on other data, then in {settings['data']['root']}: its files have "
            f"other names, sizes or contents than those in {source['root']}; give that data, or "
            f"train into a new folder"
        )


def read_settings(folder: Path, part: str) -> dict[str, Any]:
    """Read config.json of a run; UserError where there is no run, or one without `part` (see `Task`)."""
    settings = _read(folder / SETTINGS)
    data = settings.get("data")
    if not isinstance(data, dict) or "root" not in data:
        raise UserError(
            f"{folder}: not the folder of a run: no readable {SETTINGS} in it; give one that train "
            f"made"
        )
    if part not in data:
        raise UserError(
            f"{folder}: a run of another script: its {SETTINGS} names no {part}; "
            f"use the script that trained it"
        )
    return settings


def _read(path: Path) -> dict[str, Any]:
    """Read an object of JSON, empty where there is none that can be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def write_settings(
    folder: Path, config: Config, data: dict[str, str], hardware: Hardware, *, resume: bool = False
) -> None:
    """Write config.json: all that a run was asked for, and by what versions; `data` is its source.

    With `resume` the devices that the run was trained on before are named too, and where nothing is
    left to train it is those alone.
    """
    name, before = hardware.name, _read(folder / SETTINGS).get("hardware") if resume else None
    before = before.get("name", name) if isinstance(before, dict) else name
    if before != name:
        state = load_checkpoint(folder / CHECKPOINT)
        trained = is_over(config, state["epoch"], state.get("history", []))
        name = before if trained or before.endswith(f", then {name}") else f"{before}, then {name}"
    content = {
        "config": config.to_dict(),
        "data": data,
        "hardware": dataclasses.asdict(hardware) | {"name": name},
        "command": sys.argv,
        "versions": _versions(),
    }
    write_json(folder / SETTINGS, content)


def _versions() -> dict[str, str]:
    versions = {"blockmem": blockmem.__version__, "torch": torch.__version__}
    return versions | {"python": platform.python_version()}


def claim_folders(folders: Sequence[Path], *, resume: bool) -> None:
    """Raise UserError where one of the folders exists, unless `resume` is to go on with it."""
    for folder in folders:
        if folder.exists() and not resume:
            raise UserError(
                f"{folder} exists; add --resume to go on with it, or choose another --out"
            )
