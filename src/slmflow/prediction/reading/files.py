"""The files that a job reads, and what tells them from others."""

import hashlib
import lzma
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
from fsspec import AbstractFileSystem

from slmflow.errors import DataError
from slmflow.prediction.places import absolute, find
from slmflow.tracking.project_source import relative_paths

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
PACKED = (".gz", ".bz2", ".xz")  # texts that are unpacked as they are read
STORES_DIGESTS = ("ETag", "etag", "md5Hash", "content_md5")
"""What object stores tell of a file without its being read (S3, HTTP, Google, Azure)."""

BLOCK = 1024 * 1024  # bytes read at once
ALLOWED = f"{', '.join(FORMATS)}, texts also with {', '.join(PACKED)}"


@dataclass(frozen=True)
class InputFile:
    system: AbstractFileSystem
    path: str
    name: str
    format: str
    size: int  # bytes

    def open(self) -> IO[bytes]:
        opened: IO[bytes] = self.system.open(self.path, "rb", compression="infer")
        return opened


def find_files(place: str) -> list[InputFile]:
    """One file, or those of a folder by name. Hidden ones, and those whose name begins with "_",
    are passed over. Raises ``DataError``."""
    system, path = find(absolute(place))
    try:
        if system.isfile(path):
            return [_file(system, system.info(path), place)]
        if not system.isdir(path):
            raise DataError(
                f"input={place} is neither a file nor a folder; give one that is there "
                f"(a relative path begins at the repository's root){relative_paths(place)}"
            )
        found = sorted(system.ls(path, detail=True), key=lambda about: str(about["name"]))
    except OSError as error:
        raise DataError(f"input={place} cannot be read: {error}") from None
    chosen = [
        about
        for about in found
        # Object stores may list the folder itself.
        if not _name(about).startswith(("_", ".")) and about["name"].rstrip("/") != path.rstrip("/")
    ]
    if not chosen:
        raise DataError(f"input={place} is a folder without files; it needs {ALLOWED}")
    return [_file(system, about, place) for about in chosen]


@contextmanager
def readable(file: InputFile) -> Iterator[None]:
    """Whatever ends the reading of it ends as ``DataError``."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{file.name} cannot be read: {error}") from None


def identity(file: InputFile) -> dict[str, Any]:
    """Equal for equal content: what the store says, else SHA-256. Raises ``DataError``."""
    about = file.system.info(file.path)
    told = next((about[key] for key in STORES_DIGESTS if about.get(key)), None)
    digest = _sha256(file) if told is None else str(told)
    return {"name": file.name, "size": file.size, "digest": digest}


def _file(system: AbstractFileSystem, about: Mapping[str, Any], place: str) -> InputFile:
    name = _name(about)
    if about["type"] == "directory":
        raise DataError(f"input={place} has a folder {name} in it; give the files of one folder")
    stem = name.lower()
    for ending in PACKED:
        stem = stem.removesuffix(ending)
    kind = next((FORMATS[ending] for ending in FORMATS if stem.endswith(ending)), None)
    if kind is None or (kind == "parquet" and stem != name.lower()):
        raise DataError(f"input: {name} is of no format that can be read; allowed: {ALLOWED}")
    return InputFile(system, str(about["name"]), name, kind, int(about.get("size") or 0))


def _name(about: Mapping[str, Any]) -> str:
    return str(about["name"]).rstrip("/").rpartition("/")[2]


def _sha256(file: InputFile) -> str:
    digest = hashlib.sha256()
    with readable(file), file.system.open(file.path, "rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"
