"""A model's files: fetched, told from those of others, and what can be set as they are loaded."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from slmflow import cache
from slmflow.answering.ask import AskError
from slmflow.errors import ConfigError
from slmflow.served.search import SearchOptions

OUR_CODE = Path("code/slmflow/served/packaged.py")
UNSTABLE_FILES = ("MLmodel", "registered_model_meta")
ALLOWED = "models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID, runs:/RUN/PATH, a folder"


def fetch(uri: str, downloads: Path, allowed: str = ALLOWED) -> Path:
    """The model's folder: where it lies, or a copy below ``downloads`` where that is another
    machine. Raises ``AskError`` for a URI that names no model."""
    try:
        folder = Path(download_artifacts(uri, dst_path=_destination(uri, downloads)))
    except (MlflowException, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AskError(
            f"{uri} is no model that can be loaded: {reason}; allowed: {allowed}"
        ) from None
    if not (folder / "MLmodel").is_file():
        raise AskError(f"{uri} holds no MLmodel file: it is no MLflow model")
    return folder


def about(folder: Path) -> dict[str, Any]:
    """What its MLmodel says."""
    told: dict[str, Any] = yaml.safe_load((folder / "MLmodel").read_text("utf-8"))
    return told


def is_ours(folder: Path) -> bool:
    """Packaged by this project."""
    return (folder / OUR_CODE).is_file()


def digest(folder: Path, told: Mapping[str, Any]) -> str:
    """SHA-256 of the files and of what MLmodel says of loading them, without what differs from one
    packaging of the same model to the next: ids and dates."""
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in UNSTABLE_FILES and path.suffix != ".pyc"
    ]
    loading = {key: told.get(key) for key in ("flavors", "signature")}
    text = json.dumps(loading, sort_keys=True, default=str)
    return hashlib.sha256(f"{cache.files_digest(folder, names)} {text}".encode()).hexdigest()


def packaged_settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model_config`` that it was packaged with."""
    return dict(told.get("flavors", {}).get("python_function", {}).get("config") or {})


def known(uri: str, parameters: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that the model was packaged with: MLflow drops others without a word.

    Raises ``ConfigError`` for one that would change something.
    """
    packaged = packaged_settings(told)
    neutral = asdict(SearchOptions())
    lost = [k for k, v in parameters.items() if k not in packaged and v != neutral.get(k)]
    if lost:
        raise ConfigError(
            f"{uri} was packaged before search.{lost[0]} was there; package it again, or leave "
            "that option out"
        )
    return {name: value for name, value in parameters.items() if name in packaged}


def is_here(uri: str) -> bool:
    """Whether its files lie in a folder of this machine, which is then used in its place."""
    if Path(uri).exists():
        return True
    if uri.startswith("runs:"):  # of which MLflow makes a copy wherever they lie
        return False
    repository = get_artifact_repository(uri)
    store = getattr(repository, "repo", repository)
    # MLflow writes the version into the folder that it hands out.
    return isinstance(store, LocalArtifactRepository) and os.access(store.artifact_dir, os.W_OK)


def _destination(uri: str, downloads: Path) -> str | None:
    if is_here(uri):
        return None
    downloads.mkdir(parents=True, exist_ok=True)
    return str(downloads)
