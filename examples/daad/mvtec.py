"""Photographs in the MVTec AD folder layout: which there are, and how a run on them is judged.

    ROOT/NAME/train/good/*                          normal pictures to learn from
    ROOT/NAME/test/<good or a defect>/*             pictures to score
    ROOT/NAME/ground_truth/<defect>/<stem>_mask.*   where the defect is, if known

Hidden files and whatever is no picture are passed over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from daad.config import Config
from daad.io import UserError, fingerprint, write_csv, write_means
from daad.network import Networks
from daad.pictures import (
    GOOD,
    TYPES,
    Normals,
    PictureFiles,
    Pictures,
    Sample,
    list_folders,
    list_pictures,
    load_masks,
    natural_order,
)
from daad.report import draw_figures, write_report
from daad.scoring import Findings, Scale, fuse, score_columns, score_pictures

# The rows of the paper's Table 1: the five textures, then the ten objects.
TABLE_ORDER = (
    *("carpet", "grid", "leather", "tile", "wood"),
    *("bottle", "cable", "capsule", "hazelnut", "metal_nut"),
    *("pill", "screw", "toothbrush", "transistor", "zipper"),
)
SCORES = (
    *("path", "label", "defect"),
    *("reconstruction", "alignment", "score", "peak", "brightness"),
)


@dataclass(frozen=True)
class Category:
    """The pictures of one product or texture, in a reproducible order: a task, see `run.Task`."""

    name: str
    train: list[Sample]
    test: list[Sample]

    subject: ClassVar[str] = "category"
    part: ClassVar[str] = "category"
    area: ClassVar[str] = "image_auroc"
    anomaly: ClassVar[str] = "defect"  # what folders of anomalous pictures are named by

    @property
    def kind(self) -> str:
        """The kind of data, a key of `config.KINDS`."""
        return "photographs"

    @property
    def source(self) -> dict[str, str]:
        """What a run writes down to find the category again, and to know it by."""
        root = self.train[0].path.parents[3]
        samples = [*self.train, *self.test]
        paths = [path for one in samples for path in (one.path, one.mask) if path is not None]
        where = {"root": str(root.resolve()), "category": self.name}
        return where | {"fingerprint": fingerprint(root, paths)}

    def pictures(self, samples: Sequence[Sample], image_size: int) -> Pictures:
        """Read some of the category's samples, `image_size` squared."""
        return PictureFiles([sample.path for sample in samples], image_size)

    def normal_pictures(self, config: Config) -> Normals:
        """Read the training pictures, and those of them that are held out, if any are."""
        learned, held_out = split_normals(self.train, config.held_out)
        pictures = self.pictures(learned, config.image_size)
        if held_out:
            return Normals(pictures, self.pictures(held_out, config.image_size), "held-out")
        return Normals(pictures, pictures, "train")

    def test_pictures(self, config: Config) -> Pictures:
        """Read the test set; UserError for a broken mask, which should not wait for the last epoch."""
        load_masks(self.test, config.image_size)
        return self.pictures(self.test, config.image_size)

    def judge(
        self, networks: Networks, pictures: Pictures, config: Config, scale: Scale | None = None
    ) -> Findings:
        """Score the test set by Eq. 7. R and L are scaled by `scale`, or with None over the test set."""
        raw = score_pictures(networks, pictures, config)
        scores = fuse(raw, scale or Scale.of(raw, "test"), config.gamma)
        return Findings(self.test, pictures, raw, scores, self.anomaly)

    def write(
        self, folder: Path, found: Findings, metrics: Mapping[str, Any], config: Config
    ) -> None:
        """Write scores.csv, figures/ and report.html into a run's folder."""
        names = [(one.name, one.label, one.defect) for one in found.samples]
        others = zip(found.peaks.tolist(), found.raw.brightness.tolist(), strict=True)
        columns = zip(names, score_columns(found.raw, found.scores), others, strict=True)
        rows = [(*name, *scores, *more) for name, scores, more in columns]
        write_csv(folder / "scores.csv", SCORES, rows)
        draw_figures(folder / "figures", found)
        write_report(folder, metrics, config)


def split_normals(samples: Sequence[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """Keep a `share` of normal pictures back, at even distances, so that an order in time is covered."""
    count = len(samples)
    kept = {int((i + 0.5) / share) for i in range(int(count * share))} if share else set()
    if share and not kept:
        raise UserError(
            f"--held-out {share:g}: keeps none of {count} pictures; give at least {1 / count:.2g}"
        )
    learned = [sample for i, sample in enumerate(samples) if i not in kept]
    return learned, [samples[i] for i in sorted(kept)]


def list_categories(root: Path) -> list[str]:
    """Name the folders in `root` that have `train/good`, one at least: in the paper's order, then by name."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds the categories")
    names = [name for name in list_folders(root) if (root / name / "train" / GOOD).is_dir()]
    if names:
        return sorted(names, key=table_place)
    if (root / "train" / GOOD).is_dir():
        raise UserError(f"{root}: is a category itself; give the folder that holds it")
    raise UserError(f"{root}: no category in it; expected folders NAME/train/good of pictures")


def load_category(root: Path, name: str) -> Category:
    """Find the pictures of ROOT/NAME in natural order, the good ones first in the test set.

    UserError where the folder, its training pictures or one of the two test classes is missing.
    """
    folder = root / name
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such category; in {root}: {', '.join(list_categories(root))}"
        )
    train = [Sample(path, GOOD, None) for path in list_pictures(folder / "train" / GOOD)]
    if not train:
        raise UserError(
            f"{folder / 'train' / GOOD}: no pictures; put the normal ones for training there "
            f"({TYPES})"
        )
    defects = sorted(
        list_folders(folder / "test"), key=lambda defect: (defect != GOOD, natural_order(defect))
    )
    test = [sample for defect in defects for sample in _test_samples(folder, defect)]
    _check_test(folder / "test", test)
    return Category(name, train, test)


def _test_samples(folder: Path, defect: str) -> list[Sample]:
    masks = {path.stem: path for path in list_pictures(folder / "ground_truth" / defect)}
    samples = []
    for path in list_pictures(folder / "test" / defect):
        mask = masks.get(f"{path.stem}_mask", masks.get(path.stem))
        samples.append(Sample(path, defect, None if defect == GOOD else mask))
    return samples


def _check_test(folder: Path, test: list[Sample]) -> None:
    labels = {sample.label for sample in test}
    if not test:
        raise UserError(f"{folder}: no pictures; expected good/ and one folder a defect")
    if 0 not in labels:
        raise UserError(f"{folder}: no good pictures; put some in {folder / GOOD} to rank against")
    if 1 not in labels:
        raise UserError(f"{folder}: only good pictures; put anomalous ones in a folder a defect")


def table_place(category: str) -> tuple[int, tuple[list[str | int], str]]:
    """Give a sort key: the order of the paper's Table 1, then natural order."""
    known = category in TABLE_ORDER
    place = TABLE_ORDER.index(category) if known else len(TABLE_ORDER)
    return place, natural_order(category)


def write_summary(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write several categories' image_auroc and pixel_auroc in the order of Table 1, and their mean."""
    areas = ("image_auroc", "pixel_auroc")
    ordered = sorted(rows, key=lambda row: table_place(row["category"]))
    write_means(path, ("category", *areas), ordered, areas)
