"""What the tests of the reproduction share: small data sets in one folder, tiny settings, a page read.

Of the ten classes of MNIST there are two here, and a run of photographs draws no report: those are
tested elsewhere, and take most of the time.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import reproduce
from daad.drawn import make_dataset
from daad.folder import Hardware, write_settings
from daad.io import save_checkpoint
from daad.network import CHECKPOINT, Networks
from daad.progress import History
from daad.run import evaluate, fit_reference
from reproduction.jobs import Job, Train
from reproduction.scales import SCALES, Scale
from reproduction.tables import PAPER, Paper
from tests.helpers.labelled_files import write_cifar10, write_mnist
from tests.helpers.scripts import Done, call, table
from tests.helpers.video_clips import make_video

# In place of `small`, a fraction of a second a run. Four levels end in a map of 2x2: of Table 4, r 4
# and r 16 do not fit it, and r 8, which is DAAD as the scale has it, is 2,2,1.
_NETWORK = {"width": 2, "batch_size": 4, "epochs": 1, "lr": 1e-3}
_PICTURES = _NETWORK | {"image_size": 32, "division": (2, 2, 1)}
TINY: dict[str, dict[str, Any]] = {
    "photographs": _PICTURES,
    "mnist": _NETWORK,
    "cifar10": _NETWORK,
    "video": _PICTURES | {"num_items": 4, "batch_size": 3},
}
DIGITS = ("mnist-3", "mnist-8")
NETWORKS = ("ae", "memae", "ae-skip", "daad", "daad+")  # of Table 3
OF_DIGITS = ("ae", "memae", "daad", "daad+")
OF_VIDEO = ("ae", "daad", "daad+")
# By test clip, which frames are abnormal: none, some, all.
FRAMES = {"1": [0] * 3, "2": [0, 0, 1, 1, 0], "10": [1] * 3}


def make_collection(root: Path) -> Path:
    """bottle, one of the telling categories, carpet, which is before it in Table 1, and the rest."""
    mvtec = root / "mvtec"
    make_dataset(mvtec, image_size=32, train=6, test_good=3, test_per_defect=2)
    (mvtec / "gear").rename(mvtec / "bottle")
    (mvtec / "weave").rename(mvtec / "carpet")
    write_mnist(root / "mnist")
    write_cifar10(root / "cifar-10-batches-py")
    for name in ("ped2", "avenue"):
        video = make_video(root / name, {clip: len(labels) for clip, labels in FRAMES.items()})
        np.savez(video / "frame_labels.npz", **{clip: np.array(v) for clip, v in FRAMES.items()})
    return root


def paper_of(**tiny: Any) -> Paper:
    """The paper with a scale `small` of `TINY` and `tiny`, on two digits."""
    choices = {kind: own | tiny for kind, own in TINY.items()}
    scales = {**SCALES, "small": Scale("small", choices, SCALES["small"].words)}
    digits = dataclasses.replace(PAPER.tables["table2-mnist"], subjects=DIGITS)
    return Paper({**PAPER.tables, "table2-mnist": digits}, scales)


SMALL_PAPER = paper_of()


def noting(names: list[str]) -> Train:
    """A training that only notes the jobs it was asked for."""
    return lambda job, *_: names.append(str(job))


def untrained(job: Job, hardware: Hardware, deadline: float | None) -> None:
    """In place of a training: the network as it begins, evaluated."""
    job.folder.mkdir(parents=True, exist_ok=True)
    write_settings(job.folder, job.config, job.task.source, hardware)
    torch.manual_seed(job.seed)
    generator, discriminator = Networks.build(job.config)
    history = History(job.folder / "history.csv", [])
    history.add(job.config.epochs, {"reconstruction": 0.5})["seconds"] = 30.0
    history.write(always=True)
    state = {
        "config": job.config.to_dict(),
        "epoch": job.config.epochs,
        "generator": generator.state_dict(),
        "discriminator": discriminator.state_dict() if discriminator else None,
    }
    save_checkpoint(job.folder / CHECKPOINT, state)
    if job.task.has_reference:
        fit_reference(job.folder, job.task, torch.device("cpu"))
    evaluate(job.folder, job.task, torch.device("cpu"))


# The script


def script(
    *arguments: Any,
    cwd: Path,
    scale: str = "small",
    paper: Paper = SMALL_PAPER,
    train: Train = untrained,
) -> Done:
    arguments = (*arguments, "--scale", scale, "--device", "cpu", "--out", "out")
    run: Callable[[Sequence[str]], None] = partial(reproduce.main, paper=paper, train=train)
    return call(run, *arguments, cwd=cwd)


def said(done: Done) -> str:
    """What was printed, in one line."""
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


# The page and its CSV


def results(folder: Path) -> list[dict[str, str]]:
    return table(folder / "out" / "reproduction" / "results.csv")


def page_of(folder: Path) -> str:
    return (folder / "out" / "reproduction.md").read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands below the one heading that begins so."""
    (found,) = [part for part in page.split("\n## ")[1:] if part.startswith(heading)]
    return found


def tables(text: str) -> list[list[list[str]]]:
    """The tables in Markdown: lines of cells, without the line between heads and body."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|") and not inside:
            found.append([])
        inside = line.startswith("|")
        if inside:
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found[-1].append([cell.strip() for cell in cells])
    for lines in found:
        assert set(lines.pop(1)) <= {"---", "---:"}
    return found


def body(text: str) -> dict[str, list[str]]:
    """The one table in `text`: the cells of each line by its first cell, the heads by "heads"."""
    (lines,) = tables(text)
    return {line[0] or "heads": line[1:] for line in lines}


def without_time(lines: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Lines of results.csv less what differs from call to call."""
    return [{name: value for name, value in line.items() if name != "minutes"} for line in lines]
