"""The lock of today against the commits of then, which a rerun takes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from slmflow import lock_file
from slmflow.config.schema import Model
from slmflow.errors import SourceError


@contextmanager
def commits_of_then(configs: Iterable[Any]) -> Iterator[list[str]]:
    """Sentences for the person. What the lock pins at another commit by now is left out of it for
    the time of the rerun: a commit cannot change, and the manifests are compared.

    What agrees holds as ever.
    """
    packaging = [config for config in configs if hasattr(config, "model")]
    refused = {source: told for config in packaging for source, told in _refused(config.model)}
    if not refused:
        yield []
        return
    others = [entry for entry in lock_file.read() if entry.source not in refused]
    with lock_file.aside(others):
        yield list(refused.values())


def _refused(model: Model) -> Iterator[tuple[str, str]]:
    """Sources, with what is said of them. Not of a broken lock, which whoever needs it refuses."""
    try:
        lock_file.read()
    except SourceError:
        return
    for source, revision in (
        (model.source, model.revision),
        (model.onnx.source, model.onnx.revision),
    ):
        if source is None or revision is None:
            continue
        try:
            lock_file.pinned(source, revision)
        except SourceError:
            yield (
                source,
                f"{lock_file.place().name} pins {source} at another commit by now; this rerun "
                f"takes that of then, {revision}",
            )
