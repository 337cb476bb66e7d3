"""SHA-256 of files, each read once: a file that has not changed since is not read again."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

SMALL = 1 << 20  # bytes; reading these again costs less than looking them up
RACY = 2 * 10**9  # nanoseconds; a file as young as that may change within one tick of its clock


def cache_root() -> Path:
    """``SLMFLOW_CACHE``, else ``~/.cache/slmflow``.

    Absolute: libraries take the relative path of a model for its name on a hub.
    """
    chosen = os.environ.get("SLMFLOW_CACHE")
    return Path(chosen or "~/.cache/slmflow").expanduser().absolute()


def file_sha256(path: Path, again: bool = False) -> str:
    """The digest of a file, in hexadecimal digits.

    Large ones are remembered by file system, inode, size and the times of the last change of
    content and inode, so links share what was read of one of them. No tool can set the latter
    back: what is unpacked or synchronised with the times of its source is read. ``again``: reads
    the file in any case, for disks that changed by themselves.
    """
    stat = path.stat()
    known = None if again or stat.st_size < SMALL else _remembered(stat)
    if known is not None:
        return known
    digest = _read(path)
    after = path.stat()
    if stat.st_size >= SMALL and _state(stat) == _state(after) and _is_settled(after):
        remember(path, digest)
    return digest


def files_sha256(paths: Iterable[Path], again: bool = False) -> dict[Path, str]:
    """Of many, several at once: hashing lets other threads run."""
    listed = list(paths)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(listed, pool.map(lambda p: file_sha256(p, again), listed), strict=True))


def remember(path: Path, digest: str) -> None:
    """Of a file that nobody writes again. Does nothing where the cache cannot be written."""
    stat = path.stat()
    with suppress(OSError):
        replace_whole(_record(stat), json.dumps({**_state(stat), "sha256": digest}))


def link(file: Path, target: Path) -> None:
    """A hard link. It changes the inode, of which the digest stays known. Raises ``OSError``."""
    before = file.stat()
    known = _remembered(before)
    os.link(file, target)
    if known is not None and _content(before) == _content(target.stat()):
        remember(target, known)


def replace_whole(path: Path, text: str) -> None:
    """All or nothing: a reader never sees half of it, and two writers never share a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _remembered(stat: os.stat_result) -> str | None:
    try:
        record = json.loads(_record(stat).read_text())
        digest = str(record.pop("sha256"))
        return digest if record == _state(stat) else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _record(stat: os.stat_result) -> Path:
    return cache_root() / "digests" / f"{stat.st_dev}-{stat.st_ino}.json"


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(stat: os.stat_result) -> dict[str, int]:
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}


def _content(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _is_settled(stat: os.stat_result) -> bool:
    return time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > RACY
