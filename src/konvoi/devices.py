"""The one seam between Konvoi and the kinds of device: everything else asks here, through `torch.accelerator`."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

CPU = "cpu"


def kind() -> str:
    """The kind of accelerator at hand ("cuda", "xpu", "mps" ...), else "cpu"."""
    return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else CPU  # type: ignore[union-attr]


def count(device_kind: str) -> int:
    """How many devices of a kind there are. The CPU's are its cores, as workers share it by threads."""
    if device_kind == CPU:
        return num_cores()
    return torch.accelerator.device_count() if kind() == device_kind else 0


def num_cores() -> int:
    """The cores that this process may use (its affinity, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def select(device_kind: str, local_rank: int) -> torch.device:
    """Make this process use its own device."""
    if device_kind == CPU:
        return torch.device(CPU)
    torch.accelerator.set_device_index(local_rank)
    return torch.device(device_kind, local_rank)


def backend(device_kind: str) -> str:
    """The process group's backend; an accelerator's group also carries CPU tensors, for checkpoints and signals."""
    collectives = {"cuda": "nccl", "xpu": "xccl", "hpu": "hccl"}
    return "gloo" if device_kind == CPU else f"cpu:gloo,{device_kind}:{collectives.get(device_kind, 'gloo')}"


def free_memory(device: torch.device, num_local_workers: int) -> int | None:
    """Bytes that one of so many workers of this host may still take; None where that is not known."""
    if device.type != CPU:
        told = getattr(torch.accelerator, "get_memory_info", None)  # (free, total), since torch 2.9
        return int(told(device)[0]) if told is not None else None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if ":" in line}
    found = kilobytes.get("MemAvailable")
    return found * 1024 // num_local_workers if found is not None else None


def hand_back_memory() -> None:
    """Give what is freed back to the system at once, from 1 MB on.

    The C library's heap, which keeps it, is quicker; but what fsdp gathers and lets go has other sizes every time, and
    the holes that it leaves would come to hold more than the model.
    """
    if platform.system() == "Linux":
        import ctypes

        mmap_threshold = -3  # malloc.h: M_MMAP_THRESHOLD
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            mallopt(mmap_threshold, 1 << 20)


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on the device is done."""
    if device.type != CPU:
        torch.accelerator.synchronize(device)


def forking_is_safe() -> bool:
    """Whether a process with torch loaded may fork workers: not on macOS or Windows, nor with CUDA initialised."""
    return platform.system() == "Linux" and not torch.cuda.is_initialized()


def name(device_kind: str) -> str:
    """What a person calls the device: "NVIDIA H100 80GB HBM3", "AMD EPYC"."""
    if device_kind == "cuda":
        return torch.cuda.get_device_name()
    if device_kind != CPU:
        return device_kind
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memory_bytes(device: torch.device) -> int | None:
    """The most memory that tensors took on an accelerator since the start; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def seed(device: torch.device, number: int) -> None:
    """Seed what draws on a device. torch.manual_seed asks after every kind of device there is: half a millisecond."""
    if device.type == CPU:
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generators seeded inside the block, and as before after it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def describe(device_kind: str) -> dict[str, Any]:
    """The machine, for a run's record."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a plain string: its own type would load torch where it is read
        "device": name(device_kind),
        "device_kind": device_kind,
        "num_devices": count(device_kind),
        "num_cores": num_cores(),
    }
