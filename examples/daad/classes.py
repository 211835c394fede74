"""One class of MNIST or CIFAR-10 as the normal one: the protocol of the paper's Table 2.

    ROOT/train-images-idx3-ubyte ...           MNIST, or in ROOT/MNIST/raw; .gz is read too
    ROOT/cifar-10-batches-py/data_batch_1 ...  CIFAR-10 (python version), or in ROOT itself

Training sees one class of the official train split; the whole official test split is scored, in
which that class is good and the other nine are anomalous. Nothing is downloaded. A file is read only
as far as its head says, and a damaged one is an error with its name.
"""

import gzip
import hashlib
import io
import math
import pickle
import pickletools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from daad.form import Form
from daad.io import UserError
from daad.mvtec import Category
from daad.pictures import GOOD, Sample, StoredPictures

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CLASSES = {"mnist": tuple("0123456789"), "cifar10": tuple(_CIFAR10.split())}
MNIST_PLACES = (".", "raw", "MNIST/raw")  # the last is torchvision's
CIFAR10_PLACES = (".", "cifar-10-batches-py")
MOST_PICTURES = 300_000  # in a file of idx format; MNIST has 60,000
MOST_BYTES = 100e6  # of a batch of CIFAR-10; the official ones have 31e6
LISTED = 8  # file names at most in an error


class Split(NamedTuple):
    """pixels: uint8 (n, channels, h, w); labels: int64 (n,), places in the set's classes."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class LabelledSet:
    """A data set of ten classes, in the order of its files; `root` is the folder it was asked of."""

    name: str
    root: Path
    splits: dict[str, Split]  # "train" and "test"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by their labels."""
        return CLASSES[self.name]

    @cached_property
    def fingerprint(self) -> str:
        """A short word for all pixels and labels, by which other data is noticed."""
        digest = hashlib.blake2b(digest_size=8)
        for split in self.splits.values():
            digest.update(split.pixels.tobytes())
            digest.update(split.labels.tobytes())
        return digest.hexdigest()


# A task


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

    part: ClassVar[str] = "class"
    anomaly: ClassVar[str] = "class"

    @property
    def kind(self) -> str:
        return self.dataset.name

    @property
    def source(self) -> dict[str, str]:
        root = str(self.dataset.root.resolve())
        where = {"root": root, "dataset": self.dataset.name, "class": self.normal}
        return where | {"fingerprint": self.dataset.fingerprint}

    def pictures(self, samples: Sequence[Sample], form: Form) -> StoredPictures:
        """Take some rows of one split, as `to_square` makes them."""
        rows = [sample for sample in samples if isinstance(sample, Row)]
        (split,) = {row.split for row in rows}
        pixels = self.dataset.splits[split].pixels[[row.index for row in rows]]
        return StoredPictures(to_square(torch.from_numpy(pixels), form.size))


def one_class(dataset: LabelledSet, normal: str) -> OneClass:
    """Take a class of the train split, and all of the test split, with the good ones first."""
    label = dataset.classes.index(normal)
    learned = np.flatnonzero(dataset.splits["train"].labels == label)
    tested = np.argsort(dataset.splits["test"].labels != label, kind="stable")
    train, test = _rows(dataset, "train", learned, normal), _rows(dataset, "test", tested, normal)
    return OneClass(f"{dataset.name} {normal}", train, test, dataset.root, dataset, normal)


def _rows(dataset: LabelledSet, split: str, indices: np.ndarray, normal: str) -> list[Sample]:
    rows: list[Sample] = []
    for index in indices.tolist():
        name = dataset.classes[dataset.splits[split].labels[index]]
        path = dataset.root / split / name / f"{index:05}"
        rows.append(Row(path, GOOD if name == normal else name, None, split, index))
    return rows


def to_square(pixels: Tensor, size: int) -> Tensor:
    """Frame uint8 (n, 1 or 3, s, s) in black as RGB (n, 3, size, size); gray in all three channels.

    Four levels halve a picture four times, and 28 cannot be: MNIST's digits get 2 black pixels on
    each side. Their ground is black, so a frame shows nothing new, where resizing would blur.
    UserError where `size` is smaller than the pictures, which are framed and never cut.
    """
    margin = size - pixels.shape[-1]
    if margin < 0:
        own = pixels.shape[-1]
        raise UserError(
            f"--image-size {size}: the pictures have {own}x{own} pixels; give {own} or more"
        )
    before, after = margin // 2, margin - margin // 2
    return functional.pad(pixels, (before, after) * 2).expand(-1, 3, -1, -1).contiguous()


# The files


def load_labelled(name: str, root: Path) -> LabelledSet:
    """Read "mnist" or "cifar10" from the folder `root`.

    UserError for another name, for files that are missing, damaged or do not belong together, and
    where a split lacks one of the classes.
    """
    if name not in CLASSES:
        raise UserError(f"--dataset {name}: choose one of {', '.join(CLASSES)}")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds the files of {name}")
    splits = _load_mnist(root) if name == "mnist" else _load_cifar10(root)
    for kind, split in splits.items():
        missing = set(range(10)) - set(split.labels.tolist())
        if missing:
            names = ", ".join(CLASSES[name][label] for label in sorted(missing))
            raise UserError(
                f"{root}: no picture of class {names} in the {kind} split of {name}; "
                f"use the official files, which have a thousand or so of each"
            )
    return LabelledSet(name, root, splits)


def _load_mnist(root: Path) -> dict[str, Split]:
    kinds = ("images-idx3", "labels-idx1")
    names = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in kinds]
    paths = _locate(root, MNIST_PLACES, names, ("", ".gz"), "MNIST")
    train, test = (_idx_split(*(paths[name] for name in pair)) for pair in (names[:2], names[2:]))
    return {"train": train, "test": test}


def _load_cifar10(root: Path) -> dict[str, Split]:
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    paths = _locate(root, CIFAR10_PLACES, names, ("",), "CIFAR-10 (python version)")
    *learned, test = (_read_batch(paths[name]) for name in names)
    pixels, labels = map(np.concatenate, zip(*learned, strict=True))
    return {"train": Split(pixels, labels), "test": test}


def _locate(
    root: Path, places: Sequence[str], names: Sequence[str], suffixes: Sequence[str], what: str
) -> dict[str, Path]:
    """Find the file of each name, all in one of the `places` below `root`; UserError if none has all.

    Of several suffixes the first that is there counts.
    """
    candidates = []
    for place in places:
        options = [(name, root / place / f"{name}{end}") for name in names for end in suffixes]
        candidates.append({name: path for name, path in reversed(options) if path.is_file()})
    best = max(candidates, key=len)  # of equals the first
    missing = [name for name in names if name not in best]
    if missing:
        folder = root / places[candidates.index(best)]
        found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
        packed = ".gz" in suffixes
        raise UserError(
            f"{root}: no complete {what} in it or its {', '.join(f'{p}/' for p in places[1:])}: "
            f"looked for {', '.join(missing)}{' (or the same with .gz)' if packed else ''} and found "
            f"in {folder} {', '.join(found[:LISTED]) or 'nothing'}{more}; put the official files "
            f"there, unpacked{' or as .gz' if packed else ''}"
        )
    return best


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: cannot be read: {' '.join(reason.split())}; get this file again")


# MNIST: the idx format of http://yann.lecun.com/exdb/mnist


def _idx_split(images: Path, labels: Path) -> Split:
    pixels, values = _read_idx(images, (28, 28)), _read_idx(labels, ())
    if len(pixels) != len(values):
        raise UserError(
            f"{images}: has {len(pixels)} pictures, but {labels.name} has {len(values)} labels; "
            f"get both from one source again"
        )
    if len(values) and values.max() > 9:
        raise _damaged(labels, f"a label is {values.max()}, and digits go from 0 to 9")
    return Split(pixels[:, None], values.astype(np.int64))


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read the unsigned bytes of an idx file, (n, *shape); UserError where it holds something else.

    Its head: two zero bytes, 8 for unsigned bytes, the number of dimensions, and the size of each
    as a big-endian 32-bit integer. Of an archive no more than what follows from it is unpacked.
    """
    dimensions = 1 + len(shape)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
                raise ValueError(
                    f"an idx file of unsigned bytes in {dimensions} dimension(s) starts with "
                    f"00 00 08 {dimensions:02x}, this file with {head[:4].hex(' ') or 'nothing'}"
                )
            count, *sizes = struct.unpack(f">{dimensions}I", head[4:])
            if tuple(sizes) != shape:
                own, expected = ("x".join(map(str, one)) for one in (sizes, shape))
                raise ValueError(f"pictures of {own} pixels, where {expected} are expected")
            if count > MOST_PICTURES:
                raise ValueError(f"{count} entries announced, where MNIST has 60000")
            announced = count * math.prod(shape)
            content = file.read(announced + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    if len(content) != announced:
        there = f"{len(content)} there: cut short?" if len(content) < announced else "more there"
        raise _damaged(path, f"{announced} bytes announced, {there}")
    return np.frombuffer(content, np.uint8).reshape(count, *shape)


# CIFAR-10: pickled dicts, of which only the plain parts are read


class _Stand:
    """What stands in for numpy's parts: it notes what it is called with, and its state."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _from_buffer(buffer: Any, dtype: _Stand, shape: Any, order: str) -> _Stand:
    """Note an array as pickle's protocol 5 says it: all at once."""
    array = _Stand()
    array.state = (1, shape, dtype, order == "F", buffer)
    return array


STAND_INS = {  # under the names that numpy's modules had before and have since numpy 2
    ("numpy", "ndarray"): _Stand,
    ("numpy", "dtype"): _Stand,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Stand for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Reads numbers, text, lists, dicts and numpy arrays; a pickle that names more is refused.

    A pickle can call anything it names. Here it finds stand-ins that only note what it says.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise ValueError(f"it names {module}.{name}, which no batch of CIFAR-10 does")
        return STAND_INS[module, name]


def _read_batch(path: Path) -> Split:
    """Read a batch: `data` uint8 (n, 3072), a row all red, then green, then blue; `labels` n ints."""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise _damaged(path, f"it has {size} bytes, where a batch of CIFAR-10 has 31 million")
    try:
        content = path.read_bytes()
        # Walked through first: a length or a place in the memo may ask for more than the file has.
        for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if "PUT" in operation.name and int(argument or 0) > number:
                raise ValueError("it puts an object where no batch of CIFAR-10 does")
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        # Keys are bytes where Python 2 wrote them, as it did the official files.
        named = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
        return _checked(named["data"], named["labels"])
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle fails in any way at all
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise _damaged(path, reason or type(error).__name__) from error


def _checked(array: Any, labels: Any) -> Split:
    """Take the parts of a batch; ValueError where they are not what they should be."""
    if not isinstance(array, _Stand) or not isinstance(array.state, tuple):
        raise ValueError(f"data is {type(array).__name__.lstrip('_').lower()}, not an array")
    _, shape, dtype, fortran, content = array.state
    kind = dtype.arguments[0]
    kind = kind.decode("latin-1") if isinstance(kind, bytes) else kind
    if kind != "u1":
        raise ValueError(f"data of numpy type {kind}, where u1 (bytes) is expected")
    pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
    if pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise ValueError(f"data of shape {pixels.shape}, where (n, 3072) is expected")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        count = f"{len(labels)} of them" if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"labels must be a list of {len(pixels)} numbers, and are {count}")
    wrong = [label for label in labels if type(label) is not int or not 0 <= label <= 9]
    if wrong:
        raise ValueError(f"a label is {wrong[0]!r}, and classes go from 0 to 9")
    return Split(pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64))
