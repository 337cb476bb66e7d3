"""A folder that things will be written to: whether they can be."""

import os
import tempfile
from pathlib import Path


def existing(path: Path) -> Path:
    """The folder, or the nearest one above that is there: where it will be made.

    What lies in a folder that this user may not search counts as absent; ``Path.exists`` raises.
    """
    return next(one for one in (path, *path.parents) if os.access(one, os.F_OK))


def is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError:
        return False


def refusal(path: Path) -> str | None:
    """Why nothing can be written there, found by writing a file and removing it; None: it can.

    A folder that is not there yet is not made: the one that will hold it is tried.
    """
    folder = existing(path)
    if not is_folder(folder):
        return f"{folder} is a file, not a folder"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{folder} cannot be written to ({os.strerror(error.errno or 0)})"
