"""What a run's config left open, and what it was resolved to: by this the run can be repeated.

The artifact ``resolved.json``: ``{"format": 1, "config": {dotted key: value}, "models": {uri:
{"source", "weights", "packaged_from", "revision", "files"}}}``. ``config`` are keys of the composed
config with the value that held: the newest version as a version, a branch as a commit. The rest of
``models`` is what a model is known by again, wherever it lies.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from slmflow.redaction import without_secrets
from slmflow.served.weights import DECLARED, MANIFEST, Manifest
from slmflow.tracking.registry import find_version

RESOLVED = "resolved.json"


def log_resolved(config: Mapping[str, Any], models: Mapping[str, Any] | None = None) -> None:
    """Into the active run."""
    told = without_secrets({"format": 1, "config": dict(config), "models": dict(models or {})})
    mlflow.log_text(json.dumps(told, indent=1), RESOLVED)


def log_models(config: Mapping[str, Any], uris: Sequence[str]) -> None:
    """What was resolved, and what the packaged models among the URIs are; the digests of their
    weights as a tag, too."""
    found = {uri: one for uri in uris if (one := about(uri)) is not None}
    log_resolved(config, found)
    if digests := [one["weights"] for one in found.values() if one["weights"]]:
        mlflow.set_tag(DECLARED, " ".join(dict.fromkeys(digests)))


def about(uri: str) -> dict[str, Any] | None:
    """By what a model is known again, registered or not: the number of a version is not enough
    where the registered model was deleted and made anew. ``weights`` is the SHA-256 of its
    ``weights.json``. None for endpoints, and for what carries no manifest and has no version."""
    version, manifest = find_version(uri), _manifest(uri)
    if version is None and manifest is None:
        return None
    told: dict[str, Any] = {"source": uri if version is None else version.source}
    if manifest is None:
        return {**told, "weights": None if version is None else _weights(version)}
    return {
        **told,
        "weights": manifest.digest,
        "packaged_from": manifest.source,
        "revision": manifest.revision,
        "files": {name: asdict(file) for name, file in manifest.files.items()},
    }


def _manifest(uri: str) -> Manifest | None:
    """Of a packaged model, without fetching the rest of it."""
    if Path(uri).is_dir():
        return Manifest.read(Path(uri))
    if not uri.startswith(("models:/", "runs:/", "file:")) and "://" not in uri:
        return None
    with TemporaryDirectory() as place, suppress(MlflowException, OSError):
        file = get_artifact_repository(uri).download_artifacts(MANIFEST, place)
        return Manifest.from_json(json.loads(Path(file).read_text("utf-8")))
    return None


def _weights(version: ModelVersion) -> str | None:
    """Of a version without a manifest, where the run that packaged it tells."""
    if DECLARED in version.tags:
        return str(version.tags[DECLARED])
    with suppress(MlflowException):
        tags: dict[str, str] = MlflowClient().get_run(version.run_id).data.tags
        return tags.get(DECLARED)
    return None
