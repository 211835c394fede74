"""What the machine says of itself, and which device is chosen."""

import platform
from pathlib import Path

import pytest
import torch

from daad.io import UserError
from daad.machine import (
    available_memory,
    count_cores,
    device_name,
    is_first_process,
    pick_device,
    proc_value,
    processor_name,
    start_fabric,
)

MEMINFO = "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n"


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A root folder with as much of Linux's `proc` and `sys` as is read."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    return tmp_path


def test_a_process_has_a_core() -> None:
    assert count_cores() >= 1


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 8_192_000_000), ("max\n", 8_192_000_000), ("1000\n", 1000), ("9" * 12, 8_192_000_000)],
)
def test_memory_is_what_is_available_within_the_limit(
    limit: str | None, expected: int, system: Path
) -> None:
    (system / "proc/meminfo").write_text(MEMINFO)
    if limit is not None:
        (system / "sys/fs/cgroup/memory.max").write_text(limit)
    assert available_memory(system) == expected


@pytest.mark.parametrize("text", [None, "", "MemTotal: 16 kB\n", "MemAvailable: much\n"])
def test_memory_is_a_number_of_bytes_on_any_system(text: str | None, system: Path) -> None:
    if text is not None:
        (system / "proc/meminfo").write_text(text)
    assert available_memory(system) > 2**26
    assert available_memory() > 2**26


def test_a_key_of_proc_is_a_whole_one(system: Path) -> None:
    (system / "proc/cpuinfo").write_text("model\t: 85\nmodel name\t: A CPU: fast\n")
    assert proc_value("cpuinfo", "model", system) == "85"
    assert proc_value("cpuinfo", "model name", system) == "A CPU: fast"
    with pytest.raises(KeyError, match="name"):
        proc_value("cpuinfo", "name", system)


def test_a_processor_has_a_name_on_any_system(system: Path) -> None:
    other = platform.processor() or platform.machine()
    assert processor_name(system) == other
    (system / "proc/cpuinfo").write_text("flags: fpu\n")
    assert processor_name(system) == other
    (system / "proc/cpuinfo").write_text("model name: One\n\nmodel name: Another\n")
    assert processor_name(system) == "One"


def test_a_processor_is_named_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert device_name(torch.device("cpu")) == f"{processor_name()}, {threads} thread(s)"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, {device.index}")
    assert device_name(torch.device("cuda", 1)) == "a GPU, 1"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "cpu:1", "cuda:99"])
def test_unknown_device_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match="--device"):
        pick_device(name)


def test_auto_device_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="is one GPU"):
        start_fabric("cuda:1", 2, 1, "32")


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
    ids=str,
)
def test_first_process_by_its_environment(
    environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="--precision 16 needs a GPU"):
        start_fabric("cpu", 1, 1, "16")


def test_fabric_run_decides_what_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CLI_USED": "1", "DEVICES": "1", "NUM_NODES": "1"}.items():
        monkeypatch.setenv(f"LT_{name}", value)
    monkeypatch.setenv("LT_ACCELERATOR", "cpu")
    assert start_fabric("auto", 1, 1, "32").device == torch.device("cpu")
    monkeypatch.setenv("LT_PRECISION", "bf16-mixed")
    with pytest.raises(UserError, match=r"cannot compute as asked: .*precision"):
        start_fabric("cpu", 1, 1, "32")
