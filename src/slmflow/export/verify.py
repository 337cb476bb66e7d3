"""Whether every file of an export is as it was written: python verify.py

Exit code 0, or 1 with a line for each file that is missing, changed or additional. Needs nothing
but Python (3.8 or newer), so that it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"
BLOCK = 2**20  # bytes that are read at once
COMPILED = "written by Python as it loads the model; delete it, and set PYTHONDONTWRITEBYTECODE=1"


def faults(folder: Path) -> list[str]:
    """A line for each file that differs from the manifest.

    Raises ``ValueError`` for a manifest that cannot be read, or lists no files.
    """
    listed = read_files(folder)
    present = set(names(folder)) - {MANIFEST}
    told = [f"missing: {name}" for name in sorted(set(listed) - present)]
    told += [f"additional: {_explained(name)}" for name in sorted(present - set(listed))]
    both = sorted(present & set(listed))
    return told + [f"changed: {name}" for name in both if _changed(folder / name, listed[name])]


def read_files(folder: Path) -> dict[str, dict[str, object]]:
    """Size and SHA-256 of every file, as the manifest lists them."""
    try:
        listed = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
        return {
            str(name): {"size": of["size"], "sha256": of["sha256"]} for name, of in listed.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error!r}") from None


def names(folder: Path) -> Iterator[str]:
    """Of everything below the folder that is not a folder itself; links are not followed."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in files + links:
            yield (Path(place) / name).relative_to(folder).as_posix()


def about(path: Path) -> dict[str, object]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def _changed(path: Path, listed: dict[str, object]) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != listed["size"]:
        return True
    return about(path) != listed


def _explained(name: str) -> str:
    return f"{name} ({COMPILED})" if name.endswith(".pyc") else name


def main() -> int:
    folder = Path(__file__).absolute().parent
    try:
        told = faults(folder)
        count = len(read_files(folder))
    except ValueError as error:
        print(error)
        return 1
    if told:
        print("\n".join(told))
        return 1
    print(f"{count} files are as they were written")
    print(f"{MANIFEST} sha256:{about(folder / MANIFEST)['sha256']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
