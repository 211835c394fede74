"""Which device is chosen, and what Fabric is told."""

import pytest
import torch

from daad.devices import device_name, is_first_process, pick_device, start_fabric
from daad.errors import UserError


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


def test_a_processor_is_named_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        name, _, rest = device_name(torch.device("cpu")).rpartition(", ")
        assert name
        assert rest == f"{threads} thread(s)"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, {device.index}")
    assert device_name(torch.device("cuda", 1)) == "a GPU, 1"


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
