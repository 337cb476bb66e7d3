"""Where runs, versions and artifacts go, as MLflow works it out, without importing it.

Importing MLflow takes two seconds, and its client repeats a question that fails for minutes.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

DEFAULT_ARTIFACTS = "./mlruns"
DEFAULT_TRACKING = "sqlite:///mlflow.db"


@dataclass(frozen=True)
class Experiment:
    """Where this project's runs go. ``id`` is None before the first of them."""

    id: str | None
    name: str
    artifacts: str
    deleted: bool = False


def tracking_uri() -> str:
    """``mlflow.get_tracking_uri()`` of a fresh process.

    As mlflow/tracking/_tracking_service/utils.py.
    """
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    if chosen:
        return chosen
    folders = Path(DEFAULT_ARTIFACTS)
    written = any(meta.parent.name.isdigit() for meta in folders.glob("*/meta.yaml"))
    return DEFAULT_ARTIFACTS if written else DEFAULT_TRACKING


def registry_uri() -> str:
    return os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri()


def kind_of(uri: str) -> str:
    """folder, sqlite, database, http, s3, mlflow-artifacts, or the scheme of something else."""
    scheme = urlsplit(uri).scheme.lower()
    dialect = scheme.partition("+")[0]
    if scheme in ("", "file") or (len(scheme) == 1 and os.name == "nt"):
        return "folder"
    if dialect == "sqlite":
        return "sqlite"
    if dialect in ("postgresql", "mysql", "mssql"):
        return "database"
    return "http" if scheme == "https" else scheme


def local_path(uri: str) -> Path:
    """Of a folder; a relative one counts from here."""
    path = unquote(urlsplit(uri).path) if uri.startswith("file:") else uri
    return Path(path).absolute()


def sqlite_path(uri: str) -> tuple[str, str]:
    """The file of sqlite:///FILE, and the query behind it (sqlite:///file:FILE?mode=ro&uri=true)."""
    path, _, query = uri.partition("://")[2].partition("?")
    return path.removeprefix("/").removeprefix("file:"), query
