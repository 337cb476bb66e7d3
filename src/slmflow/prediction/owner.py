"""One job at a time writes to an output."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem

from slmflow.prediction.errors import PredictionError
from slmflow.prediction.places import below, find, read_json, write_json

LOCK = "_lock"
OWNER = "_owner.json"
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""An owner who was silent for so long is gone; what he wrote by then stays."""


@contextmanager
def owned(output: str) -> Iterator[None]:
    """Raises ``PredictionError`` where another job writes there.

    On disks a lock, which ends with the process that holds it. Other stores know no locks: there a
    file says who writes and that he still lives, which can miss two that begin in the same moment.
    """
    system, path = find(output)
    try:
        system.makedirs(path, exist_ok=True)
    except OSError as error:
        raise PredictionError(
            f"output={output} cannot be made ({error}); give a folder that can"
        ) from None
    with _lock(path) if isinstance(system, LocalFileSystem) else _beating(output):
        yield


@contextmanager
def _lock(folder: str) -> Iterator[None]:
    lock = FileLock(Path(folder) / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise _refused(folder, "") from None
    except OSError as error:
        raise PredictionError(
            f"output={folder} cannot be written ({error}); give a folder that can"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _beating(output: str) -> Iterator[None]:
    place = below(output, OWNER)
    other = read_json(place)
    if other is not None and _lives(other):
        hint = f" (process {other['pid']} on {other['host']})"
        raise _refused(output, hint, f"; a job that was killed is gone {STALE_SECONDS:.0f} s later")
    me = {"id": uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            # Stores' packages raise errors of their own; the next one may be written.
            with suppress(Exception):
                write_json(place, {**me, "time": time.time()})

    write_json(place, {**me, "time": time.time()})
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        system, path = find(place)
        with suppress(OSError):
            system.rm_file(path)


def _lives(owner: dict[str, Any]) -> bool:
    if owner["host"] == socket.gethostname() and not psutil.pid_exists(owner["pid"]):
        return False
    return bool(time.time() - owner["time"] < STALE_SECONDS)


def _refused(output: str, who: str, hint: str = "") -> PredictionError:
    return PredictionError(
        f"another job{who} writes to {output}; wait for its end, or give another output{hint}"
    )
