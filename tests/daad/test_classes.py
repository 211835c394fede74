"""MNIST and CIFAR-10: official files read as they are, and refused where they are not."""

import gzip
import os
import pickle
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daad.classes import CLASSES, MOST_BYTES, MOST_PICTURES, load_labelled
from daad.io import UserError
from tests.helpers.labelled_files import idx, labels_of, python_2_batch, write_cifar10, write_mnist

REAL = Path(os.environ.get("BLOCKMEM_DATA", Path(__file__).parents[3] / "shared" / "data"))
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def refusal(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_labelled(name, root)
    text = str(caught.value)
    assert "\n" not in text
    return text


def compress(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


# MNIST


@pytest.mark.parametrize("place", [".", "raw", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_found_packed_or_not(tmp_path: Path, place: str, packed: bool) -> None:
    arrays = write_mnist(tmp_path / place)
    if packed:
        for name in arrays:
            compress(tmp_path / place / name)
    mnist = load_labelled("mnist", tmp_path)
    assert mnist.classes == tuple("0123456789")
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels, labels = mnist.splits[split].pixels, mnist.splits[split].labels
        assert pixels.dtype == np.uint8
        assert labels.dtype == np.int64
        assert np.array_equal(pixels, arrays[f"{prefix}-images-idx3-ubyte"][:, None])
        assert np.array_equal(labels, arrays[f"{prefix}-labels-idx1-ubyte"])


def test_an_unpacked_file_goes_before_its_archive(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for path in list(tmp_path.iterdir()):
        (tmp_path / f"{path.name}.gz").write_bytes(b"not read")
    assert len(load_labelled("mnist", tmp_path).splits["train"].labels) == 40


def test_the_folder_that_has_most_is_the_one_meant(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    shutil.copy(tmp_path / "MNIST" / "raw" / IMAGES, tmp_path)
    assert len(load_labelled("mnist", tmp_path).splits["test"].labels) == 20


def test_missing_files_are_named_with_what_is_there(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: no such folder" in refusal("mnist", tmp_path / "none")
    empty = refusal("mnist", tmp_path)
    assert f"looked for {IMAGES}, {LABELS}, t10k-images-idx3-ubyte" in empty
    assert "(or the same with .gz)" in empty
    assert "raw/, MNIST/raw/" in empty
    assert f"found in {tmp_path} nothing" in empty

    write_mnist(tmp_path / "raw")
    (tmp_path / "raw" / LABELS).unlink()
    partial = refusal("mnist", tmp_path)
    assert f"looked for {LABELS} (or" in partial
    assert f"found in {tmp_path / 'raw'} t10k-images-idx3-ubyte, t10k-labels" in partial

    for number in range(9):
        (tmp_path / f"{number}.txt").touch()
    assert "7.txt and 2 more" in refusal("cifar10", tmp_path)  # the ninth file and raw


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        (IMAGES, lambda old: old[:-1], "31360 bytes announced, 31359 there: cut short?"),
        (IMAGES, lambda old: old + b"0", "31360 bytes announced, more there"),
        (IMAGES, lambda old: b"", "starts with 00 00 08 03, this file with nothing"),
        (IMAGES, lambda old: old[:9], "starts with 00 00 08 03"),
        (IMAGES, lambda old: b"\x89PNG" + old, "starts with 00 00 08 03, this file with 89 50 4e"),
        (IMAGES, lambda old: idx(np.zeros((40, 20, 20))), "20x20 pixels, where 28x28 are expected"),
        (IMAGES, lambda old: idx(np.zeros((41, 28, 28))), "has 41 pictures, but train-labels"),
        (
            LABELS,
            lambda old: idx(np.zeros((40, 28, 28))),
            "00 00 08 01, this file with 00 00 08 03",
        ),
        (LABELS, lambda old: old[:-1] + b"\x0a", "a label is 10"),
        (LABELS, lambda old: idx(labels_of(40) % 9), "no picture of class 9 in the train split"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_idx_files_are_named(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes], text: str
) -> None:
    write_mnist(tmp_path)
    path = tmp_path / name
    path.write_bytes(change(path.read_bytes()))
    refused = refusal("mnist", tmp_path)
    assert text in refused
    if "no picture" not in text:
        assert str(path) in refused


@pytest.mark.parametrize(
    "damage",
    [lambda old: old[:-9], lambda old: b"hello", lambda old: old[:50] + b"\xff" * 9 + old[59:]],
    ids=["cut short", "of another kind", "altered"],
)
def test_damaged_archives_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_mnist(tmp_path)
    packed = compress(tmp_path / IMAGES)
    packed.write_bytes(damage(packed.read_bytes()))
    assert f"{packed}: cannot be read" in refusal("mnist", tmp_path)


# CIFAR-10


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_cifar10_is_read_however_it_was_pickled(tmp_path: Path, place: str) -> None:
    arrays = write_cifar10(tmp_path / place)
    cifar10 = load_labelled("cifar10", tmp_path)
    assert cifar10.classes == CLASSES["cifar10"]
    train, test = cifar10.splits["train"], cifar10.splits["test"]
    assert np.array_equal(train.pixels, np.concatenate(arrays[:5]).reshape(-1, 3, 32, 32))
    assert np.array_equal(test.pixels, arrays[5].reshape(-1, 3, 32, 32))
    assert train.labels.tolist() == labels_of(10).tolist() * 5
    assert cifar10.classes[3] == "cat"


def test_columns_first_is_read_in_its_order(tmp_path: Path) -> None:
    arrays = write_cifar10(tmp_path)
    batch = {"data": np.asfortranarray(arrays[5]), "labels": labels_of(10).tolist()}
    for protocol in (4, 5):
        (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
        pixels = load_labelled("cifar10", tmp_path).splits["test"].pixels
        assert np.array_equal(pixels, arrays[5].reshape(-1, 3, 32, 32))


class Calls:
    """Pickled, this is a call of `function`, made by whoever unpickles it without care."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "named"), [(os.mkdir, "posix.mkdir|nt.mkdir"), (eval, "builtins.eval")]
)
def test_code_in_a_batch_is_refused_and_not_run(
    tmp_path: Path, function: Callable[..., object], named: str
) -> None:
    write_cifar10(tmp_path)
    made = tmp_path / "made"
    argument = str(made) if function is os.mkdir else f"__import__('os').mkdir({str(made)!r})"
    trap = pickle.dumps({"data": Calls(function, argument), "labels": []})
    (tmp_path / "data_batch_3").write_bytes(trap)
    refused = refusal("cifar10", tmp_path)
    assert any(f"names {name}, which no batch" in refused for name in named.split("|"))
    assert "data_batch_3" in refused
    assert not made.exists()
    pickle.loads(trap)  # it would have been made
    assert made.exists()


def batch(**parts: object) -> bytes:
    whole = {"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}
    return pickle.dumps(whole | parts)


OFFICIAL = python_2_batch(np.zeros((2, 3072), np.uint8), [0, 1])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "cannot be read"),
        (b"hello", "cannot be read"),
        (OFFICIAL[:-100], "cannot be read"),
        (pickle.dumps([1, 2]), "cannot be read"),
        (pickle.dumps({"labels": []}), "no 'data' in it"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}), "no 'labels' in it"),
        (batch(data=[1, 2]), "data is list, not an array"),
        (batch(data=np.zeros((10, 3072))), "numpy type f8, where u1"),
        (batch(data=np.zeros((10, 1024), np.uint8)), "shape (10, 1024), where (n, 3072)"),
        (batch(data=np.zeros(3072, np.uint8)), "shape (3072,), where (n, 3072)"),
        (OFFICIAL.replace(b"M\x02\x00M\x00\x0c", b"M\x03\x00M\x00\x0c"), "cannot reshape"),
        (batch(labels=[1, 2]), "labels must be a list of 10 numbers, and are 2 of them"),
        (batch(labels=7), "labels must be a list of 10 numbers, and are int"),
        (batch(labels=[*range(9), 10]), "a label is 10"),
        (batch(labels=[*range(9), True]), "a label is True"),
        (batch(labels=[*range(9), 8]), "no picture of class truck in the test split"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_batches_are_named(tmp_path: Path, content: bytes, text: str) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / "test_batch"
    path.write_bytes(content)
    refused = refusal("cifar10", tmp_path)
    assert text in refused
    if "no picture" not in text:
        assert str(path) in refused


def test_missing_batches_are_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    refused = refusal("cifar10", tmp_path)
    assert "looked for data_batch_4 and found" in refused
    assert "data_batch_5, test_batch" in refused


def test_other_sets_are_not_known(tmp_path: Path) -> None:
    assert "--dataset svhn: choose one of mnist, cifar10" in refusal("svhn", tmp_path)


# Files that unpack to more than they should


def test_an_archive_is_unpacked_only_as_far_as_its_head_says(tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte: with it in memory this test would fail."""
    write_mnist(tmp_path)
    head = idx(np.zeros((40, 28, 28)))[:16]
    (tmp_path / IMAGES).unlink()
    with gzip.open(tmp_path / f"{IMAGES}.gz", "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(64):
            file.write(bytes(2**24))
    tracemalloc.start()
    try:
        assert "31360 bytes announced, more there" in refusal("mnist", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_head_that_announces_too_much_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    head = b"\x00\x00\x08\x03" + struct.pack(">3I", MOST_PICTURES + 1, 28, 28)
    (tmp_path / IMAGES).write_bytes(head)
    assert f"{MOST_PICTURES + 1} entries announced" in refusal("mnist", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x96" + struct.pack("<Q", 2**45) + b"x.",  # a bytearray of 32 TiB
        b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b".",  # in the last place of the memo
        b"\x80\x04\x95" + struct.pack("<Q", 2**45) + b"].",  # a frame
    ],
    ids=["bytearray", "memo", "frame"],
)
def test_a_pickle_that_asks_for_more_memory_than_it_has_bytes(
    tmp_path: Path, content: bytes
) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(content)
    assert "data_batch_2: cannot be read" in refusal("cifar10", tmp_path)


def test_a_pickle_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    with (tmp_path / "test_batch").open("wb") as file:
        file.truncate(int(MOST_BYTES) + 1)  # takes no room on the disk
    assert "where a batch of CIFAR-10 has 31 million" in refusal("cifar10", tmp_path)


def test_a_label_too_long_to_be_printed(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(batch(labels=[*range(9), 10**5000]))
    assert "test_batch: cannot be read" in refusal("cifar10", tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_a_file_holds_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("damaged")
    name = data.draw(st.sampled_from(["mnist", "cifar10"]))
    if name == "mnist":
        write_mnist(root)
    else:
        write_cifar10(root)
    path = data.draw(st.sampled_from(sorted(root.iterdir())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        # Most of a file is pixels, which may be anything: aim at its head and its end.
        place = data.draw(st.integers(0, 120) | st.integers(-120, -1))
        content[place % len(content)] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    with suppress(UserError):
        dataset = load_labelled(name, root)
        for split in dataset.splits.values():
            assert len(split.pixels) == len(split.labels)
            assert set(split.labels.tolist()) == set(range(10))


# The official files


@pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason=f"no MNIST files in {REAL}")
def test_the_official_mnist() -> None:
    mnist = load_labelled("mnist", REAL / "mnist")
    train, test = mnist.splits["train"], mnist.splits["test"]
    counts = [np.bincount(split.labels).tolist() for split in (train, test)]
    assert counts[0] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts[1] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.pixels.shape == (60000, 1, 28, 28)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert train.pixels.mean() / 255 == pytest.approx(0.1307, abs=1e-4)  # as is widely known


@pytest.mark.skipif(
    not (REAL / "cifar-10-batches-py").is_dir(), reason=f"no cifar-10-batches-py in {REAL}"
)
def test_the_official_cifar10() -> None:
    cifar10 = load_labelled("cifar10", REAL)
    for split, count in (("train", 5000), ("test", 1000)):
        assert np.bincount(cifar10.splits[split].labels).tolist() == [count] * 10
