"""``conf/models.lock.yaml``: the commits that the configured models are pinned to, and their files.

Written by the entry point ``lock``. Whoever fetches or finds weights takes the commit from here
and holds every file against it.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slmflow.checkout import PROJECT_ROOT
from slmflow.errors import SourceError, first_line
from slmflow.served.digests import replace_whole

FORMAT = 1
NAME = "models.lock.yaml"
PLACE = "SLMFLOW_LOCK"  # the variable with another place of it
HEADER = """\
# The commits that the models of conf/model/ are pinned to, and what their files hold. Written by
# `./run lock`; commit it. Runs take these commits and refuse files that differ.
"""


@dataclass(frozen=True)
class Sum:
    """What a file holds: its size in bytes and one of the two digests, where one is known.

    ``git_sha1``: SHA-1 over ``blob SIZE NUL content``, git's name of the file; the hub tells no
    other of small files.
    """

    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    def as_yaml(self) -> dict[str, Any]:
        digests = {"sha256": self.sha256, "git_sha1": self.git_sha1}
        return {"size": self.size, **{name: value for name, value in digests.items() if value}}


@dataclass(frozen=True)
class Contents:
    """Files of a repository at a commit, by name; of a folder at sha256:... over its files."""

    commit: str
    files: Mapping[str, Sum]


@dataclass(frozen=True)
class Entry:
    """``source`` and ``revision`` as a model's config has them."""

    source: str
    revision: str | None
    contents: Contents

    @property
    def key(self) -> tuple[str, str]:
        return self.source, self.revision or ""


def place() -> Path:
    """``SLMFLOW_LOCK``, else ``conf/models.lock.yaml`` of this checkout."""
    chosen = os.environ.get(PLACE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return PROJECT_ROOT / "conf" / NAME


def pinned(source: str, revision: str | None) -> Contents | None:
    """What the lock says of it; None where it says nothing of this source.

    Raises ``SourceError`` where the source is locked, but not at this revision.
    """
    entries = [entry for entry in read() if entry.source == source]
    for entry in entries:
        if revision in (entry.revision, entry.contents.commit):
            return entry.contents
    if not entries:
        return None
    told = " and ".join(f"{spelt(e.revision)} = {e.contents.commit[:12]}" for e in entries)
    raise SourceError(
        f"{source} was asked for at revision {spelt(revision)}, and {place().name} pins it at "
        f"{told}; take that one, or set revision in conf/model/ and type ./run lock"
    )


@contextmanager
def aside(entries: Iterable[Entry]) -> Iterator[None]:
    """For its time, a lock of its own with these entries is ``place()``; the real one is left
    alone."""
    before = os.environ.get(PLACE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[PLACE] = str(Path(folder) / NAME)
        try:
            write(entries)
            yield
        finally:
            if before is None:
                del os.environ[PLACE]
            else:
                os.environ[PLACE] = before


def read() -> list[Entry]:
    """Its entries, none where there is no lock. Raises ``SourceError`` where it cannot be read."""
    file = place()
    try:
        told = yaml.load(file.read_text("utf-8"), Loader=_LOADER)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _unreadable(file, first_line(error)) from None
    try:
        if told["format"] != FORMAT:
            raise _unreadable(file, f"its format is {told['format']}, this slmflow reads {FORMAT}")
        return [_entry(about) for about in told["models"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise _unreadable(file, f"it lacks or has too much: {error}") from None


def write(entries: Iterable[Entry]) -> None:
    """Sorted, a line for each file, so that a change shows as the lines that changed."""
    models = [
        {
            "source": entry.source,
            "revision": entry.revision,
            "commit": entry.contents.commit,
            "files": {
                name: about.as_yaml() for name, about in sorted(entry.contents.files.items())
            },
        }
        for entry in sorted(entries, key=lambda entry: entry.key)
    ]
    text = yaml.safe_dump(
        {"format": FORMAT, "models": models}, sort_keys=False, default_flow_style=None, width=1000
    )
    replace_whole(place(), HEADER + text)


def of_others(source: str, lacking: str) -> SourceError:
    """For a locked source of which files are wanted that no model of conf/model/ asked for."""
    return SourceError(
        f"{place().name} was written for other files of {source} and has no {lacking}; set what "
        "you want in conf/model/ (model.onnx.prebuilt, model.trust_remote_code) and type ./run lock"
    )


def demand_writable() -> None:
    """Makes its folder. Raises ``SourceError`` where ``write`` would fail."""
    folder = place().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        why = "" if os.access(folder, os.W_OK) else "it is not yours"
    except OSError as error:
        why = first_line(error)
    if why:
        raise SourceError(
            f"{folder} cannot be written ({why}); set SLMFLOW_LOCK to a file in a folder of yours"
        )


def spelt(revision: str | None) -> str:
    return "null" if revision is None else revision


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _entry(about: Mapping[str, Any]) -> Entry:
    files = {str(name): Sum(**file) for name, file in about["files"].items()}
    return Entry(about["source"], about["revision"], Contents(about["commit"], files))


def _unreadable(file: Path, why: str) -> SourceError:
    return SourceError(
        f"{file} cannot be read ({why}); take the committed one (git checkout), or delete it and "
        "type ./run lock"
    )
