"""A run from pictures to report, in a folder of its own: train, scale, evaluate."""

import dataclasses
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import blockmem
from daad.batches import Pictures
from daad.checkpoint import (
    CHECKPOINT,
    checkpoint_to_resume,
    load_checkpoint,
    require_same_settings,
    settings_that_differ,
)
from daad.config import Config
from daad.data import Category, load_category, load_masks
from daad.devices import device_name, is_first_process, pick_device
from daad.errors import UserError
from daad.evaluation import METRICS, evaluate, fit_scale
from daad.files import write_json
from daad.model import Discriminator, Generator
from daad.scoring import Scale, fuse, image_auroc, score_pictures
from daad.training import Scorer, train

SETTINGS = "config.json"


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


def run_category(
    config: Config,
    category: Category,
    run: Path,
    hardware: Hardware,
    *,
    resume: bool = False,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Train on a category's normal pictures and evaluate on its test set; returns the metrics.

    The folder `run` is made: config.json, history.csv, checkpoint.ckpt, scores.csv, metrics.json,
    report.html and figures/. UserError where it exists, unless `resume` is to go on with it.
    OutOfTime where training was not done at the `deadline`; see `train`.
    """
    config = config.resolve()
    device = pick_device(hardware.device)
    if is_first_process():
        claim_folders([run], resume=resume)
    learned, held_out = split_normals(category, config.held_out)
    pictures = category.pictures(learned, config.image_size)
    tested = category.pictures(category.test, config.image_size)
    load_masks(category.test, config.image_size)  # a broken mask should not wait for the last epoch
    resume = resume and (run / CHECKPOINT).exists()
    if resume:
        checkpoint_to_resume(run / CHECKPOINT, config)
        require_same_data(run, category.source)
    if is_first_process():  # nothing is written before all that can be checked is
        write_settings(run, config, category.source, hardware, resume=resume)
    train(
        config,
        pictures,
        run,
        **dataclasses.asdict(hardware),
        resume=resume,
        scorer=_scorer(config, category, tested) if config.evaluate_every else None,
        deadline=deadline,
    )
    if held_out:
        pictures = category.pictures(held_out, config.image_size)
    fit_scale(run, pictures, "held-out" if held_out else "train", device)
    return evaluate(run, category, device, tested)


def finished(run: Path, config: Config, subject: str) -> dict[str, Any] | None:
    """The metrics in `run` where it came to its end with the settings `config` (resolved).

    subject: see `read_settings`. None as well where it was evaluated with other choices since, and
    where its metrics or settings are damaged.
    """
    try:
        metrics: dict[str, Any] = json.loads((run / METRICS).read_text(encoding="utf-8"))
        differ = settings_that_differ(read_settings(run, subject).get("config"), config)
        choices = (metrics["gamma"], metrics["batch_norm"], metrics["scaling"] == "test")
        as_trained = choices == (config.gamma, config.batch_norm, config.scaling == "test")
        evened = metrics.get("even_light", False)  # videos, and runs of before, do not have it
        whole = metrics["epoch"] >= config.epochs and as_trained and not evened
    except (OSError, KeyError, TypeError, ValueError, UserError):
        return None
    return metrics if whole and not differ else None


def require_resumable(run: Path, config: Config, subject: str, source: Mapping[str, str]) -> None:
    """UserError where training has begun in `run` with other settings or on other data.

    config: resolved. subject: see `read_settings`. source: see `require_same_data`.
    """
    if (run / CHECKPOINT).exists():
        stored = read_settings(run, subject).get("config")
        require_same_settings(run / SETTINGS, stored, config)
        require_same_data(run, source)


def require_same_data(run: Path, source: Mapping[str, str]) -> None:
    """UserError where training has begun in `run` on other data than that of `source`.

    Wherever it lies: what is compared is the fingerprint, which runs of before do not have.
    """
    try:
        data = json.loads((run / SETTINGS).read_text(encoding="utf-8"))["data"]
        before = data["fingerprint"]
    except (OSError, KeyError, TypeError, ValueError):
        return
    if before != source["fingerprint"]:
        raise UserError(
            f"{run}: was trained on other data, then in {data.get('root')}: its files have other "
            f"names, sizes or contents than those in {source['root']}; give that data, or "
            f"train into a new folder"
        )


def evaluate_run(
    run: Path, device: str, root: Path | None = None, **choices: Any
) -> dict[str, Any]:
    """Evaluate a trained run again, on the category it was trained on.

    `root` where its data has moved to; `choices` as for `evaluate`.
    """
    settings = read_settings(run, "category")["data"]
    category = load_category(root or Path(settings["root"]), settings["category"])
    return evaluate(run, category, pick_device(device), **choices)


def read_settings(run: Path, subject: str) -> dict[str, Any]:
    """What config.json of a run says; UserError where there is no run.

    subject: what a script's runs are about beside the root of their data: "category" of
    photographs, "class" of a labelled set or "labels" of a video.
    UserError too where the run is of another script.
    """
    path = run / SETTINGS
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = settings["data"].keys() >= {"root"}
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise UserError(
            f"{run}: not the folder of a run: no readable {SETTINGS} in it; give one that train made"
        )
    if subject not in settings["data"]:
        raise UserError(
            f"{run}: a run of another script: its {SETTINGS} names no {subject}; "
            f"use the script that trained it"
        )
    return settings


def write_settings(
    run: Path, config: Config, data: dict[str, str], hardware: Hardware, *, resume: bool = False
) -> None:
    """Write config.json: all that the run `run` was asked for, and by what versions.

    data: where its data is, and what `read_settings` is to find. With `resume` the devices that the
    run was trained on before are named too, and where nothing is left to train it is those alone.
    """
    name, before = hardware.name, _device_before(run) if resume else ""
    if before and before != name:
        trained = load_checkpoint(run / CHECKPOINT)["epoch"] >= config.epochs
        name = before if trained or before.endswith(f", then {name}") else f"{before}, then {name}"
    content = {
        "config": config.to_dict(),
        "data": data,
        "hardware": dataclasses.asdict(hardware) | {"name": name},
        "command": sys.argv,
        "versions": {
            "blockmem": blockmem.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    write_json(run / SETTINGS, content)


def _device_before(run: Path) -> str:
    """What config.json names; nothing where it cannot be read."""
    try:
        settings = json.loads((run / SETTINGS).read_text(encoding="utf-8"))
        return str(settings["hardware"]["name"])
    except (OSError, KeyError, TypeError, ValueError):
        return ""


def split_normals(category: Category, share: float) -> tuple[list[Any], list[Any]]:
    """The normal training pictures to learn from, and the `share` of them that is kept back.

    Kept are pictures at even distances, so that a folder in order of time is covered.
    """
    count = len(category.train)
    kept = {int((i + 0.5) / share) for i in range(int(count * share))} if share else set()
    if share and not kept:
        raise UserError(
            f"--held-out {share:g}: keeps none of {count} pictures; give at least {1 / count:.2g}"
        )
    learned = [sample for i, sample in enumerate(category.train) if i not in kept]
    return learned, [category.train[i] for i in sorted(kept)]


def claim_folders(runs: Sequence[Path], *, resume: bool) -> None:
    """UserError where one of the folders exists, unless `resume` is to go on with it."""
    for run in runs:
        if run.exists() and not resume:
            raise UserError(f"{run} exists; add --resume to go on with it, or choose another --out")


def _scorer(config: Config, category: Category, pictures: Pictures) -> Scorer:
    labels = torch.tensor([sample.label for sample in category.test], dtype=torch.bool)

    def score(generator: Generator, discriminator: Discriminator | None) -> float:
        device = next(generator.parameters()).device
        raw = score_pictures(generator, discriminator, pictures, config, device)
        auroc = image_auroc(fuse(raw, Scale.of(raw, "test"), config.gamma), labels)
        assert auroc is not None  # a category has both classes in its test set
        return auroc

    return score
