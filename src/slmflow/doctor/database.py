"""A tracking store that is a database: reached, and written to in a transaction that is undone."""

import os
import re
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from slmflow.doctor import folder
from slmflow.doctor.finding import Finding, Level, failure, ok, warning
from slmflow.doctor.stores import (
    DEFAULT_ARTIFACTS,
    Experiment,
    sqlite_path,
)
from slmflow.doctor.versions import pip
from slmflow.redaction import redacted
from slmflow.tracking.experiment import experiment_id, experiment_name

Run = Callable[[str], list[tuple[Any, ...]]]  # a statement, its rows
WRITE = (
    "INSERT INTO experiment_tags (key, value, experiment_id) "
    "SELECT 'slmflow.doctor', 'x', experiment_id FROM experiments "
    "WHERE experiment_id = (SELECT MIN(experiment_id) FROM experiments)"  # T-SQL has no LIMIT
)
ELSEWHERE = "export MLFLOW_TRACKING_URI=...   # another store"
VARIABLES = {"tracking": "MLFLOW_TRACKING_URI", "registry": "MLFLOW_REGISTRY_URI"}
SQLITE = re.compile(r"sqlite(\+\w+)?://(/|\Z)")
TIMEOUT = 1  # seconds for a lock, or for a connection


def check_sqlite(check: str, uri: str) -> Finding:
    path, _ = sqlite_path(uri)
    if not SQLITE.match(uri):
        path = uri.partition(":")[2].removeprefix("//")
        found = f"{uri} is no address of a file: between sqlite: and the path stand three slashes"
        return failure(check, found, absolute(check, Path(path).absolute()))
    finding = _check_sqlite_file(check, uri)
    chosen = VARIABLES[check] in os.environ  # MLflow's own default is relative, too
    if finding.level is not Level.ok or Path(path).is_absolute() or not chosen:
        return finding
    found = (
        f"{finding.found}; the path is relative: ./run means this file, but mlflow and scripts "
        "that start in another folder mean one there, and do not find these runs"
    )
    return warning(check, found, absolute(check, Path(path).absolute()))


def _check_sqlite_file(check: str, uri: str) -> Finding:
    path, query = sqlite_path(uri)
    file = Path(path).absolute()
    if path in ("", ":memory:"):
        return failure(check, "a store in memory is gone with each process", ELSEWHERE)
    if not file.exists():
        why_not = folder.refusal(file.parent)
        if why_not is not None:
            return failure(check, f"{file} is not there, and {why_not}", ELSEWHERE)
        return ok(check, f"{file}: not there yet, the first run makes it")
    try:
        with _sqlite(file, query) as connection:
            return _check_schema(check, str(file), uri, _runner(connection))
    except sqlite3.Error as error:
        return _sqlite_finding(check, file, str(error))


def absolute(check: str, file: Path) -> str:
    return f"export {VARIABLES[check]}={shlex.quote(f'sqlite:///{file}')}"


def check_database(check: str, uri: str) -> Finding:
    """PostgreSQL, MySQL, SQL Server."""
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        engine = sqlalchemy.create_engine(uri, **_patience(uri))
        with engine.connect() as connection:  # leaving it undoes what was not committed
            place = engine.url.render_as_string(hide_password=True)
            return _check_schema(check, place, uri, _rows(connection))
    except ModuleNotFoundError as error:
        return failure(check, f"its driver {error.name} is not installed", _driver(error.name))
    except (ArgumentError, NoSuchModuleError) as error:
        return failure(check, redacted(f"MLFLOW_TRACKING_URI: {_line(error)}"), ELSEWHERE)
    except SQLAlchemyError as error:
        return _database_finding(check, _line(getattr(error, "orig", None) or error))


def find_experiment(uri: str) -> Experiment | None:
    """This project's experiment of a database; None where it cannot be read."""
    name = experiment_name()
    absent = Experiment(None, name, DEFAULT_ARTIFACTS)
    path, query = sqlite_path(uri)
    try:
        if uri.startswith("sqlite"):
            if not Path(path).is_file():
                return absent
            with _sqlite(Path(path).absolute(), query) as connection:
                return _experiment(_runner(connection), name) or absent
        import sqlalchemy

        with sqlalchemy.create_engine(uri, **_patience(uri)).connect() as connection:
            return _experiment(_rows(connection), name) or absent
    except Exception:  # any driver's own: check_database tells it
        return None


def _experiment(run: Run, name: str) -> Experiment | None:
    wanted = experiment_id()
    column = "name" if wanted is None else "experiment_id"
    value = (name if wanted is None else str(int(wanted))).replace("'", "''")
    rows = run(
        "SELECT experiment_id, name, artifact_location, lifecycle_stage FROM experiments "
        f"WHERE {column} = '{value}'"
    )
    for number, found, location, stage in rows:
        return Experiment(str(number), found, location, deleted=stage != "active")
    return None


def _check_schema(check: str, place: str, uri: str, run: Run) -> Finding:
    """Compared with the version that MLflow itself demands, then written to."""
    try:
        version = run("SELECT version_num FROM alembic_version")
    except Exception as error:  # an empty database: of each driver, an error of its own
        if not re.search("no such table|does not exist|doesn't exist|Invalid object", str(error)):
            raise
        return ok(check, f"{place}: empty, the first run makes its tables")
    have, known = str(version[0][0]) if version else "none", _migrations()
    shown = redacted(uri)
    if have not in known:
        found = f"{place} was made by a newer MLflow than this one (schema {have})"
        return failure(check, found, ELSEWHERE)
    if have != known[-1]:
        found = f"{place} was made by an older MLflow (schema {have}, needed {known[-1]})"
        return failure(check, found, f"mlflow db upgrade {shown}   # after a copy of it")
    name, wanted = experiment_name(), experiment_id()
    experiment = _experiment(run, name)
    if wanted is not None and experiment is None:
        found = f"{place} has no experiment {wanted}, which MLFLOW_EXPERIMENT_ID names"
        return failure(check, found, "unset MLFLOW_EXPERIMENT_ID")
    if experiment is not None and experiment.deleted:
        found = f"{place}: the experiment {experiment.name} is deleted"
        return failure(check, found, f"mlflow experiments restore -x {experiment.id}")
    run(WRITE)
    return ok(check, f"{place}: written to")


@contextmanager
def _sqlite(file: Path, query: str) -> Iterator[sqlite3.Connection]:
    """Closed at the end; what was not committed, which is everything, is undone."""
    asked = {key: value for key, value in parse_qsl(query) if key != "uri"}
    options = urlencode({"mode": "rw", **asked})
    connection = sqlite3.connect(f"{file.as_uri()}?{options}", uri=True, timeout=TIMEOUT)
    try:
        yield connection
    finally:
        connection.close()


def _runner(connection: sqlite3.Connection) -> Run:
    return lambda statement: connection.execute(statement).fetchall()


def _rows(connection: Any) -> Run:
    from sqlalchemy import text

    def run(statement: str) -> list[tuple[Any, ...]]:
        result = connection.execute(text(statement.replace("(key,", f"({_quoted(connection)},")))
        return [tuple(row) for row in result] if result.returns_rows else []

    return run


def _quoted(connection: Any) -> str:
    """``key`` is a word of MySQL's own."""
    return str(connection.dialect.identifier_preparer.quote("key"))


def _patience(uri: str) -> dict[str, Any]:
    seconds = {"postgresql": "connect_timeout", "mysql": "connect_timeout", "mssql": "timeout"}
    name = seconds.get(uri.partition("+")[0].partition(":")[0])
    return {"connect_args": {name: TIMEOUT}} if name else {}


def _sqlite_finding(check: str, file: Path, told: str) -> Finding:
    if "locked" in told:
        return warning(check, f"{file} is being written by another process", "repeat it later")
    if "readonly" in told or "unable to open" in told:
        return failure(check, f"{file} cannot be written to ({told})", f"chmod u+w {file}")
    return failure(check, f"{file}: {told}", ELSEWHERE)


def _database_finding(check: str, told: str) -> Finding:
    told = redacted(told)
    if re.search("password|authentication|Access denied|Login failed", told, re.IGNORECASE):
        return failure(check, f"it refuses user or password ({told})", ELSEWHERE)
    if re.search("permission|read-only|readonly|denied", told, re.IGNORECASE):
        return failure(check, f"it cannot be written to ({told})", ELSEWHERE)
    return failure(check, f"it cannot be reached ({told})", "start it, or " + ELSEWHERE)


def _driver(name: str | None) -> str:
    if name == "psycopg" and find_spec("psycopg2"):  # SQLAlchemy 2.1 takes the newer one
        return "export MLFLOW_TRACKING_URI=postgresql+psycopg2://...   # the driver that is here"
    packages = {
        "psycopg": "'psycopg[binary]'",
        "psycopg2": "psycopg2-binary",
        "MySQLdb": "mysqlclient",
    }
    return f"{pip()} install {packages.get(name or '', name)}"


def _migrations() -> list[str]:
    """The schema versions that the installed MLflow knows, oldest first; read, not imported."""
    spec = find_spec("mlflow")
    assert spec is not None and spec.origin is not None, (
        "MLflow is installed, or said to be missing"
    )
    after: dict[str, str] = {}
    for file in Path(spec.origin).parent.glob("store/db_migrations/versions/*.py"):
        text = file.read_text("utf-8")
        own = re.search(r'^revision = "(\w+)"', text, re.MULTILINE)
        before = re.search(r'^down_revision = "(\w+)"', text, re.MULTILINE)
        if own:
            after[before[1] if before else ""] = own[1]
    versions = [after[""]]
    while versions[-1] in after:
        versions.append(after[versions[-1]])
    return versions


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
