"""From a record to what is run: what was left open then is what it was resolved to."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slmflow.checkout import PROJECT_ROOT
from slmflow.config.rerun import PLACES, Rerun, RerunConfig, rebuilt, replaced, schema_of, value_of
from slmflow.errors import ConfigError, SourceError, TrackingError
from slmflow.redaction import HIDDEN
from slmflow.replay.record import Record, parent_of
from slmflow.tracking.names import ENTRY_POINT, POINT
from slmflow.tracking.registry import find_version

ONLY_IN_MAIN = ("search",)  # of main's config: how models are packaged, not how they are asked
NEEDED = {
    **dict.fromkeys(
        ("transformers_pipeline", "custom_onnx"), ("model.source", "model.onnx.source")
    ),
    "main": ("model.source", "model.onnx.source", "data.path"),
    "evaluate": ("data.path",),
    "predict": ("input",),
}
"""Places that an entry point reads, by its name."""
WRITE = ("predict", "export")  # a folder, which is output


@dataclass(frozen=True)
class Order:
    """A run to carry out again; plain values, so that it can be handed to another process.

    ``judged``: the evaluation of then had a gate, and ``incumbent`` was the version in use, None
    where there was none. ``builds``: a folder to build ONNX models in, in place of the cache.
    ``probe``: the ``probe.json`` of then, whose prompts are asked again.
    """

    entry_point: str
    values: Mapping[str, Any]
    choices: Mapping[str, str]
    judged: bool = False
    incumbent: str | None = None
    builds: str | None = None
    probe: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pinned:
    """``pins``: keys that were left open, with what they were resolved to."""

    order: Order
    config: Any
    pins: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)


def pin(record: Record, settings: RerunConfig, rerun_id: str, builds: Path | None = None) -> Pinned:
    """``rerun_id``: the run that repeats it.

    Raises ``ConfigError`` and ``TrackingError`` where the run cannot be repeated.
    """
    entry_point = record.entry_point
    assert entry_point is not None, "find() gives runs of entry points"
    schema_of(entry_point)
    if record.values is None:
        raise TrackingError(_no_config(record))
    moved = _moved(settings.rerun)
    pins = {key: value for key, value in resolved(record).items() if key not in moved}
    changes = {**pins, **moved, **_unlike(entry_point)}
    if hasattr(schema_of(entry_point), "trust"):
        changes["trust"] = settings.trust
    values = replaced(_own_values(record), changes)
    if entry_point in WRITE:
        values["output"] = _output(str(values["output"]), settings.rerun, rerun_id)
    built = rebuilt(entry_point, values)
    _demand_whole(record, built.values)
    _demand_places(record, built.values, settings.rerun)
    _demand_versions(record, pins)
    decision = _decision(record)
    order = Order(
        entry_point,
        built.values,
        record.choices,
        judged=decision is not None,
        incumbent=decision["incumbent"] if decision else None,
        builds=None if builds is None else str(builds),
        probe=_first(record, "probe.json"),
    )
    added = tuple(key for key in built.added if key not in (record.values or {}))
    notes = [*_notes(added, built.gone), *_sampled(entry_point, built.values)]
    return Pinned(order, built.config, pins, notes)


def resolved(record: Record) -> dict[str, Any]:
    """Dotted keys with the value that held then. Of main: those of its packaging runs."""
    found: dict[str, Any] = {}
    of_main = record.entry_point == "main"
    for part in reversed(record.everywhere() if of_main else [record]):
        told = part.documents.get("resolved.json")
        config = _by_tags(part) if told is None else told["config"]
        found |= {key: v for key, v in config.items() if not (of_main and key == "models")}
    return found


def _by_tags(record: Record) -> dict[str, Any]:
    """Of a run from before ``resolved.json``: what its tags and children tell."""
    tags, values = record.tags, record.values or {}
    found: dict[str, Any] = {}
    revision = tags.get("revision", "")
    if revision and not revision.startswith("sha256:"):
        of_checkpoint = tags.get("source") == value_of(values, "model.source")
        found["model.revision" if of_checkpoint else "model.onnx.revision"] = revision
    for tag in ("served_model", "predict.model"):
        if tag in tags:
            found["model_uri"] = tags[tag]
    if record.entry_point == "export" and "manifest.json" in record.documents:
        found["model_uri"] = record.documents["manifest.json"]["model"]["uri"]
    uris = [part.run.data.params.get("uri") for part in record.parts]
    if record.entry_point == "evaluate" and uris and all(uris):
        found["models"] = uris
    return found


def beside(output: str, rerun_id: str) -> str:
    """Where a rerun writes: never over what is there from then, nor from another rerun."""
    return f"{output.rstrip('/')}-rerun-{rerun_id[:8]}"


def _output(of_then: str, settings: Rerun, rerun_id: str) -> str:
    if settings.output is None:
        return beside(of_then, rerun_id)
    if settings.output.rstrip("/") == of_then.rstrip("/"):
        raise ConfigError(
            f"rerun.output={settings.output} is what the run of then wrote, and a rerun never "
            "writes over that; give another, or leave it out"
        )
    return settings.output


def _moved(settings: Rerun) -> dict[str, Any]:
    """Where things lie now. Files in a folder have no commit, whatever their repository had."""
    moved: dict[str, Any] = dict(settings.moved)
    for key in ("model.source", "model.onnx.source"):
        if key in moved and (PROJECT_ROOT / Path(moved[key]).expanduser()).is_dir():
            moved[key.replace("source", "revision")] = None
    return moved


def _own_values(record: Record) -> dict[str, Any]:
    """The composed config. A child of main recorded main's, of which it is a part."""
    values = dict(record.values or {})
    parent = parent_of(record)
    if parent is None or parent.data.tags.get(ENTRY_POINT) != "main":
        return values
    if POINT in record.tags or record.entry_point == "main":  # a point of a sweep of main
        return values
    known = schema_of(str(record.entry_point)).__dataclass_fields__
    own = {key: value for key, value in values.items() if key in known}
    if record.entry_point == "evaluate":
        own = {key: value for key, value in own.items() if key not in ONLY_IN_MAIN}
    return own


def _unlike(entry_point: str) -> dict[str, Any]:
    """What a rerun does otherwise: it takes no answers from before, removes none and promotes
    nothing."""
    if entry_point in ("evaluate", "main"):
        return {"ask.reuse": False, "promote": False}
    return {"predict.overwrite": False} if entry_point == "predict" else {}


def _decision(record: Record) -> Mapping[str, Any] | None:
    """Of the gate, where the run had one."""
    for part in record.everywhere():
        evaluation = part.documents.get("evaluation.json")
        if evaluation is not None and evaluation.get("decision"):
            decision: Mapping[str, Any] = evaluation["decision"]
            return decision
    return None


def _first(record: Record, name: str) -> Any:
    """Of main: both kinds were asked the same. None where no part recorded it."""
    return next((p.documents[name] for p in record.everywhere() if name in p.documents), None)


def _no_config(record: Record) -> str:
    why = record.tags.get("slmflow.error", "no reason was recorded")
    return (
        f"run {record.run_id} has no config.yaml: it failed before its config was recorded "
        f"({why}); type its command again: mlflow run . -e {record.entry_point} -P ..."
    )


def _demand_whole(record: Record, values: Mapping[str, Any]) -> None:
    hidden = [key for key, value in _leaves(values, "") if HIDDEN in str(value)]
    if hidden:
        raise ConfigError(
            f"run {record.run_id} recorded {hidden[0]} with a secret taken out of it, so that it "
            "cannot be repeated from the record; type its command again with the secret"
        )


def _demand_places(record: Record, values: Mapping[str, Any], settings: Rerun) -> None:
    """What lay in a folder or file of the machine of then must lie somewhere here."""
    for key in NEEDED.get(str(record.entry_point), ()):
        place = value_of(values, key)
        if place is None or not _was_local(record, key, str(place), settings):
            continue
        if not (PROJECT_ROOT / Path(str(place)).expanduser()).exists():
            raise SourceError(
                f"run {record.run_id} read {key}={place}, which is not on this machine any more; "
                "where the same lies elsewhere, add "
                f'-P "rerun.places={{{key}: PLACE}}"'
            )


def _was_local(record: Record, key: str, place: str, settings: Rerun) -> bool:
    if key in settings.moved or "://" in place or place.startswith("mlflow:"):
        return False  # told by who reads it
    if key in ("model.source", "model.onnx.source"):
        tags = [part.tags for part in record.everywhere()]
        return any(
            one.get("source", "").startswith(place)
            and one.get("revision", "").startswith("sha256:")
            for one in tags
        )
    return key in PLACES


def _demand_versions(record: Record, pins: Mapping[str, Any]) -> None:
    uris = [*(pins.get("models") or []), *([pins["model_uri"]] if "model_uri" in pins else [])]
    versions = [uri for uri in uris if uri.startswith("models:/") and "models:/m-" not in uri]
    for uri in versions:
        if find_version(uri) is None:
            raise TrackingError(
                f"run {record.run_id} asked {uri}, which is no longer in the registry; the run "
                "that packaged it can be run again, which registers a new version: give that one "
                "to evaluate (models=...), serve or predict (model_uri=...)"
            )


def _notes(added: tuple[str, ...], gone: tuple[str, ...]) -> Iterator[str]:
    if added:
        yield (
            f"keys that the run did not know have their defaults: {', '.join(added)} "
            "(it was recorded by an earlier version of this project)"
        )
    if gone:
        yield f"keys that are no more are left out: {', '.join(gone)}"


def _sampled(entry_point: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Of answers that are compared: the probes of a packaged model are greedy."""
    asks = entry_point in ("main", "evaluate", "predict")
    if asks and value_of(values, "search.temperature") and value_of(values, "search.seed") is None:
        yield "answers are sampled without a seed (search.seed), so they differ from run to run"


def _leaves(values: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, values
