"""The folder of this project, and what git says of a folder."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 10.0  # seconds of one call; git waits for no terminal here
OWN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set where git itself called us, as in a hook


class NoGit(Exception):
    """git is missing, does not answer, or knows nothing of the folder."""


def git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Raises ``NoGit``. Bytes that are no UTF-8 come back as they were when they are written."""
    inherited = {name: value for name, value in os.environ.items() if name not in OWN}
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "-c", "core.quotepath=off", *arguments],
            capture_output=True,
            timeout=PATIENCE,
            env={**inherited, **quiet, **(environment or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoGit(f"git does not answer ({type(error).__name__})") from None
    if result.returncode != 0:
        told = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NoGit(told[0] if told else f"git {arguments[0]} ended with {result.returncode}")
    return result.stdout.decode("utf-8", "surrogateescape")


def git_says(folder: Path, *arguments: str) -> str | None:
    """What it printed, without the end of the line; None where it fails or is missing."""
    try:
        return git(folder, *arguments).strip()
    except NoGit:
        return None
