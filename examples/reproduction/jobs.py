"""Runs for the paper's tables: what is to be trained on which data, and its training."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from rich.console import Console

from daad.classes import load_labelled, one_class
from daad.config import Config
from daad.folder import Hardware, require_resumable
from daad.io import OutOfTime, UserError, alone_at
from daad.machine import available_memory
from daad.mvtec import Category, list_categories, load_category
from daad.network import CHECKPOINT, Networks
from daad.run import run
from daad.task import Task
from daad.training import keep_weights
from daad.video import load_video
from reproduction.records import is_finished, run_folder
from reproduction.scales import Scale, Setting, memory_parameters, training_bytes
from reproduction.tables import Table

LARGE = 100e6  # parameters in memories, from which on they are announced
# Folders in which a set is looked for, before the one that is given itself.
PLACES = {"mnist": ("mnist", "MNIST"), "cifar10": ("cifar10", "cifar-10-batches-py")}


# The data there is


@dataclass(frozen=True)
class Collection:
    """The data sets in the folder `data`: mvtec/CATEGORY, mnist, cifar-10-batches-py, and videos.

    root: a folder of categories in place of all that, with data of one's own.
    """

    data: Path | None
    root: Path | None = None

    @cached_property
    def categories(self) -> dict[str, Category | UserError]:
        """Those in MVTec layout by name, in the order of Table 1, or what is wrong with one.

        UserError where there is none.
        """
        root = self.root or self._folder("mvtec")
        return {name: _load(root, name) for name in list_categories(root)}

    def tasks(self, table: Table, categories: Sequence[str] | None = None) -> list[Task[Any]]:
        """Load what the figures of `table` are means over; UserError where it is not there.

        categories: those that count where the table is about photographs; all if not given. A
        category that cannot be used is passed over; UserError where that leaves none.
        """
        if table.kind == "photographs":
            found = [self.categories[name] for name in categories or self.categories]
            usable: list[Task[Any]] = [one for one in found if not isinstance(one, UserError)]
            if not usable:
                raise self.unusable(categories)[0]
            return usable
        if table.kind == "video":
            return [load_video(self._folder(name)) for name in table.subjects]
        places = [self._folder(place) for place in PLACES[table.kind]]
        there = next((place for place in places if place.is_dir()), self._folder(""))
        classes = load_labelled(table.kind, there)
        names = [subject.removeprefix(f"{table.kind}-") for subject in table.subjects]
        return [one_class(classes, name) for name in names]

    def has(self, table: Table) -> bool:
        """Say whether there is a folder for what `table` is about, whatever is in it."""
        if table.kind == "photographs":
            return self.root is not None or self._folder("mvtec").is_dir()
        names = table.subjects if table.kind == "video" else PLACES[table.kind]
        return any(self._folder(name).is_dir() for name in names)

    def unusable(self, categories: Sequence[str] | None = None) -> list[UserError]:
        """Give what is wrong with the categories that `tasks` passes over."""
        found = [self.categories[name] for name in categories or self.categories]
        return [one for one in found if isinstance(one, UserError)]

    def _folder(self, name: str) -> Path:
        if self.data is None:
            raise UserError(f"--root {self.root}: holds photographs alone; give --data for others")
        return self.data / name


def _load(root: Path, name: str) -> Category | UserError:
    try:
        found = load_category(root, name)
    except UserError as error:
        return error
    if {sample.label for sample in found.test} != {0, 1}:
        return UserError(
            f"{root / name / 'test'}: the paper's figures need good and anomalous pictures in it; put "
            f"them into good and into a folder a defect"
        )
    return found


# Jobs


@dataclass(frozen=True)
class Job:
    """A setting to be trained on a task with a seed, in `folder`."""

    setting: Setting
    task: Task[Any]
    seed: int
    config: Config
    folder: Path

    def __str__(self) -> str:
        return f"{self.setting.run}, {subject_of(self.task)}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        return is_finished(self.folder, self.config)

    @property
    def weights(self) -> int:
        """Bytes of the networks' weights: all that a finished run leaves, but for its pictures."""
        with torch.device("meta"):
            networks = Networks.build(self.config)
        return sum(4 * p.numel() for network in networks.modules for p in network.parameters())


# Trains a job on some hardware until it is finished, or raises OutOfTime at the deadline
Train = Callable[[Job, Hardware, float | None], None]


def train(job: Job, hardware: Hardware, deadline: float | None) -> None:
    """Train and evaluate, going on with what has begun; OutOfTime at the deadline.

    Of a finished run only the weights are kept, without what more training would need.
    """
    run(job.config, job.task, job.folder, hardware, resume=job.folder.exists(), deadline=deadline)
    keep_weights(job.folder / CHECKPOINT)


def subject_of(task: Task[Any]) -> str:
    """Name the folder of a task's runs: a category's or video's name, `mnist-3` for a class."""
    return task.name.replace(" ", "-")


def plan(
    out: Path, scale: Scale, settings: Sequence[Setting], tasks: Sequence[Task[Any]], seed: int
) -> list[Job]:
    """Make a job for each setting and task."""
    jobs = []
    for setting in settings:
        for task in tasks:
            config = setting.config(task.kind, scale, seed)
            folder = run_folder(out, scale.name, setting.run, subject_of(task), seed)
            jobs.append(Job(setting, task, seed, config, folder))
    return jobs


def missing_jobs(
    jobs: Sequence[Job], console: Console, known: AbstractSet[Path] = frozenset()
) -> list[Job]:
    """Pick those that are not finished, each once, before hours go into the first.

    known: folders of runs that were finished elsewhere, whose results are there without them.
    UserError where a run has begun with other settings, or was trained on other data.
    """
    unique = list({job.folder: job for job in jobs}.values())
    missing = [job for job in unique if not (job.folder in known or job.finished)]
    for job in unique:
        if job.folder.exists() and job.folder not in known:
            _require_resumable(job)
    console.print(f"{len(unique)} runs: {len(unique) - len(missing)} finished before, kept")
    return missing


def _require_resumable(job: Job) -> None:
    try:
        require_resumable(job.folder, job.config, job.task)
    except UserError as error:
        raise UserError(f"{error}: move {job.folder} away, or give another --out") from error


def too_large(jobs: Sequence[Job], device: torch.device, console: Console) -> dict[str, str]:
    """Announce large memories, and say which do not fit `device`: in words, by the setting's name."""
    refused = {}
    for job in {job.setting.run: job for job in jobs}.values():
        parameters, needed = memory_parameters(job.config), training_bytes(job.config)
        if parameters < LARGE:
            continue
        text = (
            f"{job.setting.run}: {parameters / 1e6:.0f} M memory parameters, in training "
            f"{needed / 1e9:.1f} GB with their gradients and Adam's two moments"
        )
        console.print(text)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
        if needed > free:
            refused[job.setting.run] = f"{text}, and {free / 1e9:.1f} GB are free on {device}"
    return refused


def say_if_little_room(jobs: Sequence[Job], out: Path, console: Console) -> None:
    """Warn where the disk of `out` has no room for the checkpoints of the jobs.

    While a run trains, two of its checkpoints are there, with Adam's two moments of each weight.
    """
    if not jobs:
        return
    sizes = {(job.setting.run, job.task.kind): job for job in jobs}  # the same for every seed
    sizes_of = {key: job.weights for key, job in sizes.items()}
    weights = [sizes_of[job.setting.run, job.task.kind] for job in jobs]
    needed = sum(weights) + 5 * max(weights)
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        console.print(
            f"Little room: checkpoints of {len(jobs)} runs take up to {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free in {place}; give an --out on a larger disk",
            soft_wrap=True,
        )


def execute(
    jobs: Sequence[Job],
    hardware: Hardware,
    console: Console,
    failed: list[Job],
    deadline: float | None = None,
    train: Train = train,
) -> Iterator[Job]:
    """Run the jobs in turn, giving each when it is finished, until the deadline if there is one.

    deadline: a time of `time.monotonic()`. A run that it stops has a checkpoint and goes on next time.
    A job that fails is printed and put into `failed`; the others still have their turn. A job that
    another process is at is left to it, so that several calls share the work.
    """
    for number, job in enumerate(jobs, 1):
        if deadline is not None and time.monotonic() >= deadline:
            console.print(f"Out of time: {len(jobs) - number + 1} run(s) have not begun")
            break
        console.print(f"[bold]{job}[/bold]: {number} of {len(jobs)} to run")
        try:
            with alone_at(job.folder):
                if not job.finished:  # by another process, since this one looked
                    train(job, hardware, deadline)
        except Timeout:
            console.print(f"{job}: left to another process, which is at it")
        except OutOfTime:
            console.print(f"{job}: stopped before its last epoch, out of time; it can go on")
        except (UserError, torch.OutOfMemoryError) as error:
            console.print(f"{job}: failed: {error}")
            failed.append(job)
        else:
            yield job


def require_one_process() -> None:
    """Raise UserError under torchrun, whose processes would all train the same run."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "started by torchrun, whose processes work together; here each trains runs of its own: "
            "start the script itself, several times if you like, and they share the work"
        )


def require_none(failed: Sequence[Job]) -> None:
    """Raise a UserError that names the jobs in `failed`, if there are any."""
    if failed:
        names = "; ".join(map(str, failed))
        raise UserError(f"{len(failed)} run(s) failed, see above: {names}")
