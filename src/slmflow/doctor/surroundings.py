"""What is around a run: telemetry, the checkout, the hub."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from slmflow.checkout import PROJECT_ROOT, git_says
from slmflow.doctor.finding import Finding, failure, ok, warning
from slmflow.doctor.subject import Subject
from slmflow.doctor.weights import Weights, offline

TRUE = ("1", "true", "yes", "on")
TELEMETRY = {
    "MLflow": ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"),
    "ONNX Runtime": ("ORT_DISABLE_TELEMETRY",),
    "Hugging Face": ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"),
}
"""The variables of which one switches it off. The entry points set them, unless they are set."""


def check_weights(subject: Subject) -> Finding:
    """Every repository or folder that is needed: here, or to be had from the hub."""
    prebuilt = subject.prebuilt.result()
    build = subject.onnx and prebuilt is None
    wanted = [subject.checkpoint.result()] if subject.transformers or build else []
    wanted += [prebuilt] if subject.onnx and prebuilt is not None else []
    for weights in wanted:
        if weights.why_not or not weights.files:
            why_not = weights.why_not or "it holds no weights that are loaded here"
            mend = weights.mend or "unset HF_HUB_OFFLINE   # once, with a connection"
            return failure("weights", f"{weights.source}: {why_not}", mend)
    return ok("weights", "; ".join(_told(weights) for weights in wanted) + _access(wanted))


def check_telemetry(environment: Mapping[str, str] | None = None) -> Finding:
    environment = os.environ if environment is None else environment
    on = {
        tool: variables[0]
        for tool, variables in TELEMETRY.items()
        if not any(environment.get(name, "").lower() in TRUE for name in variables)
    }
    if on:
        mend = "export " + " ".join(f"{name}=true" for name in on.values())
        return warning("telemetry", f"{', '.join(on)} would report what is done here", mend)
    began = environment_at_start()
    if not any(began.get(name, "").lower() in TRUE for name in TELEMETRY["MLflow"]):
        found = "off in the entry points, but not in commands of MLflow that you type"
        return warning("telemetry", found, "export MLFLOW_DISABLE_TELEMETRY=true")
    return ok("telemetry", f"off: {', '.join(TELEMETRY)}")


def environment_at_start() -> Mapping[str, str]:
    """As this process was given it: the entry points have added to it since."""
    try:
        block = Path("/proc/self/environ").read_bytes()
    except OSError:
        return os.environ
    pairs = (entry.partition(b"=") for entry in block.split(b"\0") if entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def check_code(folder: Path = PROJECT_ROOT) -> Finding:
    """Warnings: a run works from any state, but whoever repeats it has to have the same code."""
    if shutil.which("git") is None:
        return warning("code", "git is not installed: runs will not say which code they ran")
    commit = git_says(folder, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return warning("code", "no checkout of git: runs will not say which code they ran")
    branch = git_says(folder, "symbolic-ref", "--quiet", "--short", "HEAD")
    changed = (git_says(folder, "status", "--porcelain") or "").splitlines()
    place = f"{commit} on {branch}" if branch else commit
    temporary = folder.is_relative_to(Path(tempfile.gettempdir()).resolve())
    if not branch and not temporary:  # where mlflow run puts a project from elsewhere
        found = f"{commit}, detached: mlflow run -v with a local path leaves a clone so"
        return warning("code", found, f"git -C {folder} switch -")
    if changed:
        files = f"{len(changed)} file{'s' * (len(changed) > 1)}"
        mend = "git add -A && git commit   # or leave it: runs keep the difference"
        return warning("code", f"{place}, {files} not committed", mend)
    return ok("code", place)


def _told(weights: Weights) -> str:
    if weights.here:
        return f"{weights.source} is here, {_size(weights.size)}"
    if weights.folder:
        return f"{weights.source}, {_size(weights.size)}"
    return f"{weights.source}: {_size(weights.to_fetch)} of {_size(weights.size)} to download"


def _size(count: int) -> str:
    from slmflow.console import size

    return size(count)


def _access(wanted: list[Weights]) -> str:
    if all(weights.folder for weights in wanted):
        return " (the hub is not needed)"
    if offline():
        return " (HF_HUB_OFFLINE is set)"
    from slmflow.doctor.hub import token

    return f" ({'with' if token() else 'without'} HF_TOKEN)"
