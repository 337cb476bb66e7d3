"""A folder for ONNX models that are built anew; beside the cache, for its file system."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from slmflow import cache

PREFIX = "rerun-"


@contextmanager
def own_builds() -> Iterator[Path]:
    """Removed in the end. What a rerun that was killed has left is removed first."""
    root = cache.root()
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(f"{PREFIX}*"):
        if left.is_dir():
            _remove_if_left(left)
    folder = root / f"{PREFIX}{uuid4().hex}"
    with FileLock(_lock(folder)):
        folder.mkdir()  # after its lock: without one it would be taken for left
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    _lock(folder).unlink(missing_ok=True)


def _remove_if_left(folder: Path) -> None:
    with suppress(Timeout), FileLock(_lock(folder), timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
        _lock(folder).unlink(missing_ok=True)


def _lock(folder: Path) -> Path:
    return folder.with_suffix(".lock")
