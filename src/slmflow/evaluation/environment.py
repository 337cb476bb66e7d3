"""The machine and the packages that an evaluation ran on."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import psutil

from slmflow import __version__, console
from slmflow.served.cores import thread_count
from slmflow.tracking.surroundings import cpu_name

PACKAGES = (
    *("mlflow", "transformers", "torch", "tokenizers", "numpy"),
    *("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-genai-directml", "onnxruntime"),
)


def environment() -> dict[str, str]:
    """What decides how fast a model is here. Names of hosts and users are no part of it."""
    found = {
        "slmflow": __version__,
        "cpu": cpu_name(),
        "cores": f"{thread_count('auto')} of {os.cpu_count()}",
        "memory": console.size(psutil.virtual_memory().total),
        "gpu": _gpus() or "none",
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _gpus() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(told.stdout.strip().splitlines()) if told.returncode == 0 else ""
