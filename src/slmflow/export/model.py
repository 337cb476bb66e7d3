"""The model that is exported: its URI resolved once, what it says of itself, its whole folder."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from slmflow.answering import model_files
from slmflow.export.errors import ExportError
from slmflow.redaction import redacted
from slmflow.served.weights import WeightsError
from slmflow.tracking.registry import find_version
from slmflow.weights.materialise import complete

TAGS = (
    *("slmflow", "runtime", "task", "hardware", "source", "revision", "git_commit"),
    *("precision", "quantisation", "provider", "dtype"),
)
PROVENANCE = "provenance/provenance.json"
OF_PROVENANCE = (
    *("entry_point", "overrides", "choices", "code", "python", "os", "constraints_sha256"),
    "seeds",
)
LEFT_OUT = ("registered_model_meta", "__pycache__")
"""What loading and downloading leave in a model's folder; no part of the model."""


@dataclass(frozen=True)
class Model:
    """``folder`` is self-contained. ``version``: None where the registry does not know it."""

    uri: str
    name: str
    version: str | None
    folder: Path
    told: Mapping[str, Any]

    @property
    def ours(self) -> bool:
        """Packaged by this project, so that its server can serve it."""
        return model_files.is_ours(self.folder)

    @property
    def settings(self) -> dict[str, Any]:
        return model_files.packaged_settings(self.told)

    @property
    def requirements(self) -> list[str]:
        """As MLflow pinned them."""
        file = self.folder / "requirements.txt"
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    @property
    def python(self) -> str:
        """The version that it was packaged with, as 3.11."""
        flavor = self.told.get("flavors", {}).get("python_function", {})
        return ".".join(str(flavor.get("python_version", "3.11")).split(".")[:2])


def fetch(uri: str, into: Path) -> Model:
    """Copy the model's files, each of them verified, to ``into``, which is not there yet.

    Raises ``AskError`` for a URI that names no model, ``ExportError`` where its weights cannot be
    had.
    """
    fixed = model_files.fixed(uri)
    with tempfile.TemporaryDirectory(dir=into.parent) as downloads:
        folder = model_files.fetch(fixed, Path(downloads))
        try:
            complete(folder, into)
        except WeightsError as error:
            raise ExportError(f"{fixed} cannot be made whole: {error}") from None
    for name in LEFT_OUT:
        for path in list(into.rglob(name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    told = model_files.about(into)
    version = find_version(fixed)
    if version is not None:
        return Model(fixed, str(version.name), str(version.version), into, told)
    name = model_files.packaged_settings(told).get("model") or "model"
    return Model(fixed, str(name), None, into, told)


def describe(model: Model) -> dict[str, Any]:
    """What the manifest says of the model and of the run that made it: nothing that changes from
    one export of a version to the next."""
    version = find_version(model.uri)
    tags = {} if version is None else version.tags
    return {
        "model": {
            "uri": redacted(model.uri),
            "name": model.name,
            "version": model.version,
            "model_id": model.told.get("model_id"),
            "run_id": model.told.get("run_id"),
            "digest": model_files.digest(model.folder, model.told),
            **{name: tags[name] for name in TAGS if name in tags},
        },
        "provenance": _provenance(model.told.get("run_id")),
    }


def _provenance(run_id: str | None) -> dict[str, Any] | None:
    """In short; None where this tracking server does not know the run, or it recorded none."""
    if run_id is None:
        return None
    with suppress(MlflowException, OSError, ValueError):
        text = mlflow.artifacts.load_text(f"runs:/{run_id}/{PROVENANCE}")
        whole = json.loads(text)
        return {key: whole[key] for key in OF_PROVENANCE if key in whole}
    return None
