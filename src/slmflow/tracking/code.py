"""Where the code that runs comes from: commit, branch, remote, and what differs from the commit."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmflow.checkout import NoGit, git
from slmflow.tracking.private_files import is_private

LARGEST = 1_000_000  # bytes of a file that git does not know and that goes into the diff
MOST = 200  # such files, and names in the record
FIELDS = {"1": 8, "2": 9, "u": 10}  # before a path, by the kind of the entry


@dataclass(frozen=True)
class Code:
    """``diff`` makes the checked out files from the commit (``git apply``), new ones included;
    but for those in ``left_out``: binary files, and new ones that are too large or there to hold
    secrets. Names are from the top of the repository."""

    commit: str | None = None
    branch: str | None = None  # None: outside of git, or no branch is checked out
    remote: str | None = None  # the URL as git has it, with credentials
    dirty: bool = False
    files: tuple[str, ...] = ()  # those that differ from the commit, or that it lacks
    diff: str = ""
    left_out: tuple[str, ...] = ()
    unknown: str | None = None  # why there is no commit


def code_state(folder: Path) -> Code:
    """Three calls of git, two more where files differ, two more where some are new or binary."""
    try:
        status = git(folder, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all")
    except NoGit as error:
        return Code(unknown=str(error))
    headers, changed, added, new = _read(status)
    commit = headers.get("branch.oid")
    if commit in (None, "(initial)"):
        return Code(unknown="the repository has no commit yet")
    branch = headers.get("branch.head")
    return Code(
        commit=commit,
        branch=None if branch == "(detached)" else branch,
        remote=_remote(folder),
        dirty=bool(changed or new),
        files=tuple(sorted([*changed, *new])),
        **(_difference(folder, added, new) if changed or new else {}),  # type: ignore[arg-type]
    )


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout, marked where files differ from it; None outside of git."""
    try:
        commit = git(folder, "rev-parse", "HEAD").strip()
        changed = git(folder, "status", "--porcelain")
    except NoGit:
        return None
    return f"{commit} (with uncommitted changes)" if changed.strip() else commit


def _read(status: str) -> tuple[dict[str, str], list[str], list[str], list[str]]:
    """Headers, known files that differ, those of them that the commit lacks, those that git does
    not know (git-status, "Porcelain Format Version 2")."""
    headers: dict[str, str] = {}
    changed: list[str] = []
    added: list[str] = []
    new: list[str] = []
    entries = iter(status.split("\0"))
    for entry in entries:
        if entry.startswith("# "):
            key, _, value = entry[2:].partition(" ")
            headers[key] = value
        elif entry.startswith("? "):
            new.append(entry[2:])
        elif entry:
            changed.append(entry.split(" ", FIELDS[entry[0]])[-1])
            if entry.startswith("1 ") and "A" in entry[2:4]:
                added.append(changed[-1])
            if entry.startswith("2 "):  # renamed: the old name follows
                next(entries)
    return headers, changed, added, new


def _remote(folder: Path) -> str | None:
    """Of origin, else of the first one."""
    try:
        lines = git(folder, "config", "--get-regexp", r"^remote\..*\.url$").splitlines()
    except NoGit:  # there is none
        return None
    urls = dict(line.partition(" ")[::2] for line in lines)
    return urls.get("remote.origin.url") or next(iter(urls.values()), None)


def _difference(folder: Path, added: Sequence[str], new: Sequence[str]) -> dict[str, object]:
    """A copy of the index is told of the new files, so that git writes them into the diff; the
    real one is left as it is."""
    private = [name for name in added if is_private(name)]
    with tempfile.TemporaryDirectory() as place:
        index = Path(place) / "index"
        try:
            top = Path(git(folder, "rev-parse", "--show-toplevel").rstrip("\n"))
            fitting = [n for n in new if not is_private(n) and _fits(top / n)][:MOST]
            if fitting:
                known = git(top, "rev-parse", "--git-path", "index").strip()
                shutil.copyfile(top / known, index)
            environment = {"GIT_INDEX_FILE": str(index)} if fitting else {}
            if fitting:
                names = [f":(top,literal){name}" for name in fitting]
                git(top, "add", "--intent-to-add", "--", *names, environment=environment)
            diff = _diff(top, private, environment)
            binary = _binary(top, environment) if "\nBinary files " in diff else []
            without = list(dict.fromkeys([*binary, *private]))
            if binary:
                diff = _diff(top, without, environment)
        except (NoGit, OSError) as error:
            return {"diff": f"the difference is not known: {error}\n", "left_out": tuple(new)}
    left = [*without, *(name for name in new if name not in set(fitting))]
    return {"diff": diff, "left_out": tuple(left)}


def _diff(top: Path, without: Sequence[str], environment: Mapping[str, str]) -> str:
    all_but = ["--", ".", *(f":(top,literal,exclude){name}" for name in without)]
    options = ("--no-ext-diff", "--no-color", "--full-index", "HEAD")
    return git(top, "diff", *options, *all_but, environment=environment)


def _binary(top: Path, environment: Mapping[str, str]) -> list[str]:
    """Changed files that ``git apply`` could not make (git-diff, "--numstat")."""
    told = git(top, "diff", "--numstat", "--no-renames", "-z", "HEAD", environment=environment)
    return [one.removeprefix("-\t-\t") for one in told.split("\0") if one.startswith("-\t-\t")]


def _fits(file: Path) -> bool:
    return file.is_file() and not file.is_symlink() and file.stat().st_size <= LARGEST
