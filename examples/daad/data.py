"""Pictures in the MVTec AD folder layout: found, decoded once, handed out in batches.

    ROOT/NAME/train/good/*                          normal pictures to learn from
    ROOT/NAME/test/<good or a defect>/*             pictures to score
    ROOT/NAME/ground_truth/<defect>/<stem>_mask.*   where the defect is, if known

Hidden files and whatever is no picture are passed over.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from daad.batches import Pictures, StoredPictures, to_floats
from daad.errors import UserError
from daad.files import fingerprint

GOOD = "good"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# The rows of the paper's Table 1: the five textures, then the ten objects.
TABLE_ORDER = (
    *("carpet", "grid", "leather", "tile", "wood"),
    *("bottle", "cable", "capsule", "hazelnut", "metal_nut"),
    *("pill", "screw", "toothbrush", "transistor", "zipper"),
)
HOST_SHARE = 0.5  # of the memory that is available, for decoded pictures

Read = TypeVar("Read")


@dataclass(frozen=True)
class Sample:
    """One picture; `defect` is the name of its folder, "good" for a normal one."""

    path: Path
    defect: str
    mask: Path | None

    @property
    def label(self) -> int:
        """0 for good, 1 for anomalous."""
        return int(self.defect != GOOD)

    @property
    def name(self) -> str:
        """The path inside the category's folder, such as `test/good/000.png`."""
        return "/".join(self.path.parts[-3:])


@dataclass(frozen=True)
class Category:
    """The pictures of one product or texture, in a reproducible order."""

    name: str
    train: list[Sample]
    test: list[Sample]

    kind: ClassVar[str] = "defect"  # what the names of its anomalous pictures' folders are names of

    @property
    def root(self) -> Path:
        """The folder that holds the category's."""
        return self.train[0].path.parents[3]

    @property
    def source(self) -> dict[str, str]:
        """What a run writes down to find the category again, and to know it by."""
        samples = [*self.train, *self.test]
        paths = [path for one in samples for path in (one.path, one.mask) if path is not None]
        return {
            **{"root": str(self.root.resolve()), "category": self.name},
            "fingerprint": fingerprint(self.root, paths),
        }

    def pictures(self, samples: Sequence[Sample], image_size: int) -> Pictures:
        """The pictures of some of the category's samples, `image_size` squared."""
        return PictureFiles([sample.path for sample in samples], image_size)


def list_categories(root: Path) -> list[str]:
    """Names of the folders in `root` that have `train/good`: the paper's order, then by name.

    UserError where `root` is no folder or holds no category.
    """
    names = _categories(root)
    if names:
        return names
    if (root / "train" / GOOD).is_dir():
        raise UserError(f"{root}: is a category itself; give the folder that holds it")
    raise UserError(f"{root}: no category in it; expected folders NAME/train/good of pictures")


def load_category(root: Path, name: str) -> Category:
    """Find the pictures of ROOT/NAME in natural order, the good ones first in the test set.

    UserError where the folder, its training pictures or one of the two test classes is missing.
    """
    folder = root / name
    if not folder.is_dir():
        raise UserError(f"{folder}: no such category; in {root}: {_listing(list_categories(root))}")
    train = [Sample(path, GOOD, None) for path in list_pictures(folder / "train" / GOOD)]
    if not train:
        raise UserError(
            f"{folder / 'train' / GOOD}: no pictures; put the normal ones for training there "
            f"({picture_suffixes()})"
        )
    defects = sorted(
        list_folders(folder / "test"), key=lambda defect: (defect != GOOD, natural_order(defect))
    )
    test = [sample for defect in defects for sample in _test_samples(folder, defect)]
    _check_test(folder / "test", test)
    return Category(name, train, test)


class PictureFiles:
    """Pictures as RGB, `image_size` squared, decoded by one thread a core.

    Where they fit in `memory_limit` bytes (None: half of what is available) they are decoded
    once and kept as uint8; otherwise each batch is decoded when it is asked for. UserError with
    its path for a picture that cannot be read.
    """

    def __init__(
        self, paths: Sequence[Path], image_size: int, *, memory_limit: int | None = None
    ) -> None:
        self._paths = list(paths)
        self._size = image_size
        self._workers = ThreadPoolExecutor(count_cores())
        self._store: StoredPictures | None = None
        if memory_limit is None:
            memory_limit = int(HOST_SHARE * available_memory())
        if len(self._paths) * 3 * image_size**2 <= memory_limit:
            self._store = StoredPictures(self._decode(self._paths))

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, indices: Tensor, device: torch.device | str) -> Tensor:
        """Pictures `indices` (b,) as float32 (b, 3, S, S) in [-1, 1] on `device`."""
        if self._store is not None:
            return self._store.batch(indices, device)
        pixels = self._decode([self._paths[index] for index in indices.tolist()])
        return to_floats(pixels, torch.device(device))

    def _decode(self, paths: Sequence[Path]) -> Tensor:
        """(n, 3, S, S) uint8; each worker fills its own rows, so that nothing is held twice."""
        store = torch.empty(len(paths), 3, self._size, self._size, dtype=torch.uint8)
        rows = store.numpy()

        def fill(row: int) -> None:
            rows[row] = read_picture(paths[row], self._rgb).transpose(2, 0, 1)

        for _ in self._workers.map(fill, range(len(paths))):
            pass  # map gives back a worker's exception only when its turn is asked for
        return store

    def _rgb(self, image: Image.Image) -> np.ndarray:
        square = (self._size, self._size)
        return np.asarray(_to_rgb(image).resize(square, Image.Resampling.BICUBIC))


def load_masks(samples: Sequence[Sample], image_size: int) -> tuple[Tensor, Tensor]:
    """Where each picture is anomalous, bool (n, S, S), and whether that is known, bool (n,).

    Nonzero in the mask file is anomalous; resized to the nearest pixel. A good picture is known
    to be anomalous nowhere. UserError with its path for a mask that cannot be read.
    """

    def shrink(image: Image.Image) -> np.ndarray:
        nonzero = Image.fromarray(nonzero_pixels(image))
        return np.asarray(nonzero.resize((image_size, image_size), Image.Resampling.NEAREST))

    masks = torch.zeros(len(samples), image_size, image_size, dtype=torch.bool)
    known = torch.tensor([sample.label == 0 or sample.mask is not None for sample in samples])
    rows = [(row, sample.mask) for row, sample in enumerate(samples) if sample.mask is not None]
    with ThreadPoolExecutor(count_cores()) as workers:
        read = workers.map(lambda item: read_picture(item[1], shrink), rows)
        for (row, _), mask in zip(rows, read, strict=True):
            masks[row] = torch.tensor(mask)
    return masks, known.to(torch.bool)


# Finding files


def _categories(root: Path) -> list[str]:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds the categories")
    names = [name for name in list_folders(root) if (root / name / "train" / GOOD).is_dir()]
    return sorted(names, key=table_place)


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


def list_pictures(folder: Path) -> list[Path]:
    """The pictures directly in `folder`, in natural order; none where there is no folder."""
    if not folder.is_dir():
        return []
    paths = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    visible = (path for path in paths if not path.name.startswith(".") and path.is_file())
    return sorted(visible, key=lambda path: natural_order(path.name))


def list_folders(folder: Path) -> list[str]:
    """Names of the folders directly in `folder`, in no order; none where there is no folder."""
    if not folder.is_dir():
        return []
    return [
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    ]


def table_place(category: str) -> tuple[int, tuple[list[str | int], str]]:
    """A sort key: the order of the paper's Table 1, then natural order."""
    known = category in TABLE_ORDER
    place = TABLE_ORDER.index(category) if known else len(TABLE_ORDER)
    return place, natural_order(category)


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A sort key that puts 9 before 10; the name itself decides between 1 and 01."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn, so that like meets like
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _listing(names: Iterable[str]) -> str:
    return ", ".join(names)


def picture_suffixes() -> str:
    """The kinds of file that count as pictures, in words."""
    return _listing(suffix.lstrip(".") for suffix in SUFFIXES)


# Decoding


def read_picture(path: Path, convert: Callable[[Image.Image], Read]) -> Read:
    """`convert` of the picture, upright; UserError with its path where it cannot be read."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # others may have set it; half a picture is an anomaly
    try:
        with Image.open(path) as image:
            image.load()
            return convert(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise whatever a broken file makes them
        raise UserError(
            f"{path}: cannot be read as a picture ({error}); replace or remove it"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: 16-bit gray by its upper byte, transparency over white."""
    if image.mode.startswith(("I", "F")):
        # Their own convert() clips at 255 instead of scaling.
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit values have no known range; save it with 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def nonzero_pixels(image: Image.Image) -> np.ndarray:
    """Bool (h, w): any colour but black; fully transparent pixels count as black."""
    if image.mode == "P":
        image = image.convert("RGBA")
    values = np.asarray(image) != 0
    if image.mode in ("RGBA", "LA"):
        return values[..., :-1].any(-1) & values[..., -1]
    return values.any(-1) if values.ndim == 3 else values


# The machine


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int:
    """Bytes that can be taken without swapping, or all there is where the OS tells no more."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return 8 * 2**30  # no way to ask: what a laptop has
