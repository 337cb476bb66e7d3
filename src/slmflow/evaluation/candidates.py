"""What is compared: each URI resolved once, to one version, its files and their digest."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slmflow.answering import model_files
from slmflow.answering.ask import AskError
from slmflow.answering.endpoint import Endpoint
from slmflow.answering.endpoint_form import sent_options
from slmflow.evaluation.results import Kind
from slmflow.tracking.registry import find_version

ENDPOINT = "openai:"
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
    folder = model_files.fetch(pinned, downloads, f"{model_files.ALLOWED}, openai:/http://HOST/v1")
    about = model_files.about(folder)
    ours = model_files.is_ours(folder)
    applied = model_files.known(pinned, parameters, about) if ours else {}
    tags = dict(version.tags) if version is not None else {}
    return Candidate(
        label="",
        uri=pinned,
        kind=Kind.packaged if ours else Kind.mlflow,
        digest=model_files.digest(folder, about),
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


def _repeatable(about: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Whether asking again gives the same answer: no sampling, or with a seed."""
    packaged = model_files.packaged_settings(about)
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
