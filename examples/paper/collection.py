"""The paper's data sets in one folder: which of them there are, and what each table is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from daad.data import list_categories, load_category
from daad.labelled import LabelledSet, load_labelled
from daad.oneclass import one_class
from daad.video import load_video
from paper.jobs import Subject
from paper.tables import Table

# Folders in which a set is looked for, before the one that is given itself.
PLACES = {"mnist": ("mnist", "MNIST"), "cifar10": ("cifar10",)}


@dataclass(frozen=True)
class Collection:
    """What lies in `root`: mvtec/CATEGORY, mnist, cifar-10-batches-py, and videos by their names."""

    root: Path

    @cached_property
    def categories(self) -> list[str]:
        """The names of MVTec AD's, in the order of Table 1; UserError where there is none."""
        return list_categories(self.root / "mvtec")

    def subjects(self, table: Table, categories: Sequence[str] | None = None) -> list[Subject]:
        """What the figures of `table` are means over; UserError where it is not there.

        categories: the ones that count where it is about photographs; all if not given.
        """
        if table.kind == "photographs":
            names = self.categories if categories is None else categories
            return [load_category(self.root / "mvtec", name) for name in names]
        if table.kind == "video":
            return [load_video(self.root / name) for name in table.subjects]
        data = self._labelled(table.kind)
        return [one_class(data, name) for name in data.classes]

    def _labelled(self, name: str) -> LabelledSet:
        places = [self.root / place for place in PLACES[name]]
        return load_labelled(name, next((place for place in places if place.is_dir()), self.root))
