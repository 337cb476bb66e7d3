"""Which accelerators this machine has, found without importing a runtime."""

import ctypes
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

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


def _no_package(target: str) -> str | None:
    package = ONNX_PACKAGES.get(target)
    if package is None or installed_version(package):
        return None
    return f"{package} is not installed"


def _no_cuda() -> str | None:
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return f"no NVIDIA driver was found ({library} cannot be loaded)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "the NVIDIA driver does not start (see nvidia-smi)"
    return None if count.value else "the NVIDIA driver sees no GPU"


def _no_directml() -> str | None:
    return None if sys.platform == "win32" else f"DirectML needs Windows, this is {sys.platform}"


def _no_mps() -> str | None:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return None
    return f"mps needs a Mac with Apple silicon, this is {sys.platform} {platform.machine()}"
