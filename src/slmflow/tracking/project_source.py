"""Where ``mlflow run`` took this project from: an address, or a folder of the person's.

From an address it makes a clone in a temporary folder, which nobody comes back to. ``-v`` with a
folder checks the version out in that very folder: the branch that its owner works on is left, and
the history made shallow.
"""

import os
import re
import shlex
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from slmflow import console
from slmflow.checkout import PROJECT_ROOT, git_says
from slmflow.errors import ConfigError
from slmflow.redaction import redacted
from slmflow.tracking.experiment import experiment_id

MADE_BY_TEMPFILE = re.compile(r"tmp[a-z0-9_]{8}")
CHECKOUT = re.compile(r"HEAD@\{(\d+)\} checkout: moving from (\S+) to (\S+)")
SHELLS = ("sh", "bash", "dash")
DEFAULT_EXPERIMENT = "0"  # where `mlflow run` puts what names none
AT_ONCE = 5  # seconds between the fetch and the checkout of a program; people are slower


@dataclass(frozen=True)
class Fetched:
    """``address`` is without credentials; ``commit`` is None of what came as an archive."""

    address: str
    commit: str | None


@cache
def fetched(root: Path = PROJECT_ROOT) -> Fetched | None:
    """From where, if the project lies in a temporary folder of MLflow's."""
    temporary = Path(tempfile.gettempdir()).resolve()
    if root.parent != temporary or not MADE_BY_TEMPFILE.fullmatch(root.name):
        return None
    address = git_says(root, "config", "--get", "remote.origin.url")
    return Fetched(redacted(address or "URI"), git_says(root, "rev-parse", "HEAD"))


def command(entry_point: str, *parameters: str) -> str:
    """What starts an entry point of this project, typed in any folder."""
    typed = "".join(f" -P {shlex.quote(parameter)}" for parameter in parameters)
    source = fetched()
    if source is None:
        return f"{shlex.quote(str(PROJECT_ROOT / 'run'))} {entry_point}{typed}"
    version = f" -v {source.commit}" if source.commit else ""
    manner = f"-e {entry_point} --env-manager local{experiment_option()}"
    return f"mlflow run {shlex.quote(source.address)}{version} {manner}{typed}"


@cache
def experiment_option() -> str:
    """The option that names the one of this run; nothing where it is MLflow's own default. Its
    number, where the tracking server does not tell the name."""
    number = experiment_id()
    if number in (None, DEFAULT_EXPERIMENT):
        return ""
    with suppress(Exception):
        from mlflow import MlflowClient  # late: not every command that is printed has imported it

        name = MlflowClient().get_experiment(number).name
        return f" --experiment-name {shlex.quote(name)}"
    return f" --experiment-id {number}"


def demand_lasting(key: str, place: str, instead: str = "give an absolute path") -> None:
    """Raises ``ConfigError`` where what is written to this path would be lost."""
    source = fetched()
    path = PROJECT_ROOT / Path(place).expanduser()
    if source is None or "://" in place or not path.is_relative_to(PROJECT_ROOT):
        return
    raise ConfigError(
        f"{key} would be written to {path}, where nobody comes back to: mlflow run has fetched "
        f"this project from {source.address} into a temporary folder; {instead}"
    )


def relative_paths(place: str) -> str:
    """What to add where this path was not found."""
    source = fetched()
    if source is None or Path(place).expanduser().is_absolute():
        return ""
    return (
        f"; a relative path means a file of the project, which was fetched from {source.address}: "
        "give an absolute one for a file of your own"
    )


@dataclass(frozen=True)
class Moved:
    """A clone in which ``mlflow run -v`` has just checked out ``after``; it was on ``before``."""

    folder: Path
    before: str
    after: str
    shallow: bool
    origin: str | None


def tell_moved(root: Path = PROJECT_ROOT) -> None:
    """Say, with the commands that mend it, that MLflow has changed the person's own clone."""
    moved = None if fetched(root) is not None else find_moved(root, _caller_started())
    if moved is None:
        return
    shallow = ", and cut its history off there" if moved.shallow else ""
    # A local path would be another clone that MLflow changes.
    remote = moved.origin is not None and _is_remote(moved.origin)
    instead = str(moved.origin) if remote else "URL (git://, https://, ssh)"
    console.prose(
        f"mlflow run -v has checked out {moved.after} in your own clone {root}, which was on "
        f"{moved.before}{shallow}: so MLflow does with a local path. An address leaves it alone: "
        f"mlflow run {redacted(instead)} -v ..."
    )
    console.commands("to have your clone back, afterwards", restoring(moved))


def _is_remote(origin: str) -> bool:
    return not origin.startswith("file:") and ("://" in origin or "@" in origin.partition("/")[0])


def find_moved(root: Path, since: float) -> Moved | None:
    """What the last entry of HEAD's log says: a checkout right after a fetch, both after
    ``since`` (seconds since 1970), as MLflow does them."""
    entry = git_says(root, "reflog", "-1", "--date=unix", "--format=%gd %gs") or ""
    found = CHECKOUT.fullmatch(entry)
    fetch = git_says(root, "rev-parse", "--git-path", "FETCH_HEAD")
    if found is None or fetch is None or not (root / fetch).is_file():
        return None
    at = int(found[1])
    if at < int(since) or abs((root / fetch).stat().st_mtime - at) > AT_ONCE:
        return None
    return Moved(
        folder=root,
        before=found[2],
        after=found[3],
        shallow=git_says(root, "rev-parse", "--is-shallow-repository") == "true",
        origin=git_says(root, "config", "--get", "remote.origin.url"),
    )


def restoring(moved: Moved) -> list[tuple[str, str]]:
    """What each command is for, and what to type."""
    git = f"git -C {shlex.quote(str(moved.folder))}"
    is_branch = git_says(moved.folder, "rev-parse", "--verify", f"refs/heads/{moved.before}")
    verb = "switch" if is_branch else "checkout"
    commands = [("what was checked out", f"{git} {verb} {shlex.quote(moved.before)}")]
    if moved.origin and moved.origin.removeprefix("file://") == str(moved.folder):
        # It had no remote: MLflow made it its own, which has nothing to fetch.
        commands.append(("MLflow added a remote", f"{git} remote remove origin"))
        if moved.shallow:
            path = git_says(moved.folder, "rev-parse", "--git-path", "shallow")
            mark = moved.folder / (path or "")
            commands.append(("its history, which is still there", f"rm {shlex.quote(str(mark))}"))
    elif moved.shallow:
        commands.append(("its history", f"{git} fetch --unshallow"))
    return commands


def _caller_started() -> float:
    """When the program that started this one began, past the shell between the two."""
    with suppress(psutil.Error):
        parents = psutil.Process(os.getpid()).parents()
        return next(one.create_time() for one in parents if one.name() not in SHELLS)
    return float("inf")
