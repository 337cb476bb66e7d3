"""What a run depends on besides its code and config: packages, hardware, variables."""

import ctypes
import os
import platform
import re
import sys
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from slmflow.machine import memory, missing
from slmflow.redaction import redacted
from slmflow.secret_names import names_secret
from slmflow.served.cores import available_cores

CPU_INFO = Path("/proc/cpuinfo")
VARIABLES = re.compile(
    r"HF_HUB_OFFLINE|HF_HOME|HF_HUB_CACHE|HF_ENDPOINT|TRANSFORMERS_OFFLINE"
    r"|(OMP|MKL|OPENBLAS|NUMEXPR)_NUM_THREADS|KMP_AFFINITY|TOKENIZERS_PARALLELISM"
    r"|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|CUBLAS_WORKSPACE_CONFIG|NVIDIA_TF32_OVERRIDE"
    r"|PYTORCH_\w+|ORT_\w+|PYTHONHASHSEED|LANG|LC_ALL|TZ"
    r"|MLFLOW_(TRACKING|REGISTRY)_URI|MLFLOW_EXPERIMENT_NAME|MLFLOW_S3_ENDPOINT_URL"
    r"|AWS_ENDPOINT_URL|SLURM_(JOB_PARTITION|CPUS_PER_TASK)|SLMFLOW_(?!FOLLOWED_RUN$|LOCK$)\w+"
)
"""Those that change what a run does or where it is logged; none that is there to hold a secret, or
that is another one for each run."""


def environment() -> dict[str, str]:
    return {
        name: redacted(value)
        for name, value in sorted(os.environ.items())
        if VARIABLES.fullmatch(name) and not names_secret(name)
    }


@cache
def packages() -> dict[str, str]:
    """Every installed one, names as PEP 503 normalises them."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:  # else what an interrupted installation left
            normal = re.sub(r"[-_.]+", "-", name).lower()
            found.setdefault(normal, distribution.version)  # the first on the path is imported
    return dict(sorted(found.items()))


@cache
def hardware() -> dict[str, Any]:
    """No names of hosts or users. ``cores`` and ``memory_bytes``: what this process may use."""
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "memory_bytes": memory().total,
        "accelerators": accelerators(),
    }


def cpu_name() -> str:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def accelerators() -> list[str]:
    """``NVIDIA H200, 150754820096 bytes, driver 570.86.15``: those that the driver shows, whatever
    CUDA_VISIBLE_DEVICES leaves of them. Nothing of a runtime is imported and no context opened."""
    found = _nvidia()
    if not found and missing("cuda") is None:
        found = ["NVIDIA GPU (its management library does not answer)"]
    return [*found, *(["Apple silicon"] if missing("mps") is None else [])]


def _nvidia() -> list[str]:
    """NVML (docs.nvidia.com, "NVML API Reference"), which the driver brings along."""
    name = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return []
    if library.nvmlInit_v2() != 0:
        return []
    try:
        count = ctypes.c_uint(0)
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        driver = ctypes.create_string_buffer(96)
        library.nvmlSystemGetDriverVersion(driver, 96)
        return [_device(library, at, driver.value.decode()) for at in range(count.value)]
    finally:
        library.nvmlShutdown()


def _device(library: ctypes.CDLL, index: int, driver: str) -> str:
    device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    figures = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
    if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
        return f"NVIDIA GPU {index} (no access), driver {driver}"
    library.nvmlDeviceGetName(device, name, 96)
    library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(figures))
    return f"{name.value.decode()}, {figures[0]} bytes, driver {driver}"
