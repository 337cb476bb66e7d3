"""The files of a model by their content: what each must be, where it is kept, and the check of it.

A packaged model carries ``weights.json``, which names its weight and tokenizer files with sizes
and SHA-256. Large ones may be left out of the model's folder: they are then kept once, in a logged
model of their own that ``weights.json`` names, and on each machine in the store below.
"""

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

from slmflow.served.digests import cache_root, file_sha256, files_sha256, link, remember

MANIFEST = "weights.json"
DECLARED = "slmflow.weights"  # the manifest's digest, in MLmodel's metadata and as the run's tag
FULL = (errno.ENOSPC, errno.EDQUOT)  # of any copy, however it is made
LEFT_SECONDS = 86_400  # after which staging is that of a killed process
LARGE = 1 << 16  # bytes; smaller files lie in every model's folder


@dataclass(frozen=True)
class File:
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """``files`` by their names in ``folder``, a folder of the packaged model.

    ``copies``: what MLflow wants a second time, by its path in the model, and the name of the file
    whose content that has. ``shared``: the URI of the logged model that has the large files, where
    the packaged one lacks them.
    """

    source: str
    revision: str
    files: Mapping[str, File]
    folder: str = ""
    copies: Mapping[str, str] = field(default_factory=dict)
    shared: str | None = None
    format: int = field(default=1)

    @classmethod
    def read(cls, model: Path) -> "Manifest | None":
        """Of a packaged model's folder; None where an earlier slmflow packaged it.

        Raises ``WeightsError`` where it is not the one that ``MLmodel`` declares.
        """
        declared = _declared(model)
        try:
            told: dict[str, Any] = json.loads((model / MANIFEST).read_text("utf-8"))
        except FileNotFoundError:
            if declared is not None:
                raise _other_manifest(model, "is missing") from None
            return None
        manifest = cls.from_json(told)
        if declared not in (None, manifest.digest):
            raise _other_manifest(model, "names other weights")
        return manifest

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Manifest":
        """Raises ``WeightsError`` for another format, and for paths that lead out of a model."""
        if told.get("format") != 1:
            raise WeightsError(
                f"weights.json has format {told.get('format')}, and this slmflow reads 1: a later "
                "one packaged the model; update slmflow"
            )
        for path in (told["folder"], *told["files"], *told["copies"]):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise WeightsError(f"weights.json names {path!r}, which is no path in a model")
        files = {name: File(**about) for name, about in told["files"].items()}
        return cls(**{**told, "files": files})

    def write(self, model: Path) -> None:
        (model / MANIFEST).write_text(json.dumps(self.as_json(), indent=1) + "\n", "utf-8")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 of names and contents: equal for the same files from any source."""
        contents = {name: about.sha256 for name, about in sorted(self.files.items())}
        return sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()

    @property
    def large(self) -> dict[str, File]:
        return {name: about for name, about in self.files.items() if about.size >= LARGE}

    @property
    def small(self) -> dict[str, File]:
        return {name: about for name, about in self.files.items() if about.size < LARGE}

    @property
    def places(self) -> dict[str, File]:
        """Of the large files, by their paths in the model."""
        own = {f"{self.folder}/{name}": about for name, about in self.large.items()}
        return own | {path: self.files[name] for path, name in self.copies.items()}


class WeightsError(MlflowException):  # type: ignore[misc]
    """Files that are not what was packaged, or cannot be had."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INTERNAL_ERROR)


def _declared(model: Path) -> str | None:
    """None where an earlier slmflow packaged the model, and where there is no model."""
    file = model / "MLmodel"
    try:
        told = yaml.safe_load(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, UnicodeDecodeError):
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("metadata") or {}, dict):
        raise WeightsError(f"{file} does not describe a model; get an intact copy of the model")
    declared: str | None = (told.get("metadata") or {}).get(DECLARED)
    return declared


def _other_manifest(model: Path, how: str) -> WeightsError:
    return WeightsError(
        f"{model / MANIFEST} {how}, and MLmodel beside it says which were packaged; get an intact "
        "copy, or package the model again"
    )


def ready(model: Path, folder: str) -> Path:
    """The folder to load a packaged model from: every file in it, each of the content that was
    packaged. Fetches what was left out. Raises ``WeightsError``.
    """
    manifest = Manifest.read(model)
    if manifest is None:
        return model / folder
    here = model / folder
    if all((here / name).is_file() for name in manifest.large):
        verify(here, manifest.files)
        return here
    verify(here, {n: about for n, about in manifest.files.items() if n not in manifest.large})
    return _assembled(here, manifest)


def verify(folder: Path, files: Mapping[str, File], again: bool = False) -> None:
    """Compare names, sizes and contents. Raises ``WeightsError`` naming every file that differs.

    ``again``: read also what was read before and has not been written since.
    """
    wrong = [f"{name} is missing" for name in files if not (folder / name).is_file()]
    found = [name for name in files if (folder / name).is_file()]
    sized = [name for name in found if (folder / name).stat().st_size == files[name].size]
    digests = files_sha256([folder / name for name in sized], again)
    wrong += [
        f"{name} has {(folder / name).stat().st_size} bytes, not {files[name].size}"
        for name in found
        if name not in sized
    ]
    wrong += [f"{n} has other content" for n in sized if digests[folder / n] != files[n].sha256]
    if wrong:
        raise WeightsError(
            f"the model's files in {folder} are not those that were packaged: "
            f"{'; '.join(sorted(wrong))}; get an intact copy, or package the model again"
        )


def kept(digest: str) -> Path:
    """Where this machine keeps the file of that content, if it does."""
    return cache_root() / "weights" / digest[:2] / digest


def keep(file: Path, about: File, read: os.stat_result, frozen: bool) -> Path:
    """Have the content in this machine's store. ``read``: the file's state before it was hashed.

    ``frozen``: nobody writes the file again, so a link shares its bytes where the file system can.
    Raises ``WeightsError`` for a file that was written since it was read.
    """
    place = kept(about.sha256)
    if _is_kept(place, about):
        return place
    with staging() as folder:
        partial = folder / place.name
        copied = not (frozen and _linked(file, partial))
        if copied:
            copy(file, partial)
        now = file.stat()
        if (read.st_size, read.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
            raise WeightsError(f"{file} is being written; repeat the command when it is whole")
        if copied:
            partial.chmod(0o444)
        _move(partial, place)
    return place


def _move(partial: Path, place: Path) -> None:
    """Into the store, under the digest of what it holds."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(place)
    remember(place, place.name)  # now: a new name changes the inode


@contextmanager
def staging() -> Iterator[Path]:
    """A folder on the store's file system, of a name that nobody else uses. What killed processes
    left there a day ago goes."""
    folder = cache_root() / "weights" / "staging"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        yield Path(own)


def link_or_copy(file: Path, target: Path) -> None:
    """Of a file in the store: both names share its bytes where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if not _linked(file, target):
        copy(file, target)


def copy(file: Path, target: Path) -> None:
    """In the kernel, where file systems that can (btrfs, XFS) share the blocks of both files.

    Byte by byte where the kernel, a filter of system calls or a network file system refuses that:
    each has its own error for it.
    """
    try:
        _copy_range(file, target)
    except OSError as error:
        if error.errno in FULL:
            raise
        shutil.copyfile(file, target)


def _copy_range(file: Path, target: Path) -> None:
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    with file.open("rb") as source, target.open("wb") as sink:
        left = os.fstat(source.fileno()).st_size
        while left > 0 and (done := os.copy_file_range(source.fileno(), sink.fileno(), left)):
            left -= done
    if left:  # some network file systems end too early
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def fetch(manifest: Manifest) -> None:
    """Have every large file in this machine's store. Raises ``WeightsError``."""
    for name, about in manifest.large.items():
        if not _is_kept(kept(about.sha256), about):
            _fetch_one(name, about, manifest)


def _assembled(here: Path, manifest: Manifest) -> Path:
    """A folder of this machine with the model's own small files and links to the kept large ones.

    Made once, verified, then moved into place whole; made again where it is not what it was.
    """
    place = cache_root() / "assembled" / manifest.digest[:24]
    if place.is_dir():
        try:
            verify(place, manifest.files)
            return place
        except WeightsError:  # written through a link, or a part of the cache was deleted
            shutil.rmtree(place, ignore_errors=True)
    fetch(manifest)
    place.parent.mkdir(parents=True, exist_ok=True)
    with staging() as folder:
        made = folder / "model"
        for name, about in manifest.files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            if name in manifest.large:
                link_or_copy(kept(about.sha256), made / name)
            else:
                shutil.copyfile(here / name, made / name)
        verify(made, manifest.files)
        with suppress(OSError):  # another process was first
            made.rename(place)
    verify(place, manifest.files)
    return place


def _fetch_one(name: str, about: File, manifest: Manifest) -> None:
    if manifest.shared is None:
        raise WeightsError(
            f"{name} is neither in the model's folder nor on this machine, and weights.json names "
            "no place to fetch it from; get an intact copy, or package the model again"
        )
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with staging() as folder:
        try:
            repository = get_artifact_repository(manifest.shared)
            got = Path(repository.download_artifacts(name, dst_path=str(folder)))
        except Exception as error:  # stores have their own: boto3's are no MlflowException
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(
                f"{name} was left out of the model and cannot be fetched from {manifest.shared} "
                f"({words}); is MLFLOW_TRACKING_URI the server that has it?"
            ) from None
        if got.stat().st_size != about.size or file_sha256(got, again=True) != about.sha256:
            raise WeightsError(
                f"{manifest.shared} has other bytes as {name} than those that were packaged; on a "
                "machine that still has them type ./run materialise -P model_uri=... for this model"
            )
        got.chmod(0o444)
        _move(got, kept(about.sha256))


def _is_kept(place: Path, about: File) -> bool:
    """Whether it is in the store, and still is what it was."""
    try:
        return place.stat().st_size == about.size and file_sha256(place) == about.sha256
    except FileNotFoundError:
        return False


def _linked(file: Path, target: Path) -> bool:
    try:
        link(file.resolve(), target)
    except OSError:  # another file system, or one without hard links
        return False
    return True
