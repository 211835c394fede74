"""What the tests of the reproduction share: small data sets in one folder, tiny settings, a page read.

Of the ten classes of MNIST there are two here, and a run of photographs draws no report: those are
tested elsewhere, and take most of the time.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reproduce
from daad import report
from daad.synthetic import make_dataset
from paper.collection import Collection
from paper.jobs import Job, Subject, subject_name
from paper.settings import SCALES
from paper.tables import TABLES, Table
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


def make_tiny(patch: pytest.MonkeyPatch) -> None:
    """Let scale small be `TINY`, on two digits, without reports."""
    subjects = Collection.subjects

    def some(collection: Collection, table: Table, *names: Any) -> list[Subject]:
        found = subjects(collection, table, *names)
        return [one for one in found if not table.subjects or subject_name(one) in table.subjects]

    digits = dataclasses.replace(TABLES["table2-mnist"], subjects=DIGITS)
    patch.setitem(SCALES, "small", TINY)
    patch.setitem(TABLES, "table2-mnist", digits)
    patch.setattr(Collection, "subjects", some)
    patch.setattr(report, "draw_figures", lambda *_: None)
    patch.setattr(report, "write_report", lambda *_: None)


# The script


def script(*arguments: Any, cwd: Path, scale: str = "small") -> Done:
    arguments = (*arguments, "--scale", scale, "--device", "cpu", "--out", "out")
    return call(reproduce.run, *arguments, cwd=cwd)


def noted(patch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that are run from now on, none of which is."""
    names: list[str] = []
    patch.setattr(Job, "execute", lambda job, *_: names.append(str(job)))
    return names


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
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
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
