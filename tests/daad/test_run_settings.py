"""What config.json says of the devices that a run was trained on."""

import json
from pathlib import Path

import pytest

from daad import folder as folder_module
from daad.folder import Hardware, write_settings
from daad.io import save_checkpoint
from daad.network import CHECKPOINT
from tests.helpers.training_runs import config


def note(
    folder: Path, device: str, patch: pytest.MonkeyPatch, *, epoch: int = 0, resume: bool = True
) -> str:
    """The name in config.json when the run, `epoch` of 2 epochs old, goes on with `device`."""
    patch.setattr(folder_module, "device_name", lambda _: device)
    save_checkpoint(
        folder / CHECKPOINT, {"config": config().to_dict(), "epoch": epoch, "generator": {}}
    )
    write_settings(folder, config(), {"root": "x"}, Hardware("cpu"), resume=resume)
    name: str = json.loads((folder / "config.json").read_text())["hardware"]["name"]
    return name


def test_all_devices_of_a_run_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert note(tmp_path, "a CPU", monkeypatch, resume=False) == "a CPU"
    assert note(tmp_path, "a CPU", monkeypatch) == "a CPU"
    assert note(tmp_path, "a GPU", monkeypatch, epoch=1) == "a CPU, then a GPU"
    assert note(tmp_path, "a GPU", monkeypatch, epoch=1) == "a CPU, then a GPU"
    # What is only evaluated there was not trained there.
    assert note(tmp_path, "another", monkeypatch, epoch=2) == "a CPU, then a GPU"
    assert note(tmp_path, "another", monkeypatch, resume=False) == "another"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"hardware": {}}'])
def test_without_a_readable_file_it_is_the_one_at_hand(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(text)
    assert note(tmp_path, "a GPU", monkeypatch) == "a GPU"
