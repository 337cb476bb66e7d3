"""A candidate that is being asked: a model in a process of its own, or an endpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from slmflow.answering.ask import AskError, Died, ModelProcess
from slmflow.answering.endpoint import Endpoint
from slmflow.answering.reply import Measurement, Reply, Setting
from slmflow.evaluation.candidates import Candidate
from slmflow.evaluation.results import Kind

DEATHS = 5
"""How often a model's process may end before the evaluation gives up."""

Row = Mapping[str, Any]
T = TypeVar("T")


class Subject:
    """A context. The model's process is started when it is first needed, and again where it died.

    Methods raise ``AskError`` where the candidate cannot do what it is asked.
    """

    def __init__(self, candidate: Candidate, concurrency: int) -> None:
        self._candidate = candidate
        self._concurrency = concurrency
        self._process: ModelProcess | None = None
        self._endpoint: Endpoint | None = None
        self._deaths = 0

    def __enter__(self) -> "Subject":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.__exit__(None, None, None)
        if self._endpoint is not None:
            self._endpoint.__exit__(None, None, None)

    @property
    def loaded(self) -> ModelProcess | None:
        """The model's process; None for an endpoint."""
        if self._candidate.kind is Kind.endpoint:
            return None
        if self._process is None:
            process = ModelProcess(str(self._candidate.folder), self._candidate.parameters)
            self._process = process.__enter__()
        return self._process

    def answers(self, rows: Sequence[Row]) -> list[Reply]:
        """Every row's reply, in order. A row that the model's process dies of has an error."""
        if self._candidate.kind is Kind.endpoint:
            endpoint = self._connected()
            replies = dict(endpoint.answers(rows, self._candidate.parameters, self._concurrency))
            return [replies[index] for index in range(len(rows))]
        try:
            return self._of_process(lambda process: process.answers(rows))
        except Died as death:
            if len(rows) == 1:
                return [Reply("", error=_last_line(death))]
            return [reply for row in rows for reply in self.answers([row])]

    def measure(self, texts: Sequence[str], setting: Setting) -> Measurement | str:
        """One batch, warmed up; or why it cannot be measured."""
        if self._candidate.kind is Kind.endpoint:
            try:
                return self._connected().measure(texts[0], setting)
            except AskError as error:
                return str(error).splitlines()[0]
        try:
            return self._of_process(lambda process: process.measure(texts, setting))
        except Died as death:
            return _last_line(death)

    def memory(self) -> tuple[int | None, int | None]:
        """Peak resident memory and memory on the device, in bytes; None where unseen."""
        return (None, None) if self.loaded is None else self.loaded.memory()

    def likelihood(self, pairs: Sequence[tuple[Row, str]]) -> Iterator[tuple[float, int]]:
        yield from self._seen().likelihood(pairs)

    def observe(
        self, rows: Sequence[Row], new_tokens: int, save: Path | None
    ) -> Iterator[dict[str, Any]]:
        yield from self._seen().observe(rows, new_tokens, save)

    def force(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], against: Path
    ) -> Iterator[dict[str, Any]]:
        yield from self._seen().force(pairs, against)

    def _of_process(self, do: Callable[[ModelProcess], T]) -> T:
        process = self.loaded
        assert process is not None
        try:
            return do(process)
        except Died as death:
            with suppress(AskError):
                process.__exit__(None, None, None)
            self._process = None
            self._deaths += 1
            if self._deaths >= DEATHS:
                raise AskError(
                    f"{self._candidate.label}: its process died {DEATHS} times; what was answered "
                    f"is kept, so the same command goes on from there. The last time: {death}"
                ) from None
            raise

    def _connected(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = Endpoint.parse(self._candidate.uri).__enter__()
            self._endpoint.connect()
        return self._endpoint

    def _seen(self) -> ModelProcess:
        process = self.loaded
        if process is None or not process.packaged:
            raise AskError(f"{self._candidate.label} does not show its prompts and logits")
        return process


def _last_line(death: Died) -> str:
    return str(death).strip().splitlines()[0]
