"""The paper's data sets in one folder: which of them there are, and what each table is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from daad.data import Category, list_categories, load_category
from daad.errors import UserError
from daad.labelled import LabelledSet, load_labelled
from daad.oneclass import one_class
from daad.video import load_video
from paper.jobs import Subject
from paper.tables import Table

# Folders in which a set is looked for, before the one that is given itself.
PLACES = {"mnist": ("mnist", "MNIST"), "cifar10": ("cifar10", "cifar-10-batches-py")}


@dataclass(frozen=True)
class Collection:
    """What lies in `root`: mvtec/CATEGORY, mnist, cifar-10-batches-py, and videos by their names."""

    root: Path

    @cached_property
    def categories(self) -> dict[str, Category | UserError]:
        """Those of MVTec AD by name, in the order of Table 1, or what is wrong with one.

        UserError where there is none.
        """
        root = self.root / "mvtec"
        return {name: _load(root, name) for name in list_categories(root)}

    def subjects(self, table: Table, categories: Sequence[str] | None = None) -> list[Subject]:
        """What the figures of `table` are means over; UserError where it is not there.

        categories: the ones that count where it is about photographs; all if not given. One that
        cannot be used is passed over; UserError where that leaves none.
        """
        if table.kind == "photographs":
            found = [self.categories[name] for name in categories or self.categories]
            usable: list[Subject] = [one for one in found if isinstance(one, Category)]
            if not usable:
                raise found[0]
            return usable
        if table.kind == "video":
            return [load_video(self.root / name) for name in table.subjects]
        data = self._labelled(table.kind)
        return [one_class(data, name) for name in data.classes]

    def has(self, table: Table) -> bool:
        """Whether there is a folder for what `table` is about, whatever is in it."""
        if table.kind == "photographs":
            names: Sequence[str] = ("mvtec",)
        else:
            names = table.subjects if table.kind == "video" else PLACES[table.kind]
        return any((self.root / name).is_dir() for name in names)

    def unusable(self, categories: Sequence[str] | None = None) -> list[UserError]:
        """What is wrong with those of MVTec AD that `subjects` passes over."""
        found = [self.categories[name] for name in categories or self.categories]
        return [one for one in found if isinstance(one, UserError)]

    def _labelled(self, name: str) -> LabelledSet:
        places = [self.root / place for place in PLACES[name]]
        return load_labelled(name, next((place for place in places if place.is_dir()), self.root))


def _load(root: Path, name: str) -> Category | UserError:
    try:
        return load_category(root, name)
    except UserError as error:
        return error
