"""How many cores this process really has."""

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Cores that the scheduler lets this process use: its affinity, cut by the container's quota.

    Runtimes ask the hardware instead and so start too many threads in a container, or too few on
    a machine that shows hyper-threads as cores.
    """
    quota = _quota(CGROUP_ROOT, OWN_CGROUP)
    cores = _affinity()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def thread_count(threads: int | str) -> int:
    """``hardware.threads`` as a number: auto counts the cores of this process, now."""
    return available_cores() if threads == "auto" else int(threads)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(root: Path, own: Path) -> float | None:
    """The smallest CPU quota on the way from this process's control group to the root, in cores.

    Version 2 says "MAX PERIOD" or "max PERIOD" in cpu.max, version 1 splits it over two files
    (kernel documentation, cgroup-v2 "CPU Interface Files" and sched-bwc).
    """
    found = [
        quota
        for folder in _groups(root, own)
        if (quota := _quota_v2(folder) or _quota_v1(folder)) is not None
    ]
    return min(found, default=None)


def _groups(root: Path, own: Path) -> list[Path]:
    folders = [root, root / "cpu"]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = root / "cpu" if "cpu" in controllers.split(",") else root
        if controllers and base == root:
            continue
        folder = base / path.lstrip("/")
        while folder != base and base in folder.parents:
            folders.append(folder)
            folder = folder.parent
    return folders


def _quota_v2(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if limit <= 0 else limit / period
