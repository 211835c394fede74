"""Small MNIST and CIFAR-10 files in the official forms, made for a test."""

import pickle
import struct
from pathlib import Path

import numpy as np


def labels_of(count: int) -> np.ndarray:
    """0 to 9 in turn, backwards: no class stands where its number does."""
    return np.arange(count, dtype=np.uint8)[::-1] % 10


def idx(values: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, train: int = 40, test: int = 20) -> dict[str, np.ndarray]:
    """The four files; a digit is a bright bar at a place of its own, in noise. Gives the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", train), ("t10k", test)):
        labels = labels_of(count)
        pixels = random.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for picture, label in zip(pixels, labels, strict=True):
            picture[4:24, 3 + 2 * label : 6 + 2 * label] = 250
        arrays |= {f"{split}-images-idx3-ubyte": pixels, f"{split}-labels-idx1-ubyte": labels}
    for name, values in arrays.items():
        (folder / name).write_bytes(idx(values))
    return arrays


def python_2_batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch as the official ones were written, by Python 2 in protocol 2: str is bytes there."""
    rows = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"M" + struct.pack("<H", pixels.shape[0]) + b"M" + struct.pack("<H", pixels.shape[1])
        + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff"
        b"\xffK\x00tb\x89T" + struct.pack("<i", len(rows)) + rows + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    name = b"U\x0bbatch_labelU\x07batch 1"
    return b"\x80\x02}(" + name + b"U\x06labels" + numbers + b"U\x04data" + array + b"u."


def write_cifar10(folder: Path, each: int = 10) -> list[np.ndarray]:
    """The six batches of `each` pictures, in all the ways they are pickled. Gives the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    arrays = []
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        pixels = random.integers(0, 256, (each, 3072), dtype=np.uint8)
        labels = labels_of(each).tolist()
        if number == 0:
            content = python_2_batch(pixels, labels)
        else:
            keys = ("data", "labels") if number % 2 else (b"data", b"labels")
            batch = dict(zip(keys, (pixels, labels), strict=True))
            content = pickle.dumps(batch, protocol=4 if number < 4 else 5)
        (folder / name).write_bytes(content)
        arrays.append(pixels)
    return arrays
