"""The models that a run asked: whether those of today are the ones of then. The number of a version
alone does not say so, where the registered model was deleted and made anew."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from slmflow.replay.record import Record
from slmflow.replay.results import Difference
from slmflow.tracking.resolved import about

OF_A_MODEL = {"source": "model", "weights": "weights"}
"""What ``resolved.json`` says of a model, and how it is told."""
SHORT = 12  # characters of a digest


def models_of(record: Record) -> Mapping[str, Mapping[str, Any]]:
    """By their URIs; empty where the run asked none, or was recorded before this was."""
    told: Mapping[str, Mapping[str, Any]] = record.documents.get("resolved.json", {}).get("models")
    return told or {}


def changed(runs: Iterable[Record]) -> list[Difference]:
    asked = {uri: of for run in runs for uri, of in models_of(run).items()}
    return [difference for uri, of in asked.items() for difference in _differences(uri, of)]


def _differences(uri: str, then: Mapping[str, Any]) -> Iterator[Difference]:
    now = about(uri) or {}
    for key, what in OF_A_MODEL.items():
        was = then.get(key)
        if was is not None and was != now.get(key):
            yield Difference("models", uri, _told(what, was), _told(what, now.get(key)))


def _told(what: str, value: str | None) -> str | None:
    """A digest in short; where the model lies, without what all places have in common."""
    if value is None:
        return None
    return f"{what} {value[:SHORT] if what == 'weights' else value.removeprefix('models:/')}"
