"""Readings of the machine for the heartbeat: memory, disk and GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from mtl_cloud.json_types import Json

__all__ = ["device_name", "gpu_count", "host_readings"]

_MIB_PER_GIB = 1024
_SMI_TIMEOUT_S = 10


def host_readings(folder: Path) -> dict[str, Json]:
    """Current memory, disk (the one that holds ``folder``), load and GPUs (an empty list without any)."""
    disk = shutil.disk_usage(folder)
    return {
        **_memory(),
        "disk_free_gib": round(disk.free / 2**30, 2),
        "disk_total_gib": round(disk.total / 2**30, 2),
        "load_1min": round(os.getloadavg()[0], 2),
        "cpus": os.cpu_count(),
        "gpus": _gpus(),
    }


def device_name() -> str:
    """``2 x NVIDIA A100-SXM4-40GB``, or ``cpu``."""
    names = [row[0] for row in _nvidia_smi("name")]
    return f"{len(names)} x {names[0]}" if names else "cpu"


def gpu_count() -> int:
    """The number of GPUs that ``nvidia-smi`` lists."""
    return len(_nvidia_smi("name"))


def _memory(root: Path = Path("/")) -> dict[str, Json]:
    """Memory use and limit of the container (cgroup v2) or else of the machine; empty on other systems than Linux."""
    group = root / "sys/fs/cgroup"
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            return _memory_gib(int(used), int(limit))
    except OSError:
        pass  # the root cgroup has no such files
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
    return _memory_gib((kib["MemTotal"] - kib["MemAvailable"]) * 1024, kib["MemTotal"] * 1024)


def _memory_gib(used: int, total: int) -> dict[str, Json]:
    return {"memory_used_gib": round(used / 2**30, 2), "memory_total_gib": round(total / 2**30, 2)}


def _gpus() -> list[Json]:
    return [
        {
            "memory_used_gib": _number(used, _MIB_PER_GIB),
            "memory_total_gib": _number(total, _MIB_PER_GIB),
            "utilization_percent": _number(busy),
        }
        for used, total, busy in _nvidia_smi("memory.used,memory.total,utilization.gpu")
    ]


def _number(text: str, divisor: float = 1) -> float | None:
    """None for ``[N/A]``, which nvidia-smi prints for the utilisation of a partitioned GPU, for example."""
    try:
        return round(float(text) / divisor, 2)
    except ValueError:
        return None


def _nvidia_smi(fields: str) -> list[list[str]]:
    """One row for each GPU; none without nvidia-smi, or while the driver does not answer."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    command = [smi, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines()]
