"""The weights of then, and what lies at their source now."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from slmflow.config.rerun import value_of
from slmflow.config.schema import Model
from slmflow.errors import SourceError
from slmflow.replay.record import Record
from slmflow.replay.results import Difference
from slmflow.served.digests import file_sha256
from slmflow.sources import LocalModel, find_checkpoint, find_onnx

FOLDER = "sha256:"  # how the revision of a folder's files begins; a hub's is a commit
SHORT = len(FOLDER) + 12

Announce = Callable[[str], None]


def changed(runs: Iterable[tuple[Record, Model]], announce: Announce) -> list[Difference]:
    """Of the models that the runs packaged from folders: where these hold other files by now.

    A repository of the hub is pinned to the commit of then, which cannot change. Beside each run:
    where its model lies now.
    """
    found: dict[tuple[str, str], list[Difference]] = {}
    for part, model in ((part, model) for run, model in runs for part in run.everywhere()):
        source, revision = part.tags.get("source", ""), part.tags.get("revision", "")
        if revision.startswith(FOLDER) and (source, revision) not in found:
            now = _at_source(part, source, model, announce)
            found[source, revision] = list(_differences(part, source, revision, now))
    return [difference for each in found.values() for difference in each]


def _at_source(part: Record, source: str, model: Model, announce: Announce) -> LocalModel | None:
    """None where nothing lies there that could be packaged."""
    values = part.values or {}
    folder = source.removeprefix(f"{value_of(values, 'model.onnx.source')}/")
    try:
        if folder != source and model.onnx.source is not None:
            return find_onnx(model.onnx.source, model.onnx.revision, folder, announce)
        return find_checkpoint(model.source, model.revision, announce, model.trust_remote_code)
    except SourceError:  # told when the run needs it
        return None


def _differences(
    part: Record, source: str, revision: str, now: LocalModel | None
) -> Iterator[Difference]:
    if now is None:
        yield Difference("weights", source, revision[:SHORT], None)
    elif now.revision != revision:
        yield Difference("weights", source, revision[:SHORT], now.revision[:SHORT])
        manifest = part.documents.get("weights.json")
        if manifest is not None:
            yield from _files(manifest["files"], now)


def _files(then: Mapping[str, Any], now: LocalModel) -> Iterator[Difference]:
    """Which files are others. None is told where the recorded ones were built from these."""
    if _is_checkpoint(then) != _is_checkpoint(now.files):
        return
    for name in sorted({*then, *now.files}):
        was = then[name]["sha256"] if name in then else None
        is_now = file_sha256(now.path / name) if name in now.files else None
        if was != is_now:
            yield Difference("weights", name, was and was[:SHORT], is_now and is_now[:SHORT])


def _is_checkpoint(names: Any) -> bool:
    return any(name.endswith(".safetensors") for name in names)
