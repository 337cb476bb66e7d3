"""What is compared: each URI resolved once, to one version, its files and their digest."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from slmflow import cache
from slmflow.answering.ask import AskError
from slmflow.answering.endpoint import Endpoint
from slmflow.answering.endpoint_form import sent_options
from slmflow.errors import ConfigError
from slmflow.evaluation.results import Kind
from slmflow.served.search import SearchOptions
from slmflow.tracking.registry import find_version

ENDPOINT = "openai:"
OUR_CODE = Path("code/slmflow/served/packaged.py")
UNSTABLE_FILES = ("MLmodel", "registered_model_meta")
ID_LENGTH = 10  # of a logged model, in its label: m- and eight digits
SAMPLING = "temperature", "seed"


@dataclass(frozen=True)
class Candidate:
    """``parameters`` change what the model was packaged with, for every answer.

    ``digest`` is a SHA-256 of the files of a model and of what its MLmodel says of loading it, or
    of an endpoint's address: equal digests and parameters mean equal answers where ``repeatable``.
    """

    label: str
    uri: str
    kind: Kind
    digest: str
    parameters: Mapping[str, Any]
    repeatable: bool
    folder: Path | None = None  # where the model's files are; None: an endpoint
    model_id: str | None = None
    name: str | None = None
    version: str | None = None
    runtime: str | None = None
    weights: str | None = None
    size_bytes: int | None = None


def check_addresses(uris: Sequence[str]) -> None:
    """Raise ``ConfigError`` for an endpoint that is badly written, before it is logged anywhere:
    it could hold a password."""
    for uri in uris:
        if uri.startswith(ENDPOINT):
            Endpoint.parse(uri)


def resolve(uris: Sequence[str], parameters: Mapping[str, Any], downloads: Path) -> list[Candidate]:
    """Candidates in the order of the URIs, each with a label of its own.

    Models that are not on this machine are downloaded below ``downloads``. ``parameters`` apply to
    endpoints and to models of this project. Raises ``AskError`` for a URI that names no model.
    """
    found = [_resolve(uri, parameters, downloads / str(i)) for i, uri in enumerate(uris)]
    names = {candidate.name for candidate in found}
    labels = [_label(candidate, alone=len(names) == 1) for candidate in found]
    # Two folders can have one name.
    labels = [
        label if labels.count(label) == 1 else candidate.uri.removeprefix("models:/")
        for label, candidate in zip(labels, found, strict=True)
    ]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise AskError(f"{twice} is given twice; each model is compared once")
    return [replace(one, label=label) for one, label in zip(found, labels, strict=True)]


def _resolve(uri: str, parameters: Mapping[str, Any], downloads: Path) -> Candidate:
    if uri.startswith(ENDPOINT):
        endpoint = Endpoint.parse(uri)
        asked = {name: value for name, value in parameters.items() if name != "threads"}
        sent_options(asked)  # refused before anything is asked
        with endpoint:
            endpoint.connect()
            where = f"{endpoint.uri} {endpoint.model}"
        digest = hashlib.sha256(where.encode()).hexdigest()
        # What answers behind an address can change at any time.
        return Candidate("", endpoint.uri, Kind.endpoint, digest, asked, False)
    return _model(uri, parameters, downloads)


def _model(uri: str, parameters: Mapping[str, Any], downloads: Path) -> Candidate:
    version = find_version(uri)
    pinned = uri if version is None else f"models:/{version.name}/{version.version}"
    folder = _files(pinned, downloads)
    about = yaml.safe_load((folder / "MLmodel").read_text("utf-8"))
    ours = (folder / OUR_CODE).is_file()
    applied = _known(pinned, parameters, about) if ours else {}
    tags = dict(version.tags) if version is not None else {}
    return Candidate(
        label="",
        uri=pinned,
        kind=Kind.packaged if ours else Kind.mlflow,
        digest=_digest(folder, about),
        parameters=applied,
        repeatable=_repeatable(about, applied),
        folder=folder,
        model_id=about.get("model_id"),
        name=version.name if version is not None else None,
        version=str(version.version) if version is not None else None,
        runtime=tags.get("runtime"),
        weights=tags.get("precision") or tags.get("dtype"),
        size_bytes=about.get("model_size_bytes"),
    )


def _files(uri: str, downloads: Path) -> Path:
    """The model's folder: where it lies, or a copy where that is another machine."""
    try:
        folder = Path(download_artifacts(uri, dst_path=_destination(uri, downloads)))
    except (MlflowException, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise AskError(
            f"{uri} is no model that can be loaded: {reason}; allowed: models:/NAME/VERSION, "
            "models:/NAME@ALIAS, models:/m-ID, runs:/RUN/PATH, a folder, openai:/http://HOST/v1"
        ) from None
    if not (folder / "MLmodel").is_file():
        raise AskError(f"{uri} holds no MLmodel file: it is no MLflow model")
    return folder


def _destination(uri: str, downloads: Path) -> str | None:
    """None where the store is a folder of this machine, which is then used in its place."""
    if Path(uri).exists() or mlflow.get_tracking_uri().startswith(("sqlite", "file", "/")):
        return None
    downloads.mkdir(parents=True, exist_ok=True)
    return str(downloads)


def _digest(folder: Path, about: Mapping[str, Any]) -> str:
    """Without what differs from one packaging of the same model to the next: ids and dates."""
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in UNSTABLE_FILES and path.suffix != ".pyc"
    ]
    loading = {key: about.get(key) for key in ("flavors", "signature")}
    told = json.dumps(loading, sort_keys=True, default=str)
    return hashlib.sha256(f"{cache.files_digest(folder, names)} {told}".encode()).hexdigest()


def _known(uri: str, parameters: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that the model was packaged with: MLflow drops others without a word."""
    packaged = about["flavors"]["python_function"].get("config") or {}
    neutral = asdict(SearchOptions())
    lost = [k for k, v in parameters.items() if k not in packaged and v != neutral.get(k)]
    if lost:
        raise ConfigError(
            f"{uri} was packaged before search.{lost[0]} was there; package it again, or leave "
            "that option out"
        )
    return {name: value for name, value in parameters.items() if name in packaged}


def _repeatable(about: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Whether asking again gives the same answer: no sampling, or with a seed."""
    packaged = about.get("flavors", {}).get("python_function", {}).get("config") or {}
    temperature, seed = (parameters.get(name, packaged.get(name)) for name in SAMPLING)
    return not temperature or seed is not None


def _label(candidate: Candidate, alone: bool) -> str:
    if candidate.kind is Kind.endpoint:
        return candidate.uri.removeprefix(f"{ENDPOINT}/")
    if Path(candidate.uri).is_dir():
        return Path(candidate.uri).name
    short = candidate.uri.removeprefix("models:/")
    if short.startswith("m-"):  # a logged model, by its id
        short = short[:ID_LENGTH]
    version = f"v{candidate.version}" if alone and candidate.version else short
    return f"{candidate.runtime} {version}" if candidate.runtime else short
