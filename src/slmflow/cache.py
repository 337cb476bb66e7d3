"""Folders that are made once and shared by every run on this machine.

An entry is keyed by everything that determines its bytes. It is made in a folder of its own,
moved into place whole and listed in a manifest that is written last: without a manifest that
fits, an entry does not exist. A lock lets one run make it while others wait.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from slmflow.served.digests import cache_root, file_sha256, files_sha256, replace_whole

root = cache_root


def entry(
    kind: str,
    key: Mapping[str, str],
    make: Callable[[Path], None],
    waiting: Callable[[], None] = lambda: None,
) -> tuple[Path, bool]:
    """The entry's folder, and whether ``make`` had to fill it.

    ``waiting`` is called once when another run is making the same entry. Whatever ``make`` raises
    leaves no entry behind.
    """
    name = key_digest(key)
    folder = root() / kind / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_suffix(".lock"), waiting):
        if intact(folder):
            return folder, False
        staging = folder.with_suffix(".partial")
        for leftover in (staging, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        staging.mkdir()
        try:
            make(staging)
            files = manifest(staging)
            staging.replace(folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        # Rename keeps the times of the files, so the manifest still fits.
        write_json(folder.with_suffix(".json"), {"key": dict(key), "files": files})
        return folder, True


def intact(folder: Path) -> bool:
    """Whether the entry is there with every file as its manifest says.

    Size and modification time are believed; a file whose time differs is read and hashed.
    """
    try:
        recorded: dict[str, Any] = json.loads(folder.with_suffix(".json").read_text())["files"]
        present = {path.relative_to(folder).as_posix() for path in _files(folder)}
        complete = folder.is_dir() and present == set(recorded)
        return complete and all(_same(folder / name, about) for name, about in recorded.items())
    except (OSError, ValueError, KeyError):
        return False


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size, modification time and SHA-256 of every file."""
    return {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
            "sha256": file_sha256(path),
        }
        for path in _files(folder)
    }


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of every file."""
    return files_digest(folder, [path.relative_to(folder).as_posix() for path in _files(folder)])


def files_digest(folder: Path, names: Sequence[str]) -> str:
    """The same over some files: the revision of weights that have no commit."""
    total = hashlib.sha256()
    digests = files_sha256(folder / name for name in sorted(names))
    for path, digest in digests.items():
        # A name may hold anything but NUL, which therefore ends it beyond doubt.
        total.update(f"{path.relative_to(folder).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()


def key_digest(key: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]


def write_json(path: Path, content: Any) -> None:
    """All or nothing: a reader never sees half of it."""
    replace_whole(path, json.dumps(content, indent=1))


def _lock(path: Path, waiting: Callable[[], None]) -> AbstractContextManager[object]:
    """Acquired already; leaving the context releases it."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        waiting()
        return lock.acquire()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _same(path: Path, about: Mapping[str, Any]) -> bool:
    stat = path.stat()
    if stat.st_size != about["size"]:
        return False
    return bool(stat.st_mtime_ns == about["mtime_ns"] or file_sha256(path) == about["sha256"])
