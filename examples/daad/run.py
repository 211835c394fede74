"""A run, from pictures to a report, in a folder of its own: train, measure normal pictures, evaluate."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from daad import pictures, report
from daad.config import Config
from daad.findings import untested
from daad.folder import (
    METRICS,
    Hardware,
    alone,
    claim_folders,
    require_resumable,
    say_how_it_goes_on,
    write_settings,
)
from daad.io import clear_strays, save_checkpoint, write_json
from daad.machine import is_first_process, pick_device
from daad.maps import write_maps
from daad.network import CHECKPOINT, load_networks
from daad.pictures import Normals, Pictures
from daad.task import Task
from daad.training import checkpoint_to_resume, stopped_early, train
from daad.verdict import Reference

# In a checkpoint: of pictures as they are, and made equally bright
REFERENCES = ("reference", "reference_even")


def run(
    config: Config,
    task: Task[Any],
    folder: Path,
    hardware: Hardware,
    *,
    resume: bool = False,
    deadline: float | None = None,
    tensorboard: bool = False,
    advice: str = "",
) -> dict[str, Any]:
    """Train on the normal pictures of `task` and evaluate on its test pictures; return the metrics.

    The folder is made: config.json, history.csv, checkpoint.ckpt, metrics.json, figures/history.png
    and what the task writes. UserError where it exists, unless `resume` is to go on with it, and
    where another process is at it. tensorboard: see `train`. advice: is said where training will take hours.
    OutOfTime where training was not done at the `deadline`; see `train`.
    """
    config = task.completed(config.resolve(task.kind))
    device = pick_device(hardware.device)
    if is_first_process():
        claim_folders([folder], resume=resume)
    asked, resume = resume, resume and (folder / CHECKPOINT).exists()
    if resume:
        checkpoint_to_resume(folder / CHECKPOINT, config)
        require_resumable(folder, config, task)
    normals = task.normal_pictures(config)
    tested = task.test_pictures(config)
    with ExitStack() as stack:
        if is_first_process():  # nothing is written before all that can be checked is
            stack.enter_context(alone(folder))
            claim_folders([folder], resume=asked)
            clear_strays(folder)
            if asked:
                say_how_it_goes_on(folder, resume=resume)
            write_settings(folder, config, task.source, hardware, resume=resume)
        train(
            config,
            normals.learned,
            folder,
            **dataclasses.asdict(hardware),
            resume=resume,
            held_out=normals.measured if normals.source == "held-out" else None,
            scorer=lambda networks: task.judge(networks, tested, config).auroc,
            deadline=deadline,
            tensorboard=tensorboard,
            advice=advice,
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
    maps: Path | None = None,
    **choices: Any,
) -> dict[str, Any]:
    """Score the test pictures of `task` with the checkpoint in `folder`, and write what was found.

    Into `folder` go metrics.json, which is returned too, and what the task writes. UserError where the
    checkpoint does not know the normal pictures that scores go by.
    tested: the test pictures, where they have been decoded already.
    even_light: make them as bright as the normal ones are on average, where brightness tells good
    from anomalous before any network does.
    maps: a folder for the standardised maps; see `write_maps`.
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
    if maps is not None:
        write_maps(maps, task.name, found)
    history = state.get("history", [])
    metrics = {
        **{"variant": config.variant, task.subject: task.name, "epoch": state["epoch"]},
        "stopped_early": stopped_early(config, history),
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
