"""Bytes that are free, and bytes that an array or a tree of arrays takes."""

import os
from pathlib import Path
from typing import Any

import jax

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
KEPT_FREE = 0.5  # of what is free when a run begins


def tree_bytes(types: Any) -> int:
    """Bytes of all leaves (arrays or `ShapeDtypeStruct`)."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(types))


def budget(devices: list[Any]) -> int:
    """Bytes each of `devices` may take. CPU devices share the memory of the machine."""
    if devices[0].platform == "cpu":
        free = available_bytes()
        share = free // len(devices)
    else:
        share = min(_free_on(device) for device in devices)
    return int(share * (1 - KEPT_FREE))


def _free_on(device: Any) -> int:
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", 8 << 30) - stats.get("bytes_in_use", 0)


def available_bytes() -> int:
    """Bytes that the operating system could still give this process, within the limits of its control groups."""
    free = [_meminfo(), *_cgroups()]
    known = [amount for amount in free if amount is not None]
    return max(0, min(known)) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _meminfo() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _cgroups() -> list[int | None]:
    """Limit less use, of version 2 (every group from the process's own upwards) and of version 1."""
    groups = [CGROUP]
    try:
        group = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        here = CGROUP / group.lstrip("/")
        groups += [here, *(parent for parent in here.parents if CGROUP in parent.parents)]
    except (OSError, StopIteration):
        pass
    version2 = [_left(group / "memory.max", group / "memory.current") for group in groups]
    version1 = _left(CGROUP / "memory/memory.limit_in_bytes", CGROUP / "memory/memory.usage_in_bytes")
    return [*version2, version1]


def _left(limit: Path, used: Path) -> int | None:
    try:
        return int(limit.read_text()) - int(used.read_text())  # "max" is no number: no limit
    except (OSError, ValueError):
        return None
