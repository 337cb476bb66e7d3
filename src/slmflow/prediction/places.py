"""Where a job's files lie, and how they are written: on any file system that fsspec knows.

Names that begin with "_" are passed over by what reads a folder of Parquet files: pyarrow, pandas,
Spark. So the folder that a job writes is one table, also while it is written.
"""

import json
import os
import posixpath
from pathlib import Path
from typing import Any
from uuid import uuid4

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from slmflow.checkout import PROJECT_ROOT
from slmflow.prediction.errors import PredictionError

MANIFEST = "_manifest.json"  # of a job that is done
JOB = "_job"  # what a job needs until then
DONE = f"{JOB}/done"
PLAN = f"{JOB}/plan.json"
PARTIAL = "_partial-"  # what was being written when its process was killed


def absolute(place: str) -> str:
    """A URL as it stands; a path from the repository's root, where ``mlflow run`` works, too."""
    return place if "://" in place else str(PROJECT_ROOT / Path(place).expanduser())


def find(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system and the path in it. Raises ``PredictionError`` for a protocol that is
    unknown or whose package is missing."""
    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise PredictionError(
            f"{url} cannot be reached: {error}; allowed: a path, or a URL of fsspec whose package "
            "is installed (s3://: pip install s3fs, gs://: gcsfs, abfs://: adlfs)"
        ) from None
    return system, str(path)


def resolved(url: str) -> tuple[AbstractFileSystem, str]:
    """As ``find``; equal for what is one place, however it is written."""
    system, path = find(url)
    on_disk = isinstance(system, LocalFileSystem)
    return system, os.path.realpath(path) if on_disk else posixpath.normpath(path)


def below(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"


def part_name(number: int) -> str:
    return f"part-{number:08}.parquet"


def staged(output: str, number: int) -> str:
    return below(output, f"{JOB}/input/{part_name(number)}")


def done_record(output: str, number: int) -> str:
    return below(output, f"{DONE}/{number:08}.json")


def write_whole(url: str, content: bytes) -> None:
    """All or nothing: written beside, then moved. Where two write the same, the last one stays.

    Raises ``PredictionError`` for a store that is only to be read.
    """
    system, path = find(url)
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/{PARTIAL}{name}.{uuid4().hex}"
    try:
        system.makedirs(folder, exist_ok=True)
        system.pipe_file(partial, content)
    except (NotImplementedError, PermissionError) as error:
        reason = str(error) or "it is only to be read"
        raise PredictionError(
            f"{url} cannot be written ({reason}); give an output that can"
        ) from None
    system.mv(partial, path)


def write_json(url: str, content: Any) -> None:
    write_whole(url, (json.dumps(content, indent=1) + "\n").encode())


def read_json(url: str) -> Any:
    """None where there is no such file."""
    system, path = find(url)
    try:
        return json.loads(system.cat_file(path))
    except FileNotFoundError:
        return None
