"""One class of a labelled data set as the normal one: the protocol of the paper's Table 2.

Training sees one class of the official train split; the whole official test split is scored, in
which that class is good and the other nine are anomalous. The figure is the mean over ten classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from daad.batches import StoredPictures
from daad.config import Config
from daad.data import GOOD, Category, Sample
from daad.errors import UserError
from daad.files import write_means
from daad.labelled import LabelledSet, load_labelled
from daad.runs import finished, read_settings

# Image AUROC, mean over the classes. MemAE's was measured on a part of the test set (footnote 1).
TABLE_2 = {"mnist": {"DAAD": 0.990, "MemAE": 0.975}, "cifar10": {"DAAD": 0.753, "MemAE": 0.609}}
IMAGE_SIZE = 32
# A block of the paper shows 32x32 pixels of its 256x256: here, the whole picture.
OWN_DIVISION = (1, 1, 1)
# Turned upside down and mirrored, a 6 is a 9: digits are anomalies of each other when flipped.
OWN_FLIPS = {"mnist": "none", "cifar10": "both"}
COLUMNS = ("class", "test_good", "test_anomalous", "epoch", "image_auroc")

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Row(Sample):
    """Picture `index` of a split, "train" or "test"; its `path` only names it and is no file."""

    split: str
    index: int


@dataclass(frozen=True)
class OneClass(Category):
    """The class `normal` of `dataset` as the category to learn; each other class is a "defect"."""

    dataset: LabelledSet
    normal: str

    kind: ClassVar[str] = "class"

    @property
    def source(self) -> dict[str, str]:
        root = str(self.dataset.root.resolve())
        return {
            **{"root": root, "dataset": self.dataset.name, "class": self.normal},
            "fingerprint": self.dataset.fingerprint,
        }

    def pictures(self, samples: Sequence[Sample], image_size: int) -> StoredPictures:
        """The pictures of some rows of one split, as `to_square` makes them."""
        rows = [sample for sample in samples if isinstance(sample, Row)]
        (split,) = {row.split for row in rows}
        pixels = self.dataset.splits[split].pixels[[row.index for row in rows]]
        return StoredPictures(to_square(torch.from_numpy(pixels), image_size))


def one_class(dataset: LabelledSet, normal: str) -> OneClass:
    """The class `normal` of the train split; all of the test split, with the good ones first."""
    label = dataset.classes.index(normal)
    learned = np.flatnonzero(dataset.splits["train"].labels == label)
    tested = np.argsort(dataset.splits["test"].labels != label, kind="stable")
    train, test = _rows(dataset, "train", learned, normal), _rows(dataset, "test", tested, normal)
    return OneClass(f"{dataset.name} {normal}", train, test, dataset, normal)


def class_of_run(run: Path, root: Path | None) -> tuple[OneClass, Config]:
    """What was learned in the folder `run`, and how; `root` where the files have moved to."""
    settings = read_settings(run, "class")
    data = settings["data"]
    dataset = load_labelled(data["dataset"], root or Path(data["root"]))
    return one_class(dataset, data["class"]), Config.from_dict(settings["config"])


def _rows(dataset: LabelledSet, split: str, indices: np.ndarray, normal: str) -> list[Sample]:
    rows: list[Sample] = []
    for index in indices.tolist():
        name = dataset.classes[dataset.splits[split].labels[index]]
        path = dataset.root / split / name / f"{index:05}"
        rows.append(Row(path, GOOD if name == normal else name, None, split, index))
    return rows


def to_square(pixels: Tensor, size: int) -> Tensor:
    """uint8 (n, 1 or 3, s, s) as RGB (n, 3, size, size): a black frame, gray in all three channels.

    Four levels halve a picture four times, and 28 cannot be: MNIST's digits get 2 black pixels on
    each side. Their ground is black, so a frame shows nothing new, where resizing would blur.
    """
    margin = size - pixels.shape[-1]
    before, after = margin // 2, margin - margin // 2
    return functional.pad(pixels, (before, after) * 2).expand(-1, 3, -1, -1).contiguous()


def collect(out: Path, classes: Sequence[str], config: Config) -> dict[str, Metrics]:
    """The metrics of each class that is finished in OUT/CLASS with the settings `config`."""
    found = {name: finished(out / name, config, "dataset") for name in classes}
    return {name: metrics for name, metrics in found.items() if metrics is not None}


def mean_auroc(results: Mapping[str, Metrics]) -> float:
    """The mean image AUROC of one class at least."""
    return sum(metrics["image_auroc"] for metrics in results.values()) / len(results)


def write_results(path: Path, results: Mapping[str, Metrics]) -> None:
    """A row for each class that is finished, and their mean."""
    rows = []
    for name, metrics in results.items():
        counts = metrics["counts"]
        row = (name, counts["good"], counts["anomalous"], metrics["epoch"], metrics["image_auroc"])
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    write_means(path, COLUMNS, rows, ["image_auroc"])


def parse_classes(text: str, classes: Sequence[str]) -> list[str]:
    """`"all"`, or numbers and names such as `"0,3,cat"`, as names in the order of `classes`."""
    if text == "all":
        return list(classes)
    wanted = {part.strip() for part in text.split(",")}
    known = {str(number): name for number, name in enumerate(classes)} | {n: n for n in classes}
    unknown = sorted(wanted - set(known))
    if unknown:
        names = "" if known.keys() == set(classes) else f", or names: {', '.join(classes)}"
        raise UserError(
            f"--classes {text}: no class {', '.join(unknown) or '(empty)'}; give all, or numbers "
            f"from 0 to {len(classes) - 1} with commas between{names}"
        )
    chosen = {known[part] for part in wanted}
    return [name for name in classes if name in chosen]
