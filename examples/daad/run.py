"""A run, from pictures to a report, in a folder of its own: train, scale, evaluate; and put to use."""

import dataclasses
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

import blockmem
from daad import pictures, report
from daad.config import Config, require_same_settings, settings_that_differ
from daad.findings import untested
from daad.io import UserError, load_checkpoint, read_json, save_checkpoint, write_json
from daad.machine import device_name, is_first_process, pick_device
from daad.network import CHECKPOINT, Networks, load_networks
from daad.pictures import Normals, Pictures
from daad.training import checkpoint_to_resume, train
from daad.verdict import Reference

SETTINGS, METRICS = "config.json", "metrics.json"
# In a checkpoint: of pictures as they are, and made equally bright
REFERENCES = ("reference", "reference_even")


class Judgement(Protocol):
    """What a scored test set says: the AUROC by which epochs are compared, and all of metrics.json."""

    @property
    def auroc(self) -> float | None: ...
    def metrics(self) -> dict[str, Any]: ...


Found = TypeVar("Found", bound=Judgement)


class Task(Protocol[Found]):
    """What a run learns and is judged on: photographs, a class of a labelled set, or a video.

    name, kind: a word for it, such as `mnist 3`, and the kind of data, a key of `config.KINDS`.
    subject: what metrics.json calls it: "category" or "video".
    area: what its AUROC is of: "image_auroc" or "frame_auroc".
    source: where its data is ("root"), a "fingerprint" to know it by, and by the key `part` which
    part of the data it is.
    has_reference: whether scores go by what the checkpoint knows of normal pictures.
    judge: scores the test pictures; `reference` is None during training.
    write: writes what is to be read and looked at into a run's folder.
    """

    subject: ClassVar[str]
    area: ClassVar[str]
    part: ClassVar[str]
    has_reference: ClassVar[bool]

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def source(self) -> dict[str, str]: ...
    def normal_pictures(self, config: Config) -> Normals: ...
    def test_pictures(self, config: Config) -> Pictures: ...
    def judge(
        self,
        networks: Networks,
        pictures: Pictures,
        config: Config,
        reference: Reference | None = None,
    ) -> Found: ...
    def write(
        self, folder: Path, found: Found | None, metrics: Mapping[str, Any], config: Config
    ) -> None: ...


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Where to compute: `auto`, `cpu`, `cuda` or `cuda:1`; how many devices on how many machines."""

    device: str = "auto"
    devices: int = 1
    num_nodes: int = 1

    @property
    def name(self) -> str:
        """What one of the devices is, such as "NVIDIA H200" or "AMD EPYC, 2 threads"."""
        return device_name(pick_device(self.device))


def run(
    config: Config,
    task: Task[Any],
    folder: Path,
    hardware: Hardware,
    *,
    resume: bool = False,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Train on the normal pictures of `task` and evaluate on its test pictures; return the metrics.

    The folder is made: config.json, history.csv, checkpoint.ckpt, metrics.json, figures/history.png
    and what the task writes. UserError where it exists, unless `resume` is to go on with it.
    OutOfTime where training was not done at the `deadline`; see `train`.
    """
    config = config.resolve(task.kind)
    device = pick_device(hardware.device)
    if is_first_process():
        claim_folders([folder], resume=resume)
    resume = resume and (folder / CHECKPOINT).exists()
    if resume:
        checkpoint_to_resume(folder / CHECKPOINT, config)
        require_resumable(folder, config, task)
    normals = task.normal_pictures(config)
    tested = task.test_pictures(config)
    if is_first_process():  # nothing is written before all that can be checked is
        write_settings(folder, config, task.source, hardware, resume=resume)
    train(
        config,
        normals.learned,
        folder,
        **dataclasses.asdict(hardware),
        resume=resume,
        scorer=lambda networks: task.judge(networks, tested, config).auroc,
        deadline=deadline,
    )
    fit_reference(folder, task, device, normals)
    return evaluate(folder, task, device, tested)


def evaluate(
    folder: Path,
    task: Task[Any],
    device: torch.device,
    tested: Pictures | None = None,
    *,
    even_light: bool = False,
    **choices: Any,
) -> dict[str, Any]:
    """Score the test pictures of `task` with the checkpoint in `folder`, and write what was found.

    Into `folder` go metrics.json, which is returned too, and what the task writes. UserError where the
    checkpoint does not know the normal pictures that scores go by.
    tested: the test pictures, where they have been decoded already.
    even_light: make them as bright as the normal ones are on average, where brightness tells good
    from anomalous before any network does.
    choices: fields of `Config` that only matter here (gamma, scaling, batch_norm, false_alarms).
    """
    config, networks, state = load_networks(folder, device)
    config = dataclasses.replace(config, **choices).resolve(task.kind)
    reference = None
    if task.has_reference:
        reference = stored_reference(folder, state, config, even_light=even_light)
    tested = task.test_pictures(config) if tested is None else tested
    if even_light:
        tested = pictures.EvenLight(tested, state["brightness"])
    found = task.judge(networks, tested, config, reference) if len(tested) else None
    history = state.get("history", [])
    metrics = {
        **{"variant": config.variant, task.subject: task.name, "epoch": state["epoch"]},
        "scaling": config.scaling,
        **{"gamma": config.gamma, "batch_norm": config.batch_norm, "even_light": even_light},
        **(found.metrics() if found else untested(reference, config.false_alarms)),
        **oracle(history, task.area),
    }
    write_json(folder / METRICS, metrics)
    if history:
        report.save_figure(folder / "figures" / "history.png", report.losses_by_epoch(history))
    task.write(folder, found, metrics, config)
    return metrics


def stored_reference(
    folder: Path, state: Mapping[str, Any], config: Config, *, even_light: bool = False
) -> Reference:
    """Read what the checkpoint in `folder` knows of normal pictures; UserError as `from_state` says."""
    stored = state.get(REFERENCES[even_light])
    return Reference.from_state(stored, folder / CHECKPOINT, config.image_size)


def fit_reference(
    folder: Path, task: Task[Any], device: torch.device, normals: Normals | None = None
) -> None:
    """Store in the checkpoint what it is to know of normal pictures, where the task has any for that."""
    config, networks, state = load_networks(folder, device)
    normals = normals or task.normal_pictures(config)
    if normals.measured is None:
        return
    target = pictures.mean_brightness(normals.learned)
    evened = Normals(
        pictures.EvenLight(normals.learned, target),
        pictures.EvenLight(normals.measured, target),
        normals.source,
    )
    known: dict[str, Any] = {"brightness": target}
    for name, shown in zip(REFERENCES, (normals, evened), strict=True):
        known[name] = Reference.of(networks, shown, config).to_state()
    save_checkpoint(folder / CHECKPOINT, state | known)


def oracle(history: Sequence[Mapping[str, Any]], area: str) -> dict[str, Any]:
    """Give the best of the epochs that were scored during training: an upper bound, not a result."""
    scored = [entry for entry in history if entry["auroc"] is not None]
    if not scored:
        return {}
    best = max(scored, key=lambda entry: entry["auroc"])
    note = "the best epoch, chosen on the test set"
    return {f"oracle_{area}": best["auroc"], "oracle_epoch": best["epoch"], "oracle_note": note}


# What a run's folder says of it


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
        whole = metrics["epoch"] >= config.epochs and as_trained and not evened
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
        trained = load_checkpoint(folder / CHECKPOINT)["epoch"] >= config.epochs
        name = before if trained or before.endswith(f", then {name}") else f"{before}, then {name}"
    versions = {"blockmem": blockmem.__version__, "torch": torch.__version__}
    content = {
        "config": config.to_dict(),
        "data": data,
        "hardware": dataclasses.asdict(hardware) | {"name": name},
        "command": sys.argv,
        "versions": versions | {"python": platform.python_version()},
    }
    write_json(folder / SETTINGS, content)


def claim_folders(folders: Sequence[Path], *, resume: bool) -> None:
    """Raise UserError where one of the folders exists, unless `resume` is to go on with it."""
    for folder in folders:
        if folder.exists() and not resume:
            raise UserError(
                f"{folder} exists; add --resume to go on with it, or choose another --out"
            )
