"""What the machine has: cores, memory, the names of its processors, and the device to compute on."""

import os
import platform
from pathlib import Path

import torch

from daad.errors import UserError

ROOT = Path("/")  # where Linux keeps `proc` and `sys`
LAPTOP = 8 * 2**30  # bytes of memory, where the system tells nothing


def count_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory(root: Path = ROOT) -> int:
    """Bytes that can be taken without swapping, and no more than the container's limit.

    Where the system does not tell what is available, the answer is all the memory it has.
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
    """Read the first `KEY: VALUE` of the file `/proc/NAME`; Linux only.

    Raises OSError where there is no such file, and KeyError where it does not hold the key.
    """
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
    """Choose the device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`.

    UserError for any other name, and for a GPU that PyTorch does not see.
    """
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
