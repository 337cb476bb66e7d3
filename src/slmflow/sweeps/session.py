"""Who drives a sweep: one process at a time, agreed on through the tracking server alone.

A parameter of a run is written once: MLflow refuses another value under the same name, so of two
that write ``sweep.session.2`` at the same moment one has it. The driver shows that it is alive by
a tag that changes; who finds a sweep RUNNING on another machine watches whether it does.
"""

import getpass
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from slmflow.errors import TrackingError

SESSION = "sweep.session."  # and a number: who drove it, one session after another
ENDED = ".ended"  # behind the same name, once the driver has let go
ALIVE = "slmflow.sweep.alive"
BEAT = 10.0  # seconds
MISSED = 3  # beats after which a driver elsewhere counts as dead


@contextmanager
def session(parent: str, client: MlflowClient) -> Iterator[None]:
    """Drive this sweep, alone. Raises ``TrackingError`` where another process does."""
    mine = _claim(parent, client)
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(parent, client, stop), daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        client.log_param(parent, f"{mine}{ENDED}", "true")


def driver_of(run: Run) -> str | None:
    """Of the last session: ``user@host:pid:started:id``."""
    sessions = _sessions(run)
    return run.data.params[f"{SESSION}{max(sessions)}"] if sessions else None


def _claim(parent: str, client: MlflowClient) -> str:
    """The name of the session."""
    run = client.get_run(parent)
    if (driver := driver_of(run)) is not None and _alive(run, driver, client):
        raise _taken(parent, driver)
    name = f"{SESSION}{max(_sessions(run), default=0) + 1}"
    mine = f"{getpass.getuser()}@{_this_process()}:{uuid.uuid4().hex[:8]}"
    try:
        client.log_param(parent, name, mine)
    except MlflowException:
        taken = client.get_run(parent).data.params.get(name, "another process")
        raise _taken(parent, taken) from None
    return name


def _taken(parent: str, driver: str) -> TrackingError:
    who, _, rest = driver.partition(":")
    return TrackingError(
        f"the sweep {parent} is being run by {who} (process {rest.partition(':')[0]}); wait for it "
        "or stop it, then repeat the command; sweep.resume=never runs all points anew in a "
        "sweep of your own"
    )


def _alive(run: Run, driver: str, client: MlflowClient) -> bool:
    if _has_ended(run):
        return False
    _, _, process = driver.partition("@")
    host, pid, started, _ = process.split(":")
    if host == socket.gethostname():
        return _runs_here(int(pid), float(started))
    return _beats(run, client)


def _runs_here(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False


def _beats(run: Run, client: MlflowClient) -> bool:
    """Two clocks need not agree: what counts is that the tag changes."""
    seen = run.data.tags.get(ALIVE)
    until = time.monotonic() + MISSED * BEAT
    while time.monotonic() < until:
        time.sleep(1)
        now = client.get_run(run.info.run_id)
        if _has_ended(now):
            return False
        if now.data.tags.get(ALIVE) != seen:
            return True
    return False


def _beat(parent: str, client: MlflowClient, stop: threading.Event) -> None:
    number = 0
    while True:
        number += 1
        with suppress(MlflowException):  # the server is away for a moment; the next beat tells
            client.set_tag(parent, ALIVE, f"{os.getpid()}.{number}")
        if stop.wait(BEAT):
            return


def _has_ended(run: Run) -> bool:
    return f"{SESSION}{max(_sessions(run))}{ENDED}" in run.data.params


def _sessions(run: Run) -> list[int]:
    names = [key.removeprefix(SESSION) for key in run.data.params if key.startswith(SESSION)]
    return [int(name) for name in names if name.isdigit()]


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.1f}"
