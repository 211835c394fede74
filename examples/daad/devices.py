"""Where a run computes: the choice of device, and Fabric set up for one process or several."""

import os
import platform
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import DDPStrategy, SingleDeviceStrategy

from daad.errors import UserError


def pick_device(name: str) -> torch.device:
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`; UserError for any other."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (index and not index.isdigit()) or name[-1] == ":"):
        raise UserError(f"--device {name}: give auto, cpu, cuda, or one GPU such as cuda:1")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: PyTorch sees {torch.cuda.device_count()} GPUs here; "
            f"use a smaller index, or --device cpu"
        )
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads that PyTorch uses on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} thread(s)"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def start_fabric(device: str, devices: int, num_nodes: int, precision: str) -> Fabric:
    """Fabric for `devices` devices on each of `num_nodes` machines, its processes started.

    With several devices Fabric starts this script once more for each (or `fabric run` has done
    so: then its options decide, and what is left at its default here does not contradict them).
    `precision` is "32", "bf16" or "16". UserError for a combination that cannot be.
    """
    chosen = pick_device(device)
    if chosen.index is not None and devices * num_nodes > 1:
        raise UserError(f"--device {device} is one GPU; to use {devices} devices give cuda")
    if precision == "16" and chosen.type == "cpu":
        raise UserError("--precision 16 needs a GPU; use bf16 or 32 on the CPU")
    by_fabric_run = os.environ.get("LT_CLI_USED") == "1"
    try:
        fabric = Fabric(
            accelerator="auto" if by_fabric_run and device == "auto" else chosen.type,
            devices=_devices(chosen, devices, by_fabric_run),
            num_nodes=num_nodes,
            **_precision(precision),
        )
    except (RuntimeError, ValueError) as error:  # Fabric's own words name the options at odds
        raise UserError(f"cannot compute as asked: {' '.join(str(error).split())}") from error
    if not isinstance(fabric.strategy, SingleDeviceStrategy | DDPStrategy):
        raise UserError("fabric run --strategy: only ddp is supported for several devices")
    if not by_fabric_run:
        fabric.launch()
    return fabric


def _devices(chosen: torch.device, devices: int, by_fabric_run: bool) -> int | str | list[int]:
    if chosen.index is not None:
        return [chosen.index]
    return "auto" if by_fabric_run and devices == 1 else devices


def _precision(precision: str) -> dict[str, Any]:
    if precision == "16":
        # Fabric's scaler would be shared by both optimisers, and the one that overflows would
        # lower the other's scale. It is switched off; `training` has a scaler for each.
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        return {"plugins": [MixedPrecision("16-mixed", device="cuda", scaler=scaler)]}
    return {"precision": {"32": "32-true", "bf16": "bf16-mixed"}[precision]}


def is_first_process() -> bool:
    """Whether this process is the one that writes files; asked before Fabric has started others."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    names = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)
