"""Every row's answer, asked once and kept."""

from collections.abc import Iterator, Sequence
from itertools import islice

from slmflow import console
from slmflow.answering.reply import Reply
from slmflow.config.evaluation import Ask
from slmflow.evaluation.answers import AnswerStore
from slmflow.evaluation.data.dataset import Dataset
from slmflow.evaluation.data.example import Example
from slmflow.evaluation.subject import Subject


class Answers:
    """The answers of one candidate to a dataset, in order, from disk.

    ``errors`` has the replies of the rows that have no answer; the others are in the store.
    """

    def __init__(self, store: AnswerStore, dataset: Dataset, ask: Ask) -> None:
        self._store = store
        self._dataset = dataset
        self._ask = ask
        self.errors: dict[int, Reply] = {}
        self.reused = 0

    def complete(self, subject: Subject, label: str) -> None:
        """Ask for what is not there yet. What is answered is kept, whatever happens next."""
        if not self._ask.reuse:
            self._store.forget()
        with console.progress(f"ask {label}", total=len(self._dataset)) as bar:
            for index, examples in self._chunks():
                self._answer(subject, index, examples)
                bar.advance(len(examples))
            if self.reused:
                bar.details.append(f"{self.reused} answers are from before")

    def __iter__(self) -> Iterator[tuple[Example, Reply]]:
        for index, examples in self._chunks():
            replies = self._store.find([example.request for example in examples])
            for offset, (example, reply) in enumerate(zip(examples, replies, strict=True)):
                reply = self.errors.get(index + offset, reply)
                assert reply is not None, "complete() comes first"
                yield example, reply

    def _answer(self, subject: Subject, index: int, examples: Sequence[Example]) -> None:
        requests = [example.request for example in examples]
        found = self._store.find(requests)
        open_rows = [i for i, reply in enumerate(found) if reply is None]
        self.reused += len(examples) - len(open_rows)
        if not open_rows:
            return
        replies = subject.answers([requests[i] for i in open_rows])
        self._store.keep(zip((requests[i] for i in open_rows), replies, strict=True))
        for i, reply in zip(open_rows, replies, strict=True):
            if reply.error is not None:
                self.errors[index + i] = reply

    def _chunks(self) -> Iterator[tuple[int, list[Example]]]:
        rows = iter(self._dataset)
        index = 0
        while examples := list(islice(rows, self._ask.batch_rows)):
            yield index, examples
            index += len(examples)
