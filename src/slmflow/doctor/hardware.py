"""The chosen hardware against this machine and the packages that run it."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from slmflow import machine
from slmflow.config.schema import PACKAGES, Device, Target
from slmflow.doctor.finding import Finding, failure, ok, warning
from slmflow.doctor.subject import Subject
from slmflow.doctor.versions import pip
from slmflow.machine import installed_version
from slmflow.served.cores import available_cores, thread_count

CUDA_INDEX = "https://download.pytorch.org/whl"
LOCAL_TARGETS = {
    "win32": ("cuda", "directml"),
    "darwin": ("mps",),
}  # that this system could have; others have cuda alone


def check_hardware(subject: Subject) -> Finding:
    """The target and its driver; where the CPU is chosen, why no accelerator is."""
    target = subject.hardware.target.value
    reason = machine.missing(target)
    if reason is not None:
        found = f"hardware={target} is not on this machine: {reason}"
        return failure("hardware", found, "hardware=cpu   # or hardware=auto")
    if target != Target.cpu:
        return _check_driver(subject)
    here = LOCAL_TARGETS.get(sys.platform, ("cuda",))
    reasons = {name: why for name, why in machine.survey().items() if name in here}
    unused = [name for name in here if machine.missing(name) is None]
    if unused:
        why = reasons[unused[0]] or "everything for it is installed"
        return warning("hardware", f"cpu, and {unused[0]} is here unused: {why}", "hardware=auto")
    return ok("hardware", "cpu; " + "; ".join(f"no {name}: {why}" for name, why in reasons.items()))


def check_wheels(subject: Subject) -> Finding:
    """onnxruntime-genai's builds share one import name; torch has builds of its own, too."""
    hardware, told = subject.hardware, []
    if subject.onnx:
        here = [name for name in PACKAGES if installed_version(name)]
        if here != [hardware.package]:
            others = [name for name in here if name != hardware.package]
            return failure(
                "wheels", _told_packages(hardware.package, here), _swap(others, hardware.package)
            )
        told.append(f"{hardware.package} {installed_version(hardware.package)}")
    if subject.transformers:
        version, built_for = installed_version("torch"), torch_cuda()
        if version is None:
            return failure(
                "wheels", "torch is not installed", f"{pip()} install -r requirements.txt"
            )
        if hardware.device is Device.cuda and built_for is None:
            found = f"hardware.device=cuda, but torch {version} is a build for CPUs"
            return failure("wheels", found, _torch_for_cuda(version))
        told.append(f"torch {version}" + (f" for CUDA {built_for}" if built_for else ""))
    return ok("wheels", ", ".join(told))


def check_cores(subject: Subject) -> Finding:
    import psutil

    threads, cores, all_of_them = subject.hardware.threads, available_cores(), psutil.cpu_count()
    used = thread_count(threads)
    found = f"{used} threads on {cores} cores"
    if cores != all_of_them:
        found += f" (of {all_of_them}: affinity or a container's quota)"
    if used > cores:
        return warning("cores", f"{found}: they would wait for each other", "hardware.threads=auto")
    return ok("cores", found)


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch was built for, read and not imported."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text("utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*= *'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None


def _check_driver(subject: Subject) -> Finding:
    target, driver, wanted = subject.hardware.target.value, machine.cuda_of_driver(), torch_cuda()
    if target != Target.cuda or driver is None:
        return ok("hardware", target)
    serves = ".".join(map(str, driver))
    # Within one major version an older driver serves newer libraries (CUDA's minor compatibility).
    if subject.transformers and wanted is not None and int(wanted.split(".")[0]) > driver[0]:
        found = f"the NVIDIA driver serves CUDA {serves}, torch was built for {wanted}"
        mend = f"{pip()} install torch --index-url {CUDA_INDEX}/cu{driver[0]}{driver[1]}"
        return failure("hardware", found, f"{mend}   # or a newer driver")
    return ok("hardware", f"cuda, its driver serves CUDA {serves}")


def _told_packages(wanted: str, here: list[str]) -> str:
    if len(here) > 1:
        return f"{' and '.join(here)} are installed at once and overwrite each other"
    return f"ONNX runs with {wanted} here, installed is {here[0] if here else 'none'}"


def _swap(others: list[str], wanted: str) -> str:
    # The one that stays lost files to the other, so it is installed anew.
    remove = f"{pip()} uninstall -y {' '.join(others)} && " if others else ""
    again = "--force-reinstall --no-deps " if others and installed_version(wanted) else ""
    version = next((f"=={have}" for name in others if (have := installed_version(name))), "")
    return f"{remove}{pip()} install {again}{wanted}{version}"


def _torch_for_cuda(version: str) -> str:
    driver = machine.cuda_of_driver()
    label = "cu130" if driver is None else f"cu{driver[0]}{driver[1]}"
    number = version.partition("+")[0]
    return f"{pip()} install --force-reinstall torch=={number} --index-url {CUDA_INDEX}/{label}"
