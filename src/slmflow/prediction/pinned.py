"""The model of a job: its URI resolved once, to one version and the digest of its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow

from slmflow.answering import model_files
from slmflow.errors import ConfigError
from slmflow.prediction.model import ModelSpec
from slmflow.served.search import SEARCH_OPTIONS
from slmflow.tracking.run import absolute_tracking_uri


@dataclass(frozen=True)
class Pinned:
    """``parameters`` are the search options that hold, where this project packaged the model."""

    spec: ModelSpec
    digest: str
    parameters: Mapping[str, Any]
    model_id: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return {"uri": self.spec.uri, "digest": self.digest}


def pin(uri: str, parameters: Mapping[str, Any], threads: Any, downloads: Path) -> Pinned:
    """``parameters`` and ``threads`` apply to models of this project; ``auto`` threads mean those
    that it was packaged with.

    Raises ``AskError`` for a URI that names no model, ``ConfigError`` for one that is an endpoint.
    """
    if uri.startswith("openai:"):
        raise ConfigError(
            f"model_uri={uri} is an endpoint; predict loads models itself: {model_files.ALLOWED}"
        )
    fixed = model_files.fixed(uri)
    folder = model_files.fetch(fixed, downloads).absolute()
    told = model_files.about(folder)
    config, packaged = {}, {}
    if model_files.is_ours(folder):
        packaged = model_files.packaged_settings(told)
        if threads == "auto":
            threads = packaged.get("threads", threads)
        config = model_files.known(fixed, {**parameters, "threads": threads}, told)
    elif parameters:
        raise ConfigError(
            f"search says nothing to {uri}, which this project did not package; leave it out"
        )
    registry = mlflow.get_registry_uri()
    spec = ModelSpec(
        uri=fixed,
        folder=str(folder),
        model_config=config,
        tracking_uri=absolute_tracking_uri(),
        registry_uri=None if registry == mlflow.get_tracking_uri() else registry,
    )
    holds = {k: v for k, v in {**packaged, **config}.items() if k in SEARCH_OPTIONS}
    return Pinned(spec, model_files.digest(folder, told), holds, told.get("model_id"))
