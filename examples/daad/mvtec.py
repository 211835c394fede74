"""Photographs in the MVTec AD folder layout: which there are, and how a run on them is judged.

    ROOT/NAME/train/good/*                          normal pictures to learn from
    ROOT/NAME/test/<good or a defect>/*             pictures to score
    ROOT/NAME/ground_truth/<defect>/<stem>_mask.*   where the defect is, if known

Hidden files and whatever is no picture are passed over.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from daad.baselines import baseline_scores
from daad.config import Config
from daad.findings import Findings
from daad.form import Form, find_white
from daad.io import UserError, csv_cell, fingerprint, write_csv, write_means
from daad.masks import find_masks, load_masks, mask_files
from daad.network import Networks
from daad.page import write_report
from daad.pictures import (
    GOOD,
    TYPES,
    EvenLight,
    Normals,
    PictureFiles,
    Pictures,
    Sample,
    is_picture,
    kind_of,
    list_folders,
    list_pictures,
    natural_order,
    pictures_below,
)
from daad.report import draw_figures
from daad.scoring import Scale, fuse, peaks, score_pictures, smooth
from daad.verdict import Reference

# The rows of the paper's Table 1: the five textures, then the ten objects.
TABLE_ORDER = (
    *("carpet", "grid", "leather", "tile", "wood"),
    *("bottle", "cable", "capsule", "hazelnut", "metal_nut"),
    *("pill", "screw", "toothbrush", "transistor", "zipper"),
)
SCORES = (
    *("path", "label", "defect"),
    *("score", "p", "verdict", "eq7"),
    *("reconstruction", "alignment", "peak", "brightness"),
)


@dataclass(frozen=True)
class Category:
    """The pictures of one product or texture, in a reproducible order: a task, see `task.Task`.

    test: may be empty, or hold anomalous pictures alone; good ones are then those held out.
    root: the folder that it was found in. folders: which folders make it up, where it has not the
    MVTec layout.
    """

    name: str
    train: list[Sample]
    test: list[Sample]
    root: Path
    folders: Mapping[str, str] = field(kw_only=True, default_factory=dict)

    subject: ClassVar[str] = "category"
    part: ClassVar[str] = "category"
    has_reference: ClassVar[bool] = True
    area: ClassVar[str] = "image_auroc_eq7"
    anomaly: ClassVar[str] = "defect"  # what folders of anomalous pictures are named by

    @property
    def kind(self) -> str:
        """The kind of data, a key of `config.KINDS`."""
        return "photographs"

    @property
    def source(self) -> dict[str, str]:
        """What a run writes down to find the category again, and to know it by."""
        samples = [*self.train, *self.test]
        paths = [path for one in samples for path in (one.path, *mask_files(one))]
        where = {"root": str(self.root.resolve()), "category": self.name, **self.folders}
        return where | {"fingerprint": fingerprint(self.root, paths)}

    def passed_over(self) -> Counter[str]:
        """Count by suffix the files among the category's that are no pictures by their names."""
        inside = (self.root / self.name / part for part in ("train", "test"))
        places = [Path(self.folders[key]) for key in ("good", "bad") if key in self.folders]
        files = (path for place in places or inside for path in place.rglob("*"))
        others = (path for path in files if path.is_file() and not is_picture(path))
        return Counter(kind_of(path.name) for path in others if not path.name.startswith("."))

    def completed(self, config: Config) -> Config:
        """Decide the value of white, where normal pictures have 16 bits and it is not given."""
        if config.white is not None or self.kind != "photographs":
            return config
        return dataclasses.replace(config, white=find_white(one.path for one in self.train))

    def pictures(self, samples: Sequence[Sample], form: Form) -> Pictures:
        """Read some of the category's samples."""
        return PictureFiles([sample.path for sample in samples], form)

    def normal_pictures(self, config: Config) -> Normals:
        """Read the training pictures, and those of them that are held out, if any are."""
        learned, held_out = split_normals(self.train, config.held_out)
        pictures = self.pictures(learned, config.form)
        if held_out:
            return Normals(pictures, self.pictures(held_out, config.form), "held-out")
        return Normals(pictures, pictures, "train")

    def tested(self, config: Config) -> list[Sample]:
        """The samples of the test set. Where it has no good ones, those held out are taken."""
        if any(sample.label == 0 for sample in self.test) or not self.test:
            return self.test
        held_out = split_normals(self.train, config.held_out)[1]
        if not held_out:
            raise UserError(
                f"{self.name}: no good pictures to compare the anomalous ones with; give a "
                f"--held-out above 0, which keeps some from training"
            )
        return [*held_out, *self.test]

    def test_pictures(self, config: Config) -> Pictures:
        """Read the test set; UserError for a broken mask, which should not wait for the last epoch."""
        tested = self.tested(config)
        load_masks(tested, config.form)
        return self.pictures(tested, config.form)

    def judge(
        self,
        networks: Networks,
        pictures: Pictures,
        config: Config,
        reference: Reference | None = None,
    ) -> Findings:
        """Score the test set by `reference`, and by Eq. 7, as `config.scaling` says.

        Without a reference R and L are scaled over the test set.
        """
        tested = self.tested(config)
        raw = score_pictures(networks, pictures, config)
        if reference is None:
            eq7 = fuse(raw, Scale.of([raw]), config.gamma)
            return Findings(tested, pictures, raw, eq7, self.anomaly, fit=config.fit)
        scale = reference.scale if config.scaling == "normals" else Scale.of([raw])
        eq7 = fuse(raw, scale, config.gamma)
        threshold = reference.threshold(config.false_alarms)
        learned = self.normal_pictures(config).learned
        if isinstance(pictures, EvenLight):
            learned = EvenLight(learned, pictures.target)
        simple = baseline_scores(learned, pictures)
        return Findings(
            tested, pictures, raw, eq7, self.anomaly, reference, threshold, simple, config.fit
        )

    def write(
        self, folder: Path, found: Findings | None, metrics: Mapping[str, Any], config: Config
    ) -> None:
        """Write scores.csv, figures/ and report.html into a run's folder; without a test set the last."""
        if found is not None:
            write_csv(folder / "scores.csv", SCORES, _rows(found))
            draw_figures(folder / "figures", found)
        write_report(folder, metrics, config, found)


def _rows(found: Findings) -> list[tuple[Any, ...]]:
    """Write a row of `SCORES` for each picture; `alignment` is blank without a discriminator."""
    raw, count = found.raw, len(found.samples)
    alignment = [""] * count if raw.alignment is None else raw.alignment.tolist()
    return [
        (csv_cell(sample.name), sample.label, csv_cell(sample.defect), score, *verdict, *others)
        for sample, score, verdict, *others in zip(
            found.samples,
            found.scores.tolist(),
            found.verdicts(),
            found.eq7.tolist(),
            raw.reconstruction.tolist(),
            alignment,
            peaks(smooth(raw.error_maps)).tolist(),
            raw.brightness.tolist(),
            strict=True,
        )
    ]


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

    There need be no test set. UserError where the folder or its training pictures are missing, or
    where folders of masks match no picture.
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
    _require_matches(folder / "ground_truth", test)
    if test and all(sample.label == 0 for sample in test):
        raise UserError(
            f"{folder / 'test'}: only good pictures; put anomalous ones in a folder a defect, or "
            f"move the good ones to {folder / 'train' / GOOD}"
        )
    return Category(name, train, test, root)


def load_folders(good: Path, bad: Path | None = None, name: str = "") -> Category:
    """Make a category of all normal pictures in the folder `good` and below it.

    bad: all pictures in and below are anomalous. The name of the folder in it is their defect.
    name: that of `good` if not given. UserError where a folder is missing or has no pictures.
    """
    good, bad = good.resolve(), bad and bad.resolve()
    train = [Sample(path, GOOD, None, folder=good) for path in pictures_below(good)]
    test = []
    if bad is not None:
        if bad == good or bad in good.parents or good in bad.parents:
            raise UserError(
                f"--bad {bad}: one of it and --good {good} lies in the other; part them"
            )
        for path in pictures_below(bad):
            inside = path.relative_to(bad).parts[:-1]
            test.append(Sample(path, inside[0] if inside else bad.name, None, folder=bad))
    both = [good] if bad is None else [good, bad]
    folders = dict(zip(("good", "bad"), map(str, both), strict=False))
    root = Path(os.path.commonpath(both))
    return Category(name or good.name, train, test, root, folders=folders)


def load_again(data: Mapping[str, str], root: Path | None) -> Category:
    """Find the category again that `data`, a run's source, names; in `root` if it has moved."""
    if "good" not in data:
        return load_category(root or Path(data["root"]), data["category"])
    if root is not None:
        raise UserError("--root: this run was trained with --good; move its folders back")
    bad = data.get("bad")
    return load_folders(Path(data["good"]), Path(bad) if bad else None, data["category"])


def _test_samples(folder: Path, defect: str) -> list[Sample]:
    masks = {} if defect == GOOD else find_masks(folder / "ground_truth" / defect)
    paths = list_pictures(folder / "test" / defect)
    return [Sample(path, defect, masks.get(path.stem)) for path in paths]


def _require_matches(folder: Path, test: Sequence[Sample]) -> None:
    """Raise UserError where a defect's folder of masks fits none of its pictures."""
    for defect in list_folders(folder):
        masks = list_pictures(folder / defect) if defect != GOOD else []
        if masks and not any(one.mask for one in test if one.defect == defect):
            raise UserError(
                f"{folder / defect}: {len(masks)} masks, and none belongs to a picture in "
                f"test/{defect}; name them as their pictures, with _mask or _GT after the stem"
            )


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
