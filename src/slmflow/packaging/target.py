"""Whether this machine can serve the configured hardware, asked before any work."""

from slmflow.config.schema import PACKAGES, Device, Hardware
from slmflow.errors import HardwareError
from slmflow.machine import installed_version, missing


def require(hardware: Hardware, runtime: str) -> None:
    """Raise ``HardwareError`` where this machine cannot serve the target, before any work."""
    reason = missing(hardware.target.value)
    if reason:
        raise HardwareError(
            f"hardware={hardware.target} is not on this machine: {reason}; choose hardware=cpu, or "
            "hardware=auto for the best that is here"
        )
    if runtime == "custom_onnx":
        _require_package(hardware)
    elif hardware.device is Device.cuda and "+cpu" in (installed_version("torch") or ""):
        raise HardwareError(
            f"hardware.device=cuda, but torch {installed_version('torch')} is a CPU build; "
            "install torch with CUDA"
        )


def _require_package(hardware: Hardware) -> None:
    # The packages share one import name: two of them overwrite each other.
    others = [name for name in PACKAGES if name != hardware.package and installed_version(name)]
    if installed_version(hardware.package) and not others:
        return
    remove = f"pip uninstall {' '.join(others)}; " if others else ""
    raise HardwareError(
        f"hardware={hardware.target} runs ONNX with {hardware.package}, which excludes "
        f"the other builds; here: {', '.join(others) or 'none'}. Type: {remove}"
        f"pip install {hardware.package}"
    )
