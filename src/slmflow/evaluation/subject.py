"""A candidate that is being asked: a model in a process of its own, or an endpoint."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from slmflow.answering.ask import AskError, Died, ModelProcess
from slmflow.answering.endpoint import Endpoint
from slmflow.answering.reply import Measurement, Reply, Setting
from slmflow.evaluation.candidates import Candidate
from slmflow.evaluation.results import Kind

DEATHS = 5
"""How often a model's process may end before the evaluation gives up."""

Row = Mapping[str, Any]


class Subject:
    """A context. The model's process is started when it is first needed, and again where it died.

    Methods raise ``AskError`` where the candidate cannot do what it is asked.
    """

    def __init__(self, candidate: Candidate, concurrency: int) -> None:
        self._candidate = candidate
        self._concurrency = concurrency
        self._process: ModelProcess | None = None
        self._endpoint: Endpoint | None = None
        self._begun: list[Sequence[Row]] = []
        self._sent = 0  # of those that were begun, to the process that runs now
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
        """The model's process, which may still be loading; None for an endpoint."""
        if self._candidate.kind is Kind.endpoint:
            return None
        if self._process is None:
            process = ModelProcess(str(self._candidate.folder), self._candidate.parameters)
            self._process = process.__enter__()
        return self._process

    def begin(self, rows: Sequence[Row]) -> None:
        """Have these rows answered, after those begun before, while the caller does other work.

        An endpoint begins when ``finish`` is called.
        """
        if self.loaded is not None and self._sent == len(self._begun):
            with suppress(Died):  # which finish() will find out, and send it again
                self.loaded.begin(rows)
                self._sent += 1
        self._begun.append(rows)

    def finish(self) -> Iterator[tuple[int, Reply]]:
        """The replies to the rows that were begun first, with their places, as they come.

        A row that the model's process dies of has an error.
        """
        rows = self._begun.pop(0)
        if self._candidate.kind is Kind.endpoint:
            endpoint = self._connected()
            yield from endpoint.answers(rows, self._candidate.parameters, self._concurrency)
            return
        open_rows = dict(enumerate(rows))
        try:
            for index, reply in self._finished(rows):
                del open_rows[index]
                yield index, reply
        except Died as death:
            self._bury(death)
        for index, row in open_rows.items():
            yield index, self._alone(row)

    def measure(self, texts: Sequence[str], setting: Setting) -> Measurement | str:
        """One batch, warmed up; or why it cannot be measured."""
        if self._candidate.kind is Kind.endpoint:
            try:
                return self._connected().measure(texts[0], setting)
            except AskError as error:
                return _first_line(error)
        process = self.loaded
        assert process is not None
        try:
            return process.measure(texts, setting)
        except Died as death:
            self._bury(death)
            return _first_line(death)

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

    def _finished(self, rows: Sequence[Row]) -> Iterator[tuple[int, Reply]]:
        process = self.loaded
        assert process is not None
        if not self._sent:
            process.begin(rows)
            self._sent += 1
        yield from process.finish()
        self._sent -= 1

    def _alone(self, row: Row) -> Reply:
        process = self.loaded
        assert process is not None
        try:
            return process.answers([row])[0]
        except Died as death:
            self._bury(death)
            return Reply("", error=_first_line(death))

    def _bury(self, death: Died) -> None:
        """Make room for another process. Raises ``AskError`` where too many have died."""
        if self._process is not None:
            self._process.__exit__(None, None, None)
        self._process, self._sent = None, 0
        self._deaths += 1
        if self._deaths >= DEATHS:
            raise AskError(
                f"{self._candidate.label}: its process died {DEATHS} times; what was answered is "
                f"kept, so the same command goes on from there. The last time: {death}"
            ) from None

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


def _first_line(error: AskError) -> str:
    return str(error).strip().splitlines()[0]
