"""What the guide's tables are made with, on small files in MNIST's form."""

import math
from pathlib import Path

import pytest

import mnist_memory
from mnist_memory import Row
from tests.helpers.labelled_files import write_mnist


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_mnist(tmp_path, train=200, test=40)
    return tmp_path


def test_pictures_are_of_the_digit_and_of_others(folder: Path) -> None:
    digits = mnist_memory.load(folder)
    assert [len(one) for one in digits] == [20, 4, 36]
    assert digits.train.shape[1:] == (1, 28, 28)
    assert 0.9 < digits.train.max() <= 1


def test_a_filled_memory_gives_the_encoder_its_gradient(folder: Path) -> None:
    digits = mnist_memory.load(folder)
    plain, uniform, maps = (
        mnist_memory.run(Row(start, num_items=16), digits, seed=0, steps=3)
        for start in ("none", "uniform", "maps")
    )
    assert plain.gradient > maps.gradient > 30 * uniform.gradient
    assert maps.length > 30 * uniform.length
    assert 0 < maps.kept < 1
    assert math.isfinite(maps.auroc)
    assert plain.length == plain.kept == 1


def test_items_that_nothing_uses_are_revived(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_memory, "REVIVED_AT", (5,))
    digits = mnist_memory.load(folder)
    left, revived = (
        mnist_memory.run(Row(start, 0.01, num_items=16), digits, seed=0, steps=7)
        for start in ("uniform", "revived")
    )
    assert revived.dead < left.dead


def test_every_row_is_a_model_that_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mnist_memory, "SEEDS", {"starts": 2, "settings": 1})
    monkeypatch.setattr(mnist_memory, "starts", lambda: [Row("deviation 1")])
    monkeypatch.setattr(mnist_memory, "settings", lambda: [Row(num_items=8, block=(32, 1, 7))])
    monkeypatch.setattr(mnist_memory.run, "__defaults__", (1,))
    monkeypatch.setattr("sys.argv", ["mnist_memory.py", str(folder)])
    mnist_memory.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| deviation 1 | 1 | 64 | (32, 7, 7) |")
    assert lines[3].startswith("| maps | 1 | 8 | (32, 1, 7) |")


def test_every_block_of_the_table_fits() -> None:
    for row in [*mnist_memory.starts(), *mnist_memory.settings()]:
        sizes = zip(mnist_memory.MAP, row.block, strict=True)
        assert all(size % part == 0 for size, part in sizes)
