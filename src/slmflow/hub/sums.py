"""Files against what they should hold."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from slmflow.errors import SourceError
from slmflow.lock_file import Sum
from slmflow.served.digests import file_sha256, remember

SHA256, GIT_SHA1 = 64, 40  # hexadecimal digits


def check(folder: Path, files: Mapping[str, Sum], source: str, by: str) -> None:
    """Raise ``SourceError`` for the first file that differs from what ``by`` says of it.

    One that the hub's cache keeps damaged is removed, so that repeating the command fetches it.
    """
    for name, expected in files.items():
        path = folder / name
        found = measure(path, expected)
        if found == expected:
            continue
        if _is_as_given(path):
            then = "it is what the hub gave; where that is right, type ./run lock"
        else:
            remove(path, folder.parents[1] / "blobs")
            then = "it is removed from the hub's cache: repeat the command to fetch it again"
        shown = expected if found.size == expected.size else Sum(expected.size)
        raise SourceError(
            f"{source}: {name} has {_spelt(found)}, {by} says {_spelt(shown)}; {then}"
        )


def measure(path: Path, expected: Sum) -> Sum:
    """The same facts of the file that lies there; large ones are read once."""
    size = path.stat().st_size
    if size != expected.size:
        return Sum(size)
    if expected.sha256 is not None:
        digest = file_sha256(path)
        remember(path, digest)  # nobody writes into the hub's cache again
        return Sum(size, sha256=digest)
    if expected.git_sha1 is not None:
        return Sum(size, git_sha1=_git_sha1(path, size))
    return Sum(size)


def named(path: Path) -> Sum:
    """What the hub's cache says of its own file: it lies under the digest that the hub told.

    Without links (a file system that has none) only the size is known.
    """
    name = path.readlink().name if path.is_symlink() else ""
    size = path.stat().st_size
    if len(name) == SHA256:
        return Sum(size, sha256=name)
    return Sum(size, git_sha1=name) if len(name) == GIT_SHA1 else Sum(size)


def remove(path: Path, blobs: Path) -> None:
    """From the hub's cache: the link in the snapshot, and the blob that it leads to.

    What lies elsewhere is somebody's own file, and stays.
    """
    if path.is_symlink():
        for file in (path.resolve(), path.parent / path.readlink()):
            if file.parent.resolve() == blobs.resolve():
                file.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _is_as_given(path: Path) -> bool:
    """Not where it is damaged, nor where nobody can tell."""
    told = named(path)
    return bool(told.sha256 or told.git_sha1) and measure(path, told) == told


def _git_sha1(path: Path, size: int) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _spelt(about: Sum) -> str:
    if about.sha256:
        return f"SHA-256 {about.sha256}"
    return f"SHA-1 {about.git_sha1}" if about.git_sha1 else f"{about.size} bytes"
