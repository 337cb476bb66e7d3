"""slurm.json, checked: every mistake of it told in one message."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.projects.utils import (
    PROJECT_BUILD_IMAGE,
    PROJECT_DOCKER_ARGS,
    PROJECT_DOCKER_AUTH,
    PROJECT_ENV_MANAGER,
    PROJECT_STORAGE_DIR,
    PROJECT_SYNCHRONOUS,
)

FROM_MLFLOW = {  # `mlflow run` adds them to what the file holds
    PROJECT_BUILD_IMAGE,
    PROJECT_DOCKER_ARGS,
    PROJECT_DOCKER_AUTH,
    PROJECT_ENV_MANAGER,
    PROJECT_STORAGE_DIR,
    PROJECT_SYNCHRONOUS,
}
ENV_MANAGERS = ("local", "conda", "virtualenv", "uv")
MEMORY = re.compile(r"[1-9]\d*[KMGT]")
TEXT, COUNT, SWITCH, LINES, FLAGS = "text", "a whole number", "true or false", "a list", "an object"
KEYS = {
    "folder": (TEXT, "absolute, seen by this machine and by every node (required)"),
    "time": (COUNT, "minutes that the job may take (required)"),
    "partition": (TEXT, "the cluster's default where it is left out"),
    "memory": (TEXT, 'of the job: "16G"'),
    "cpus": (COUNT, "cores of the job"),
    "gpus": (COUNT, "of the job"),
    "account": (TEXT, "as sbatch --account"),
    "qos": (TEXT, "as sbatch --qos"),
    "constraint": (TEXT, "as sbatch --constraint"),
    "additional": (FLAGS, 'any other option of sbatch: {"gres": "gpu:a100:1"}'),
    "setup": (LINES, 'shell lines that run first on the node: ["module load cuda"]'),
    "python": (TEXT, "the command that starts Python there; this Python where it is left out"),
    "env_manager": (TEXT, f"of the run on the node: {', '.join(ENV_MANAGERS)}"),
    "requeue": (SWITCH, "start again after a node failed or the job was preempted"),
    "grace": (COUNT, "seconds before the time limit at which the run is told to end"),
}


class ConfigError(Exception):
    """All that is wrong with slurm.json, and what is allowed."""


@dataclass(frozen=True)
class SlurmConfig:
    """One node, one task. ``None`` leaves a choice to the cluster."""

    folder: Path
    time: int  # minutes
    partition: str | None = None
    memory: str | None = None
    cpus: int | None = None
    gpus: int | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    additional: Mapping[str, str | int | bool] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    python: str | None = None
    env_manager: str = "local"
    requeue: bool = False
    grace: int = 60  # seconds; Slurm itself counts limits in minutes


def read_config(given: Mapping[str, Any]) -> SlurmConfig:
    """Raises ConfigError. An ``--env-manager`` that was typed beats the file's."""
    chosen = {key: value for key, value in given.items() if key not in FROM_MLFLOW}
    wrong = [
        f"{key}: no such key{_nearest(key)}"
        if key not in KEYS
        else f"{key}: {value!r} is not {KEYS[key][0]}"
        for key, value in chosen.items()
        if key not in KEYS or not _fits(KEYS[key][0], value)
    ]
    wrong += [f"{key} is missing" for key in ("folder", "time") if key not in chosen]
    for option, key in (("-A", PROJECT_DOCKER_ARGS), ("--build-image", PROJECT_BUILD_IMAGE)):
        if given.get(key):
            wrong.append(f"{option}: projects in a container are not run by this backend")
    wrong = wrong or _impossible(chosen)
    if wrong:
        raise ConfigError("\n".join([*_indented("the Slurm backend's config", wrong), *_allowed()]))
    if given.get(PROJECT_ENV_MANAGER):
        chosen["env_manager"] = given[PROJECT_ENV_MANAGER]
    # A quarter of a short job's time, else its warning would come when it starts.
    chosen.setdefault("grace", min(60, 15 * chosen["time"]))
    folder, setup = Path(chosen.pop("folder")), tuple(chosen.pop("setup", ()))
    return SlurmConfig(folder=folder, setup=setup, **chosen)


def _fits(kind: str, value: Any) -> bool:
    if kind == TEXT:
        return isinstance(value, str) and bool(value)
    if kind == COUNT:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if kind == SWITCH:
        return isinstance(value, bool)
    if kind == LINES:
        return isinstance(value, list) and all(isinstance(line, str) for line in value)
    return isinstance(value, dict) and all(isinstance(one, str | int) for one in value.values())


def _impossible(chosen: Mapping[str, Any]) -> list[str]:
    """Of values whose types are right."""
    wrong = []
    if not Path(chosen["folder"]).is_absolute():
        wrong.append(f"folder: {chosen['folder']!r} is not absolute")
    if chosen["time"] < 1:
        wrong.append("time: at least 1 minute")
    elif chosen.get("grace", 0) >= 60 * chosen["time"]:
        wrong.append(f"grace: {chosen['grace']} s is not less than time, {60 * chosen['time']} s")
    if chosen.get("cpus") == 0:
        wrong.append("cpus: at least 1")
    if "memory" in chosen and not MEMORY.fullmatch(chosen["memory"]):
        wrong.append(f'memory: {chosen["memory"]!r} is no amount like "900M" or "16G"')
    if chosen.get("env_manager", "local") not in ENV_MANAGERS:
        wrong.append(f"env_manager: {chosen['env_manager']!r} is none of {', '.join(ENV_MANAGERS)}")
    return wrong


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, KEYS, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _allowed() -> list[str]:
    lines = [f"{key:<12} {kind}: {meaning}" for key, (kind, meaning) in KEYS.items()]
    return _indented("allowed, in the JSON file of --backend-config", lines)


def _indented(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {line}" for line in lines)]
