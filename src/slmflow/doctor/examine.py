"""All checks at once, each with the same time to answer."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TimedOut
from dataclasses import dataclass
from importlib.metadata import entry_points

from slmflow.doctor import artifacts, database, folder, server, stores
from slmflow.doctor.disk import check_cache, check_disk
from slmflow.doctor.finding import Finding, failure, ok, warning
from slmflow.doctor.hardware import check_cores, check_hardware, check_wheels
from slmflow.doctor.memory import check_memory
from slmflow.doctor.subject import Subject, later
from slmflow.doctor.surroundings import check_code, check_telemetry, check_weights
from slmflow.doctor.versions import check_packages, check_python
from slmflow.redaction import redacted

GRACE = 5.0  # seconds: for a disk that has to wake up, or a machine that is busy


@dataclass(frozen=True)
class Check:
    """``cheap``: takes a few milliseconds. ``elsewhere``: asks others, who may not answer."""

    name: str
    look: Callable[[Subject], Finding]
    cheap: bool = False
    elsewhere: bool = False


def check_tracking(subject: Subject) -> Finding:
    return _check_store("tracking", stores.tracking_uri(), subject, server.check_tracking)


def check_registry(subject: Subject) -> Finding:
    uri = stores.registry_uri()
    if uri == stores.tracking_uri() and stores.kind_of(uri) != "http":
        return ok("registry", "in the tracking store, see there")
    return _check_store("registry", uri, subject, server.check_registry)


def check_artifacts(subject: Subject) -> Finding:
    place = subject.artifacts.result()
    if place is None:
        return warning("artifacts", "where they go is not known: see tracking")
    return artifacts.check("artifacts", place, subject.seconds)


def local_artifacts(place: str | None) -> Finding:
    """As ``check_artifacts``, where that asks nobody else."""
    if place is None or stores.kind_of(place) != "folder":
        return ok("artifacts", "elsewhere: not looked at")
    return artifacts.check("artifacts", place, 0.0)


CHECKS = (
    Check("python", lambda _: check_python(), cheap=True),
    Check("packages", lambda _: check_packages()),
    Check("hardware", check_hardware),
    Check("wheels", check_wheels, cheap=True),
    Check("cores", check_cores, cheap=True),
    Check("weights", check_weights, elsewhere=True),
    Check("memory", check_memory, cheap=True),
    Check("disk", check_disk, cheap=True),
    Check("cache", lambda _: check_cache(), cheap=True),
    Check("tracking", check_tracking, elsewhere=True),
    Check("registry", check_registry, elsewhere=True),
    Check("artifacts", check_artifacts, elsewhere=True),
    Check("telemetry", lambda _: check_telemetry()),
    Check("code", lambda _: check_code()),
)


def examine(subject: Subject, seconds: float, checks: tuple[Check, ...] = CHECKS) -> list[Finding]:
    """A finding of each check, in their order.

    After ``seconds`` at the latest; what asks nobody else is only slow, and waited for longer.
    """
    until = time.monotonic() + seconds
    begun = [later(lambda check=check: check.look(subject)) for check in checks]  # type: ignore[misc]
    return [
        _finding(check, looked, until if check.elsewhere else until + GRACE)
        for check, looked in zip(checks, begun, strict=True)
    ]


def _finding(check: Check, looked: "Future[Finding]", until: float) -> Finding:
    try:
        return looked.result(max(0.0, until - time.monotonic()))
    except TimedOut:
        return failure(check.name, "no answer in time", "doctor.seconds=30   # to wait longer")
    except Exception as error:
        return not_known(check.name, error)


def not_known(check: str, error: Exception) -> Finding:
    """A check that fails says nothing about the machine."""
    told = redacted(f"{type(error).__name__}: {error}")
    return warning(check, f"it could not be found out ({told})")


def _plugins() -> tuple[str, ...]:
    """Kinds of stores that other packages add to MLflow."""
    groups = ("mlflow.tracking_store", "mlflow.model_registry_store")
    return tuple(one.name for group in groups for one in entry_points(group=group))


def _check_store(
    name: str, uri: str, subject: Subject, over_http: Callable[[str, str, float], Finding]
) -> Finding:
    kind = stores.kind_of(uri)
    if kind == "http":
        return over_http(name, uri, subject.seconds)
    if kind == "sqlite":
        return database.check_sqlite(name, uri)
    if kind == "database":
        return database.check_database(name, uri)
    if kind == "folder":
        path = stores.local_path(uri)
        why_not = folder.refusal(path)
        if why_not is not None:
            return failure(name, why_not, database.ELSEWHERE)
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
            found = (
                f"{redacted(uri)}: MLflow has given up stores that are folders, and refuses them"
            )
            return failure(name, found, database.absolute(name, path / "mlflow.db"))
        return ok(name, f"{path}: a file was written and removed")
    if kind in ("databricks", "databricks-uc", *_plugins()):
        return warning(name, f"{redacted(uri)}: not tried, this kind of store is not known here")
    return failure(
        name,
        f"{redacted(uri)}: MLflow has no such kind of store; allowed: an address (http, https), "
        "a database (sqlite, postgresql, mysql, mssql), databricks, a folder",
        database.ELSEWHERE,
    )
