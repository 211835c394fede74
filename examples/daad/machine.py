"""What the machine has: cores, memory, the names of its processors, and the devices to compute on."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from daad.io import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ROOT = Path("/")  # where Linux keeps `proc` and `sys`
LAPTOP = 8 * 2**30  # bytes of memory, where the system tells nothing


def count_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory(root: Path = ROOT) -> int:
    """Count the bytes that can be taken without swapping, within the container's limit.

    Where the system does not tell them, it is all the memory that it has.
    """
    try:
        available = 1024 * int(proc_value("meminfo", "MemAvailable", root).split()[0])
    except (OSError, KeyError, ValueError):
        if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
            return LAPTOP
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    container = root / "sys/fs/cgroup/memory.max"  # a number, or "max" for no limit
    limit = container.read_text(encoding="ascii").strip() if container.is_file() else ""
    return min(available, int(limit)) if limit.isdigit() else available


def proc_value(name: str, key: str, root: Path = ROOT) -> str:
    """Read the first `KEY: VALUE` of the file `/proc/NAME`; OSError or KeyError if there is none."""
    for line in (root / "proc" / name).read_text(encoding="utf-8").splitlines():
        found, _, value = line.partition(":")
        if found.strip() == key:
            return value.strip()
    raise KeyError(key)


def processor_name(root: Path = ROOT) -> str:
    """Name the processor, such as "Intel(R) Xeon(R) CPU", or at least its architecture."""
    try:
        name = proc_value("cpuinfo", "model name", root)
    except (OSError, KeyError):  # another system or another kind of processor
        name = ""
    return name or platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """Name the GPU, or the processor with the number of threads that PyTorch uses on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {torch.get_num_threads()} thread(s)"


def pick_device(name: str) -> torch.device:
    """Choose `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`; UserError for others."""
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


def is_first_process() -> bool:
    """Tell whether this process writes the files; asked before Fabric has started others."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    names = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def start_fabric(
    device: str, devices: int, num_nodes: int, precision: str, logs: Path | None = None
) -> "Fabric":
    """Set up Fabric for `devices` devices on each of `num_nodes` machines, and start its processes.

    With several devices Fabric starts this script once more for each. Where `fabric run` has done so,
    its options decide, and what is left at its default here does not contradict them.
    `precision` is "32", "bf16" or "16". logs: a folder for TensorBoard. UserError for a combination
    that cannot be.
    """
    # Here, since the benchmarks ask for names alone.
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.single_device import SingleDeviceStrategy

    chosen = pick_device(device)
    if chosen.index is not None and devices * num_nodes > 1:
        raise UserError(f"--device {device} is one GPU; to use {devices} devices give cuda")
    if precision == "16" and chosen.type == "cpu":
        raise UserError("--precision 16 needs a GPU; use bf16 or 32 on the CPU")
    by_fabric_run = os.environ.get("LT_CLI_USED") == "1"
    accelerator = "auto" if by_fabric_run and device == "auto" else chosen.type
    count: int | str = "auto" if by_fabric_run and devices == 1 else devices
    wanted = count if chosen.index is None else [chosen.index]
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=wanted,
            num_nodes=num_nodes,
            loggers=_loggers(logs),
            **_precision(precision),
        )
    except (RuntimeError, ValueError) as error:  # Fabric's own words name the options at odds
        raise UserError(f"cannot compute as asked: {' '.join(str(error).split())}") from error
    if not isinstance(fabric.strategy, SingleDeviceStrategy | DDPStrategy):
        raise UserError("fabric run --strategy: only ddp is supported for several devices")
    if not by_fabric_run:
        fabric.launch()
    return fabric


def _loggers(logs: Path | None) -> list[Any]:
    if logs is None:
        return []
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    try:
        return [TensorBoardLogger(logs.parent, name=logs.name, version="")]
    except ModuleNotFoundError as error:
        raise UserError(
            "--tensorboard needs one package more: pip install tensorboard, or tensorboardX"
        ) from error


def _precision(precision: str) -> dict[str, Any]:
    from lightning_fabric.plugins import MixedPrecision

    if precision == "16":
        # Fabric's scaler would be shared by both optimisers, and the one that overflows would
        # lower the other's scale. It is switched off; `training` has a scaler for each.
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        return {"plugins": [MixedPrecision("16-mixed", device="cuda", scaler=scaler)]}
    return {"precision": {"32": "32-true", "bf16": "bf16-mixed"}[precision]}


def end_processes(fabric: "Fabric") -> None:
    """Let the first process alone go on; the others end here, their work being done."""
    if fabric.world_size == 1:
        return
    fabric.barrier()
    torch.distributed.destroy_process_group()
    if not fabric.is_global_zero:
        raise SystemExit(0)
