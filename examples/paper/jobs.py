"""Runs for the paper's tables: what is to be trained on which data, and its training."""

import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from torch import nn

from daad.checkpoint import CHECKPOINT, keep_weights
from daad.config import Config
from daad.data import Category, available_memory
from daad.errors import OutOfTime, UserError
from daad.model import Discriminator, Generator
from daad.oneclass import OneClass
from daad.runs import Hardware, require_resumable, run_category
from daad.video import Video
from daad.video_runs import run_video
from paper.records import is_finished, run_folder
from paper.settings import Setting
from paper.tables import memory_parameters, training_bytes

LARGE = 100e6  # parameters in memories, from which on they are announced

Subject = Category | Video


@dataclass(frozen=True)
class Job:
    """A setting to be trained on a subject with a seed, in the folder `run`."""

    setting: Setting
    subject: Subject
    seed: int
    config: Config
    run: Path

    def __str__(self) -> str:
        return f"{self.setting.run}, {subject_name(self.subject)}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        return is_finished(self.run, self.config)

    def execute(self, hardware: Hardware, deadline: float | None) -> None:
        """Train and evaluate, going on with what has begun; OutOfTime at the deadline.

        Of what is finished the weights are kept, and not what training on would need.
        """
        choices = {"resume": True, "deadline": deadline}
        if isinstance(self.subject, Video):
            run_video(self.config, self.subject, self.run, hardware, **choices)
        else:
            run_category(self.config, self.subject, self.run, hardware, **choices)
        keep_weights(self.run / CHECKPOINT)

    @property
    def weights(self) -> int:
        """Bytes of the networks' weights: all that a finished run leaves, but for its pictures."""
        with torch.device("meta"):
            networks: list[nn.Module] = [Generator(self.config)]
            networks += [Discriminator(self.config)] if self.config.discriminator else []
        return sum(4 * p.numel() for network in networks for p in network.parameters())


def subject_name(subject: Subject) -> str:
    """A category's or video's name, `mnist-3` for a class: the name of its folder of runs."""
    return subject.name.replace(" ", "-")


def kind_of(subject: Subject) -> str:
    """The kind of data, a key of `settings.OWN`."""
    if isinstance(subject, Video):
        return "video"
    return subject.dataset.name if isinstance(subject, OneClass) else "photographs"


def plan(
    out: Path,
    scale: str,
    settings: Sequence[Setting],
    subjects: Sequence[Subject],
    seeds: Sequence[int],
) -> list[Job]:
    """A job for each setting, subject and seed; a seed at a time, so that tables fill up early."""
    jobs = []
    for seed in seeds:
        for setting in settings:
            for subject in subjects:
                config = setting.config(kind_of(subject), scale, seed)
                run = run_folder(out, scale, setting.run, subject_name(subject), seed)
                jobs.append(Job(setting, subject, seed, config, run))
    return jobs


def missing_jobs(
    jobs: Sequence[Job], console: Console, known: Collection[Path] = frozenset()
) -> list[Job]:
    """Those that are not finished, each once; all are looked at before hours go into the first.

    known: folders of runs that were finished elsewhere, whose results are there without them.
    UserError where one has begun with other settings, or was trained on other data.
    """
    unique = list({job.run: job for job in jobs}.values())
    missing = [job for job in unique if not (job.run in known or job.finished)]
    for job in unique:
        if job.run.exists() and job.run not in known:
            _require_resumable(job)
    console.print(f"{len(unique)} runs: {len(unique) - len(missing)} finished before, kept")
    return missing


def _require_resumable(job: Job) -> None:
    try:
        require_resumable(job.run, job.config, "root", job.subject.source)
    except UserError as error:
        raise UserError(f"{error}: move {job.run} away, or give another --out") from error


def too_large(jobs: Sequence[Job], device: torch.device, console: Console) -> dict[str, str]:
    """Announce large memories; what does not fit `device`: in words, by the setting's name."""
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
    """Say so where the disk of `out` has no room for the checkpoints of the jobs.

    While a run trains there are two of its checkpoints, with Adam's two moments of each weight.
    """
    if not jobs:
        return
    weights = [job.weights for job in jobs]
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
) -> Iterator[Job]:
    """Run the jobs in turn, giving each when it is finished, until the deadline if there is one.

    deadline: a time of `time.monotonic()`. What it stops has a checkpoint and goes on next time.
    A job that fails is said, put into `failed`, and does not keep the others from their turn. What
    another process is at is left to it, so that several calls share the work.
    """
    for number, job in enumerate(jobs, 1):
        if deadline is not None and time.monotonic() >= deadline:
            console.print(f"Out of time: {len(jobs) - number + 1} run(s) have not begun")
            break
        console.print(f"[bold]{job}[/bold]: {number} of {len(jobs)} to run")
        try:
            with alone_at(job.run):
                if not job.finished:  # by another process, since this one looked
                    job.execute(hardware, deadline)
        except Timeout:
            console.print(f"{job}: left to another process, which is at it")
        except OutOfTime:
            console.print(f"{job}: stopped before its last epoch, out of time; it can go on")
        except (UserError, torch.OutOfMemoryError) as error:
            console.print(f"{job}: failed: {error}")
            failed.append(job)
        else:
            yield job


def alone_at(path: Path) -> FileLock:
    """Held while `path` is written; Timeout where another process holds it. It ends with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=0)


def require_one_process() -> None:
    """UserError under torchrun, whose processes would all train the same run."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "started by torchrun, whose processes work together; here each trains runs of its own: "
            "start the script itself, several times if you like, and they share the work"
        )


def require_none(failed: Sequence[Job]) -> None:
    """UserError that names the jobs in `failed`, if there are any."""
    if failed:
        names = "; ".join(map(str, failed))
        raise UserError(f"{len(failed)} run(s) failed, see above: {names}")
