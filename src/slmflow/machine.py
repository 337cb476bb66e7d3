"""Which accelerators and how much memory this machine has, found without importing a runtime."""

import ctypes
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from slmflow.served.cores import CGROUP_ROOT, OWN_CGROUP

ONNX_PACKAGES = {
    "cuda": "onnxruntime-genai-cuda",
    "directml": "onnxruntime-genai-directml",
}


def detect_target() -> str:
    """What ``hardware=auto`` means here: the first target that can be used as it is, else cpu."""
    return next((target for target, reason in survey().items() if reason is None), "cpu")


def survey() -> dict[str, str | None]:
    """The accelerator targets, best first, each with the reason why ``auto`` passes it over."""
    return {
        target: missing(target) or _no_package(target) for target in ("cuda", "directml", "mps")
    }


def missing(target: str) -> str | None:
    """Why this machine cannot serve the target, or None where it can."""
    checks = {"cuda": _no_cuda, "directml": _no_directml, "mps": _no_mps}
    return checks[target]() if target in checks else None


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Memory:
    """Bytes: what this process may ever have, and what it could have now."""

    total: int
    available: int


def memory(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUP) -> Memory:
    """Of the machine, cut by the limits of the container or job."""
    import psutil

    found = psutil.virtual_memory()
    limits = [limit for folder in _memory_groups(root, own) if (limit := _limit(folder))]
    return Memory(
        min([found.total, *(limit.total for limit in limits)]),
        min([found.available, *(limit.available for limit in limits)]),
    )


def cuda_memory() -> Memory | None:
    """Of the first GPU, asked of NVIDIA's management library, which opens no context on it."""

    class Figures(ctypes.Structure):  # nvmlMemory_t
        _fields_ = tuple((name, ctypes.c_ulonglong) for name in ("total", "free", "used"))

    library = _library("nvml.dll", "libnvidia-ml.so.1")
    if library is None or library.nvmlInit_v2() != 0:
        return None
    device, figures = ctypes.c_void_p(), Figures()
    try:
        if library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) != 0:
            return None
        if library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(figures)) != 0:
            return None
    finally:
        library.nvmlShutdown()
    return Memory(figures.total, figures.free)


def cuda_of_driver() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver serves: (13, 0); None without a driver."""
    driver, number = _library("nvcuda.dll", "libcuda.so.1"), ctypes.c_int(0)
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _memory_groups(root: Path, own: Path) -> list[Path]:
    """This process's control group and those above it, of version 2 and 1."""
    bases = {"": root, "memory": root / "memory"}
    folders = list(bases.values())
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = next((bases[name] for name in controllers.split(",") if name in bases), None)
        folder = None if base is None else base / path.lstrip("/")
        while folder is not None and folder != base and base in folder.parents:
            folders.append(folder)
            folder = folder.parent
    return folders


def _limit(folder: Path) -> Memory | None:
    """Of one control group; files that can be dropped from memory count as available.

    Version 2 has memory.max and memory.current, version 1 memory.limit_in_bytes and
    memory.usage_in_bytes (kernel documentation, cgroup-v2 "Memory" and cgroup-v1 "memory").
    """
    for most, now, droppable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            total = int((folder / most).read_text())  # "max" is no number: no limit
            used = int((folder / now).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            dropped = sum(
                int(line.split()[1]) for line in lines if line.startswith(f"{droppable} ")
            )
        except (OSError, ValueError):
            continue
        return Memory(total, max(0, min(total, total - used + dropped)))
    return None


def _no_package(target: str) -> str | None:
    package = ONNX_PACKAGES.get(target)
    if package is None or installed_version(package):
        return None
    return f"{package} is not installed"


def _no_cuda() -> str | None:
    names = ("nvcuda.dll", "libcuda.so.1")
    driver = _library(*names)
    if driver is None:
        name = names[0] if sys.platform == "win32" else names[1]
        return f"no NVIDIA driver was found ({name} cannot be loaded)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "the NVIDIA driver does not start (see nvidia-smi)"
    return None if count.value else "the NVIDIA driver sees no GPU"


def _library(windows: str, linux: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(windows if sys.platform == "win32" else linux)
    except OSError:
        return None


def _no_directml() -> str | None:
    return None if sys.platform == "win32" else f"DirectML needs Windows, this is {sys.platform}"


def _no_mps() -> str | None:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return None
    return f"mps needs a Mac with Apple silicon, this is {sys.platform} {platform.machine()}"
