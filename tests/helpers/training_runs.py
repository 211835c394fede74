"""What the tests of training share: a tiny configuration, pictures, and comparison of runs."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daad.config import Config
from daad.training import Trainer

SMALL = {
    **{"image_size": 32, "width": 4, "num_items": 5, "division": (2, 2, 1)},
    **{"epochs": 2, "batch_size": 4, "lr": 2e-3},
}


def config(**choices: Any) -> Config:
    return Config(**(SMALL | choices)).resolve()


class FakePictures:
    """Random pictures in memory, which notes what was asked for."""

    def __init__(self, count: int = 6, size: int = 32) -> None:
        random = torch.Generator().manual_seed(3)
        self.values = torch.rand(count, 3, size, size, generator=random) * 2 - 1
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        self.asked.append(indices.tolist())
        return self.values[indices].to(device)


def break_off(patch: pytest.MonkeyPatch, epoch: int) -> None:
    """Let training be interrupted as by Ctrl-C in this epoch, counted from 1 over all runs."""
    begun = 0
    run_epoch = Trainer._run_epoch

    def interrupted(*arguments: Any) -> dict[str, float]:
        nonlocal begun
        begun += 1
        if begun == epoch:
            raise KeyboardInterrupt
        return run_epoch(*arguments)

    patch.setattr(Trainer, "_run_epoch", interrupted)


def read_history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same(a: Any, b: Any, where: str = "checkpoint") -> None:
    """Bitwise equality of nested dicts and lists, wall-clock seconds apart."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds"}:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert a == b, where
