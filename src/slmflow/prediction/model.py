"""The model that answers a job: in a process of its own, started again where it died."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow

from slmflow.answering.ask import AskError, Died, ModelProcess
from slmflow.answering.reply import Reply
from slmflow.answering.worker import BATCH_ROWS

DEATHS = 20
"""How often in succession a process may end without an answer before the job gives up."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ModelSpec:
    """What a process on any node needs to load the model: plain values."""

    uri: str  # of one fixed version
    folder: str | None = None  # where its files lie, on nodes that see that folder
    model_config: Mapping[str, Any] = field(default_factory=dict)  # over what it was packaged with
    tracking_uri: str | None = None  # None: as it is set where the model is loaded
    registry_uri: str | None = None  # None: the same


class RestartingModel:
    """A context. Loading begins as it is entered; leaving it, from any thread, ends the process.

    A row that the process dies of, or that the model refuses, has an error in its reply.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._lock = threading.Lock()
        self._left = False
        self._process: ModelProcess | None = None
        self._deaths = 0  # since the last answer

    def __enter__(self) -> "RestartingModel":
        if self._spec.tracking_uri is not None:
            mlflow.set_tracking_uri(self._spec.tracking_uri)
        if self._spec.registry_uri is not None:
            mlflow.set_registry_uri(self._spec.registry_uri)
        self._started()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._left = True
            self._end()

    def replies(
        self, rows: Sequence[Row], answered: Callable[[int], None] = lambda count: None
    ) -> list[Reply]:
        """A reply a row, in order; ``answered`` is told of how many more, as they come.

        Raises ``AskError`` where the model does not load, or its process died ``DEATHS`` times in
        succession.
        """
        found: dict[int, Reply] = {}
        # About as the model's process does, which counts tokens: so those that it was at when it
        # died are among the first ones left.
        left = sorted(range(len(rows)), key=lambda index: _length(rows[index]))
        while left:
            process = self._loaded()
            try:
                self._together(process, rows, left, found, answered)
            except AskError as error:
                if isinstance(error, Died):  # others may be of one row: the process is well
                    self._bury(error)
                suspects = [index for index in left if index not in found][:BATCH_ROWS]
                for index in suspects:
                    found[index] = self._alone(rows[index])
                    answered(1)
            left = [index for index in left if index not in found]
        return [found[index] for index in range(len(rows))]

    def _together(
        self,
        process: ModelProcess,
        rows: Sequence[Row],
        chosen: Sequence[int],
        found: dict[int, Reply],
        answered: Callable[[int], None],
    ) -> None:
        process.begin([rows[index] for index in chosen])
        for place, reply in process.finish():
            found[chosen[place]] = reply
            self._deaths = 0
            answered(1)

    def _alone(self, row: Row) -> Reply:
        """Its reply. What breaks a process without ending it (an assertion on a GPU) gives its
        error to all rows behind it: so a row is blamed for such an error by a fresh process."""
        for fresh in (False, True):
            process = self._loaded()
            try:
                reply = process.answers([row])[0]
            except AskError as error:
                self._bury(error)
                if fresh or isinstance(error, Died):
                    return Reply("", error=str(error).strip().splitlines()[0])
            else:
                break
        self._deaths = 0
        return reply

    def _loaded(self) -> ModelProcess:
        """Raises ``AskError`` where the model does not load: no row is to blame."""
        process = self._started()
        _ = process.load_seconds  # which waits for it
        return process

    def _started(self) -> ModelProcess:
        """Raises ``AskError`` where this was left."""
        with self._lock:
            if self._left:
                raise AskError(f"{self._spec.uri}: the job was stopped")
            if self._process is None:
                config = dict(self._spec.model_config)
                self._process = ModelProcess(_source(self._spec), config).__enter__()
        return self._process

    def _bury(self, error: AskError) -> None:
        """Make room for another process where this one died of the error, or may be broken by it.

        Raises ``AskError`` where this was left: that ended the process, then, and no row.
        """
        with self._lock:
            if self._left:
                raise AskError(f"{self._spec.uri}: the job was stopped")
            self._end()
        if not isinstance(error, Died):
            return
        self._deaths += 1
        if self._deaths >= DEATHS:
            raise AskError(
                f"{self._spec.uri}: its process died {DEATHS} times without an answer; the parts "
                "that were done are kept, and the same command goes on from there. "
                f"The last time: {error}"
            ) from None

    def _end(self) -> None:
        if self._process is not None:
            self._process.__exit__(None, None, None)
        self._process = None


def _source(spec: ModelSpec) -> str:
    folder = spec.folder
    return folder if folder is not None and Path(folder, "MLmodel").is_file() else spec.uri


def _length(row: Row) -> int:
    if "prompt" in row:
        return len(row["prompt"])
    return sum(len(message["content"]) for message in row["messages"])
