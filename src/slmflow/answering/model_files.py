"""A model's files: fetched, told from those of others, and what can be set as they are loaded."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from mlflow.artifacts import download_artifacts
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.tracking import MlflowClient

from slmflow import cache
from slmflow.answering.ask import AskError
from slmflow.errors import ConfigError
from slmflow.served.digests import file_sha256
from slmflow.served.search import SearchOptions
from slmflow.served.weights import MANIFEST, Manifest

OUR_CODE = Path("code/slmflow/served/packaged.py")
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt")
PYTORCH = "pytorch_model*.bin"
UNSTABLE_FILES = ("MLmodel", "registered_model_meta", MANIFEST)
CONTENTS = "contents.json"  # on the run that packaged it: ``contents``
OF_THE_SOURCE = (".source_model_name", ".artifacts.model.uri")
"""Settings that say where the weights were read, and nothing of the model."""
ALLOWED = "models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID, runs:/RUN/PATH, a folder"


def fixed(uri: str) -> str:
    """An alias, a stage or ``latest`` as the version that it is now. Raises ``AskError``."""
    if not uri.startswith("models:/"):
        return uri
    try:
        found = get_model_name_and_version(MlflowClient(), uri)
    except MlflowException as error:
        raise _no_model(uri, error, ALLOWED) from None
    return f"models:/{'/'.join(map(str, found))}"


def fetch(uri: str, downloads: Path, allowed: str = ALLOWED) -> Path:
    """The model's folder: where it lies, or a copy below ``downloads`` where that is another
    machine. Raises ``AskError`` for a URI that names no model, and for one with pickles."""
    refuse_pickles(uri, allowed)
    try:
        folder = Path(download_artifacts(uri, dst_path=_destination(uri, downloads)))
    except (MlflowException, OSError, ValueError) as error:
        raise _no_model(uri, error, allowed) from None
    if not (folder / "MLmodel").is_file():
        raise AskError(f"{uri} holds no MLmodel file: it is no MLflow model")
    return folder


def fetch_part(uri: str, name: str, downloads: Path) -> Path | None:
    """One file of the model, by its path there; None where it has none of that name.

    Raises ``AskError`` for a URI that names no model.
    """
    folder = str(Path(name).parent) if "/" in name else ""
    if name not in listed(uri, folder):
        return None
    return Path(get_artifact_repository(uri).download_artifacts(name, dst_path=str(downloads)))


def listed(uri: str, folder: str = "") -> dict[str, int]:
    """Paths and sizes in bytes of the files in a folder of the model, without fetching them.

    Raises ``AskError``.
    """
    entries = _entries(uri, folder, ALLOWED)
    return {entry.path: entry.file_size for entry in entries if not entry.is_dir}


def refuse_pickles(uri: str, allowed: str = ALLOWED) -> None:
    """By the names of its files, before any of them is read: a pickle can run any code.

    Raises ``AskError``, also for a URI that names no model.
    """
    names: list[str] = []
    folders = [""]
    while folders:
        for entry in _entries(uri, folders.pop(), allowed):
            (folders if entry.is_dir else names).append(entry.path)
    pickles = sorted(name for name in names if Path(name).match(PYTORCH) or name.endswith(PICKLES))
    if pickles:
        raise AskError(
            f"{uri} holds pickles ({', '.join(pickles[:3])}): reading one can run any code, so the "
            "model is not loaded; log it as code, mlflow.pyfunc.log_model(python_model="
            '"model.py"), with weights as safetensors or ONNX'
        )


def _entries(uri: str, folder: str, allowed: str) -> list[FileInfo]:
    try:
        return list(get_artifact_repository(uri).list_artifacts(folder or None))
    except (MlflowException, OSError, ValueError) as error:
        raise _no_model(uri, error, allowed) from None


def about(folder: Path) -> dict[str, Any]:
    """What its MLmodel says."""
    told: dict[str, Any] = yaml.safe_load((folder / "MLmodel").read_text("utf-8"))
    return told


def is_ours(folder: Path) -> bool:
    """Packaged by this project."""
    return (folder / OUR_CODE).is_file()


def digest(folder: Path, told: Mapping[str, Any]) -> str:
    """SHA-256 of the files and of what MLmodel says of loading them, without what differs from one
    packaging of the same model to the next: ids, dates, where the weights are kept."""
    weights = Manifest.read(folder)
    loading = {key: told.get(key) for key in ("flavors", "signature")}
    if weights is not None:
        loading["weights"] = weights.digest
    text = json.dumps(loading, sort_keys=True, default=str)
    names = _beside(folder, weights)
    return hashlib.sha256(f"{cache.files_digest(folder, names)} {text}".encode()).hexdigest()


def contents(folder: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """All that makes it this model beside its weights, which their manifest lists: ``files``, each
    with its SHA-256, ``settings`` of MLmodel by their dotted names, and ``requirements``."""
    names = sorted(_beside(folder, Manifest.read(folder)))
    told = {key: told.get(key) or {} for key in ("flavors", "signature")}
    pinned = folder / "requirements.txt"
    return {
        "format": 1,
        "files": {name: file_sha256(folder / name) for name in names},
        "settings": {k: v for k, v in _flat(told, "") if not k.endswith(OF_THE_SOURCE)},
        "requirements": pinned.read_text("utf-8").splitlines() if pinned.is_file() else [],
    }


def _beside(folder: Path, weights: Manifest | None) -> list[str]:
    """Files that are no weights, without those that each packaging writes otherwise."""
    listed = {f"{weights.folder}/{name}" for name in weights.files} if weights else set()
    listed |= set(weights.copies) if weights else set()
    return [
        name
        for path in folder.rglob("*")
        if path.is_file() and path.name not in UNSTABLE_FILES and path.suffix != ".pyc"
        if (name := path.relative_to(folder).as_posix()) not in listed
    ]


def _flat(told: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in told.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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


def _no_model(uri: str, error: Exception, allowed: str) -> AskError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return AskError(f"{uri} is no model that can be loaded: {reason}; allowed: {allowed}")


def _destination(uri: str, downloads: Path) -> str | None:
    if is_here(uri):
        return None
    downloads.mkdir(parents=True, exist_ok=True)
    return str(downloads)
