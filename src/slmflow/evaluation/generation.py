"""Every row's answer, asked once and kept."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from slmflow.answering.reply import Reply
from slmflow.config.evaluation import Ask
from slmflow.console import Bar
from slmflow.evaluation.answers import AnswerStore
from slmflow.evaluation.data.dataset import Dataset
from slmflow.evaluation.data.example import Example
from slmflow.evaluation.subject import Subject

Answered = Iterator[tuple[Example, Reply]]


@dataclass(frozen=True)
class _Window:
    """Rows that are asked together; ``replies`` has None where one is not there yet."""

    start: int
    examples: Sequence[Example]
    requests: Sequence[dict[str, Any]]
    replies: list[Reply | None]

    @property
    def open_rows(self) -> list[int]:
        return [index for index, reply in enumerate(self.replies) if reply is None]


class Answers:
    """The answers of one candidate to a dataset, in order.

    ``errors`` has the replies of the rows that have no answer; the others are in the store.
    """

    def __init__(self, store: AnswerStore, dataset: Dataset, ask: Ask) -> None:
        self._store = store
        self._dataset = dataset
        self._ask = ask
        self.errors: dict[int, Reply] = {}

    def asked(self, subject: Subject, bar: Bar) -> Answered:
        """Every row with its reply; what is not in the store is asked and kept as it comes.

        While the caller works on one window of rows, the model answers the next.
        """
        if not self._ask.reuse:
            self._store.forget()
        reused = 0
        begun: deque[_Window] = deque()
        for window in self._windows():
            reused += len(window.examples) - len(window.open_rows)
            if window.open_rows:
                subject.begin([window.requests[index] for index in window.open_rows])
            begun.append(window)
            if len(begun) > 1:
                yield from self._finished(begun.popleft(), subject, bar)
        while begun:
            yield from self._finished(begun.popleft(), subject, bar)
        if reused:
            bar.details.append(f"{reused} from before")

    def __iter__(self) -> Answered:
        """The same again, from disk."""
        for window in self._windows():
            yield from self._pairs(window)

    def _finished(self, window: _Window, subject: Subject, bar: Bar) -> Answered:
        open_rows = window.open_rows
        bar.advance(len(window.examples) - len(open_rows))
        for place, reply in subject.finish() if open_rows else ():
            index = open_rows[place]
            window.replies[index] = reply
            if reply.error is None:
                self._store.keep([(window.requests[index], reply)])
            else:
                self.errors[window.start + index] = reply
            bar.advance()
        yield from self._pairs(window)

    def _pairs(self, window: _Window) -> Answered:
        for index, (example, reply) in enumerate(zip(window.examples, window.replies, strict=True)):
            found = self.errors.get(window.start + index, reply)
            assert found is not None, "asked() comes first"
            yield example, found

    def _windows(self) -> Iterator[_Window]:
        rows = iter(self._dataset)
        start = 0
        while examples := list(islice(rows, self._ask.window_rows)):
            requests = [example.request for example in examples]
            yield _Window(start, examples, requests, self._store.find(requests))
            start += len(examples)
