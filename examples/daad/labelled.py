"""MNIST and CIFAR-10 from the files that their authors publish, with the official splits.

    ROOT/train-images-idx3-ubyte ...           MNIST, or in ROOT/MNIST/raw; .gz is read too
    ROOT/cifar-10-batches-py/data_batch_1 ...  CIFAR-10, or in ROOT itself

Nothing is downloaded. A damaged file is an error with its name.
"""

import gzip
import hashlib
import math
import pickle
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from daad.errors import UserError

MNIST_CLASSES = tuple("0123456789")
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
MNIST_PLACES = (".", "raw", "MNIST/raw")  # the last is torchvision's
CIFAR10_PLACES = (".", "cifar-10-batches-py")
LISTED = 8  # file names at most in an error


@dataclass(frozen=True)
class Split:
    """pixels: uint8 (n, channels, h, w); labels: int64 (n,), places in the set's classes."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class LabelledSet:
    """A data set of ten classes, in the order of its files; `root` is the folder it was asked of."""

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: dict[str, Split]  # "train" and "test"

    @cached_property
    def fingerprint(self) -> str:
        """A short word for all pixels and labels, by which other data is noticed."""
        digest = hashlib.blake2b(digest_size=8)
        for split in self.splits.values():
            digest.update(np.ascontiguousarray(split.pixels))
            digest.update(np.ascontiguousarray(split.labels))
        return digest.hexdigest()


def load_labelled(name: str, root: Path) -> LabelledSet:
    """Read "mnist" or "cifar10" from the folder `root`.

    UserError for another name, for files that are missing, damaged or do not belong together, and
    where a split lacks one of the classes.
    """
    if name not in READERS:
        raise UserError(f"--dataset {name}: choose one of {', '.join(READERS)}")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds the files of {name}")
    dataset = READERS[name](root)
    for kind, split in dataset.splits.items():
        missing = set(range(len(dataset.classes))) - set(split.labels.tolist())
        if missing:
            names = ", ".join(dataset.classes[label] for label in sorted(missing))
            raise UserError(
                f"{root}: no picture of class {names} in the {kind} split of {name}; "
                f"use the official files, which have a thousand or so of each"
            )
    return dataset


def _load_mnist(root: Path) -> LabelledSet:
    names = [
        f"{split}-{kind}-ubyte"
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    paths = _locate(root, MNIST_PLACES, names, ("", ".gz"), "MNIST")
    train, test = (_idx_split(*(paths[name] for name in pair)) for pair in (names[:2], names[2:]))
    return LabelledSet("mnist", root, MNIST_CLASSES, {"train": train, "test": test})


def _load_cifar10(root: Path) -> LabelledSet:
    names = [f"data_batch_{number}" for number in range(1, 6)]
    paths = _locate(
        root, CIFAR10_PLACES, [*names, "test_batch"], ("",), "CIFAR-10 (python version)"
    )
    batches = [_read_batch(paths[name]) for name in names]
    pixels, labels = (
        np.concatenate([getattr(batch, part) for batch in batches]) for part in ("pixels", "labels")
    )
    splits = {"train": Split(pixels, labels), "test": _read_batch(paths["test_batch"])}
    return LabelledSet("cifar10", root, CIFAR10_CLASSES, splits)


READERS = {"mnist": _load_mnist, "cifar10": _load_cifar10}


# Finding files


def _locate(
    root: Path, places: Sequence[str], names: Sequence[str], suffixes: Sequence[str], what: str
) -> dict[str, Path]:
    """The file of each name, all in one of the `places` below `root`; UserError where none has all.

    Of several suffixes the first that is there counts.
    """
    candidates = []
    for place in places:
        options = [
            (name, root / place / f"{name}{suffix}") for name in names for suffix in suffixes
        ]
        candidates.append({name: path for name, path in reversed(options) if path.is_file()})
    best = max(candidates, key=len)  # of equals the first
    missing = [name for name in names if name not in best]
    if missing:
        folder = root / places[candidates.index(best)]
        found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        also = " (or the same with .gz)" if ".gz" in suffixes else ""
        below = ", ".join(f"{place}/" for place in places if place != ".")
        raise UserError(
            f"{root}: no complete {what} in it or its {below}: looked for {', '.join(missing)}{also}"
            f" and found in {folder} {_listing(found)}; put the official files there, unpacked"
            f"{' or as .gz' if also else ''}"
        )
    return best


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more if names else "nothing"


# MNIST: the idx format of http://yann.lecun.com/exdb/mnist


def _idx_split(images: Path, labels: Path) -> Split:
    pixels = _read_idx(images, (28, 28))
    values = _read_idx(labels, ())
    if len(pixels) != len(values):
        raise UserError(
            f"{images}: has {len(pixels)} pictures, but {labels.name} has {len(values)} labels; "
            f"get both from one source again"
        )
    if len(values) and values.max() >= len(MNIST_CLASSES):
        raise _damaged(labels, f"a label is {values.max()}, and digits go from 0 to 9")
    return Split(pixels[:, None], values.astype(np.int64))


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The unsigned bytes of an idx file, (n, *shape); UserError where it holds something else.

    Its head: two zero bytes, 8 for unsigned bytes, the number of dimensions, and the size of each
    as a big-endian 32-bit integer.
    """
    content = _content(path)
    dimensions = 1 + len(shape)
    head = 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes((0, 0, 8, dimensions)):
        raise _damaged(
            path,
            f"an idx file of unsigned bytes in {dimensions} dimension(s) starts with "
            f"00 00 08 {dimensions:02x}, this file with {content[:4].hex(' ') or 'nothing'}",
        )
    sizes = struct.unpack(f">{dimensions}I", content[4:head])
    if sizes[1:] != shape:
        raise _damaged(
            path, f"pictures of {_times(sizes[1:])} pixels, where {_times(shape)} are expected"
        )
    if len(content) - head != math.prod(sizes):
        raise _damaged(
            path, f"{math.prod(sizes)} bytes announced, {len(content) - head} there: cut short?"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(sizes)


def _content(path: Path) -> bytes:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            content: bytes = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    return content


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


# CIFAR-10: pickled dicts, of which only the plain parts are read


class _Array:
    """What a pickle says of a numpy array: its state, of which numpy itself restores nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type:
    """What a pickle says of a numpy dtype: its name, such as u1."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and the like, which single bytes do not have


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(buffer: Any, dtype: _Type, shape: Any, order: str) -> _Array:
    """As pickle's protocol 5 says it: all at once."""
    array = _Array()
    array.state = (1, shape, dtype, order == "F", buffer)
    return array


STAND_INS = {  # under the names that numpy's modules had before and have since numpy 2
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}


class _Unpickler(pickle.Unpickler):
    """Reads numbers, text, lists, dicts and numpy arrays; a pickle that names more is refused.

    A pickle can call anything it names. Here it finds stand-ins that only note what it says.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which no batch of CIFAR-10 does"
            )
        return STAND_INS[module, name]


def _read_batch(path: Path) -> Split:
    """One batch: `data` uint8 (n, 3072), a row all red, then green, then blue; `labels` n ints."""
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
        # Keys are bytes where Python 2 wrote them, as it did the official files.
        named = {key.decode() if isinstance(key, bytes) else key: content[key] for key in content}
        pixels, labels = _bytes_of(named["data"]), named["labels"]
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle fails in any way at all
        reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise _damaged(path, reason or type(error).__name__) from error
    if pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise _damaged(path, f"data of shape {pixels.shape}, where (n, 3072) is expected")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        count = f"{len(labels)} of them" if isinstance(labels, list) else type(labels).__name__
        raise _damaged(path, f"labels must be a list of {len(pixels)} numbers, and are {count}")
    wrong = [label for label in labels if type(label) is not int or not 0 <= label <= 9]
    if wrong:
        raise _damaged(path, f"a label is {wrong[0]!r}, and classes go from 0 to 9")
    return Split(pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64))


def _bytes_of(array: Any) -> np.ndarray:
    """The uint8 array that was noted; ValueError where it is none."""
    if not isinstance(array, _Array) or not isinstance(array.state, tuple):
        raise ValueError(f"data is {type(array).__name__.lstrip('_').lower()}, not an array")
    _, shape, dtype, fortran, content = array.state
    if dtype.name != "u1":
        raise ValueError(f"data of numpy type {dtype.name}, where u1 (bytes) is expected")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: cannot be read: {' '.join(reason.split())}; get this file again")
