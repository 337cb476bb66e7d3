"""Answers many callers at once: what waits together is generated together.

The loop of a serving process. It knows neither HTTP nor processes: requests come as messages, in a
queue, and everything that happens to them is said to a function.
"""

import math
import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from slmflow.served.answer import Answer
from slmflow.served.generate import BATCH_ROWS, Batch, Prompt, next_batch
from slmflow.served.packaged import Job, PackagedModel, not_followed
from slmflow.served.request import RequestError
from slmflow.served.runtime import SchemaError

Say = Callable[[dict[str, Any]], None]
Inbox = queue.Queue[dict[str, Any] | None]


@dataclass(frozen=True)
class Limits:
    """Of one request. ``None``: as much as the model allows."""

    new_tokens: int | None = None
    choices: int | None = None
    gather_seconds: float = 0.02
    """How long a batch may wait for callers who were just answered and come again."""

    settle_seconds: float = 0.003
    """How long a session that was idle waits for another caller after each."""

    chunk_seconds: float = 0.02
    """How much of a stream's text goes into one chunk, after its first: each chunk costs the
    processor as much as a tenth of a token, and nobody reads faster."""


@dataclass
class _Held:
    """A request that is not yet answered, and when things happened to it (seconds)."""

    id: str
    job: Job
    came: float
    started: float | None = None
    first: float | None = None
    answers: dict[int, Answer] = field(default_factory=dict)
    unsaid: dict[int, str] = field(default_factory=dict)  # text of the next chunk, by choice
    said: dict[int, float] = field(default_factory=dict)  # when the last chunk was, by choice


@dataclass(frozen=True)
class _Row:
    """One choice of a request that waits."""

    held: _Held
    index: int

    @property
    def prompt(self) -> Prompt:
        return self.held.job.prompts[self.index]


class Session:
    """Messages in: ``{"ask": id, "kind": "chat" | "text", "body": {...}}``, ``{"cancel": id}``,
    and None to end when what was asked is answered.

    Said of every ``id``: ``accepted``, then ``started`` when its turn comes, then its
    ``chunk``s where it streams, then ``done`` with the whole response and its times; or ``error``.
    """

    def __init__(self, model: PackagedModel, limits: Limits, say: Say) -> None:
        self._model = model
        self._limits = limits
        self._say = say
        self._waiting: list[_Row] = []
        self._held: dict[str, _Held] = {}
        self._expected = 0  # requests, right after a batch
        self._ended = 0.0  # when the last batch did

    def run(self, inbox: Inbox) -> None:
        """Until None comes and all that came before it is answered."""
        going_on = True
        while going_on or self._waiting:
            if not self._waiting:
                going_on = self._take(inbox.get()) and self._settle(inbox)
            going_on = self._take_all(inbox) and going_on
            if going_on:
                going_on = self._gather(inbox)
            if self._waiting:
                going_on = self._answer_some(inbox) and going_on

    def _settle(self, inbox: Inbox) -> bool:
        """Callers that begin together come a millisecond apart: the first would be answered alone,
        and the others after it. False where the inbox ended meanwhile."""
        until = time.monotonic() + self._limits.gather_seconds
        return self._wait(inbox, BATCH_ROWS, until, self._limits.settle_seconds)

    def _gather(self, inbox: Inbox) -> bool:
        """Callers that were answered together come again together. False as above."""
        until = self._ended + self._limits.gather_seconds
        return self._wait(inbox, min(self._expected, BATCH_ROWS), until, math.inf)

    def _wait(self, inbox: Inbox, requests: int, until: float, patience: float) -> bool:
        """Until so many requests wait, or none came for ``patience`` seconds."""
        while 0 < len(self._ids(self._waiting)) < requests:
            left = min(patience, until - time.monotonic())
            if left <= 0:
                break
            try:
                if not self._take(inbox.get(timeout=left)):
                    return False
            except queue.Empty:
                break
        return True

    def _answer_some(self, inbox: Inbox) -> bool:
        """Generate one batch. False where the inbox ended meanwhile."""
        chosen = next_batch([row.prompt for row in self._waiting], self._context)
        rows = [self._waiting[index] for index in chosen]
        self._waiting = [row for i, row in enumerate(self._waiting) if i not in set(chosen)]
        for row in rows:
            self._start(row.held)
        batch = Batch(self._model.runtime, [row.prompt for row in rows])
        going_on = True
        try:
            for events in batch.steps():
                for place, event in events:
                    if isinstance(event, SchemaError):
                        self._refuse(rows[place], not_followed(event))
                    else:
                        self._tell(rows[place], event)
                going_on = self._take_all(inbox) and going_on
                for place, row in enumerate(rows):
                    if row.held.id not in self._held:  # cancelled
                        batch.drop(place)
        except Exception as error:  # told to the callers; the others go on
            self._fail(rows, error)
        self._expected = len(self._ids(rows)) + len(self._ids(self._waiting))
        self._ended = time.monotonic()
        return going_on

    def _take_all(self, inbox: Inbox) -> bool:
        going_on = True
        while not inbox.empty():
            going_on = self._take(inbox.get()) and going_on
        return going_on

    def _take(self, message: Mapping[str, Any] | None) -> bool:
        if message is None:
            return False
        if "cancel" in message:
            self._held.pop(message["cancel"], None)
            self._waiting = [row for row in self._waiting if row.held.id in self._held]
        else:
            self._ask(message["ask"], message["kind"], message["body"])
        return True

    def _ask(self, id: str, kind: str, body: Mapping[str, Any]) -> None:
        came = time.monotonic()
        try:
            job = self._limited(body, self._job(kind, body))
        except RequestError as error:
            self._say({"event": "error", "id": id, "status": 400, "error": error.as_dict()})
            return
        except Exception as error:  # a template or tokenizer that fails on this text
            self._say({"event": "error", "id": id, "status": 500, "error": _broken(error)})
            return
        self._held[id] = held = _Held(id, job, came)
        self._waiting += [_Row(held, index) for index in range(len(job.prompts))]
        self._say({"event": "accepted", "id": id, "stream": job.stream})

    def _job(self, kind: str, body: Mapping[str, Any]) -> Job:
        return self._model.chat_job(body) if kind == "chat" else self._model.text_job(body)

    def _limited(self, body: Mapping[str, Any], job: Job) -> Job:
        most, choices = self._limits.new_tokens, self._limits.choices
        if choices is not None and len(job.prompts) > choices:
            raise RequestError(
                f"{len(job.prompts)} answers are asked for (n of each prompt) and this server "
                f"allows {choices} a request",
                "n",
            )
        if most is None:
            return job
        for name in ("max_tokens", "max_completion_tokens"):
            asked = body.get(name)
            if asked is not None and asked > most:
                raise RequestError(f"{name} is {asked} and this server allows {most}", name)
        bounded = (replace(p, new_tokens=min(p.new_tokens, most)) for p in job.prompts)
        return replace(job, prompts=tuple(bounded))

    def _start(self, held: _Held) -> None:
        if held.started is None:
            held.started = time.monotonic()
            self._say({"event": "started", "id": held.id})

    def _tell(self, row: _Row, event: str | Answer) -> None:
        held = row.held
        if held.first is None:
            held.first = time.monotonic()
        if isinstance(event, str):
            self._piece(held, row.index, event)
            return
        held.answers[row.index] = event
        self._flush(held, row.index)
        self._chunk(held, held.job.reply.end(row.index, event))
        if len(held.answers) == len(held.job.prompts):
            self._done(held)

    def _piece(self, held: _Held, index: int, text: str) -> None:
        held.unsaid[index] = held.unsaid.get(index, "") + text
        if time.monotonic() - held.said.get(index, -math.inf) >= self._limits.chunk_seconds:
            self._flush(held, index)

    def _flush(self, held: _Held, index: int) -> None:
        if text := held.unsaid.pop(index, ""):
            self._chunk(held, held.job.reply.piece(index, text))
            held.said[index] = time.monotonic()

    def _chunk(self, held: _Held, chunk: dict[str, Any]) -> None:
        if held.job.stream:
            self._say({"event": "chunk", "id": held.id, "chunk": chunk})

    def _done(self, held: _Held) -> None:
        del self._held[held.id]
        answers = [held.answers[index] for index in range(len(held.job.prompts))]
        total = held.job.reply.total(answers)
        if total is not None:
            self._chunk(held, total)
        assert held.started is not None and held.first is not None
        self._say(
            {
                "event": "done",
                "id": held.id,
                "response": held.job.reply.whole(answers),
                "waited_seconds": held.started - held.came,
                "first_token_seconds": held.first - held.came,
                "seconds": time.monotonic() - held.came,
            }
        )

    def _refuse(self, row: _Row, error: RequestError) -> None:
        if self._held.pop(row.held.id, None) is not None:
            refused = {"status": 400, "error": error.as_dict()}
            self._say({"event": "error", "id": row.held.id, **refused})

    def _fail(self, rows: list[_Row], error: Exception) -> None:
        for id in self._ids(rows):
            if self._held.pop(id, None) is not None:
                self._say({"event": "error", "id": id, "status": 500, "error": _broken(error)})
        self._waiting = [row for row in self._waiting if row.held.id in self._held]

    @property
    def _context(self) -> int:
        return self._model.runtime.context_length

    @staticmethod
    def _ids(rows: list[_Row]) -> list[str]:
        return list(dict.fromkeys(row.held.id for row in rows))


def _broken(error: Exception) -> dict[str, Any]:
    message = f"the model failed: {type(error).__name__}: {error}"
    return {"message": message, "type": "server_error", "param": None, "code": None}
