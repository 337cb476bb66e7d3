"""The server's side of the model: what waits, what runs, and what happens if its process dies."""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from slmflow.errors import ServeError
from slmflow.serving.process import Order, Process, line_of
from slmflow.serving.refused import Refused

RESTART_SECONDS = (0.0, 1.0, 2.0, 5.0, 15.0, 30.0)
MOST_DEATHS = 3
MOST_NESTED = 64  # levels of a request's JSON; deeper ones could not be handed over
log = logging.getLogger(__name__)

DIED = "the model's process died while it answered this request; it is being restarted, ask again"
STOPPING = "the server is stopping; ask again when it is back"


@dataclass(frozen=True)
class Loaded:
    """What the model says of itself."""

    name: str
    task: str
    context_length: int
    chats: bool  # has a chat template


class Ask:
    """One request on its way through the worker."""

    def __init__(
        self, id: str, kind: str, body: Mapping[str, Any], deadline: float, more: bool
    ) -> None:
        self.more = more
        self.line = line_of({"ask": id, "kind": kind, "body": body})
        self.id = id
        self.deadline = deadline
        self.started = False
        self.deaths = 0  # of workers that had read it
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()


class Engine:
    """Keeps one worker process alive and hands requests to it.

    ``capacity`` requests may wait; one more is refused with status 429. A request that is not
    answered within ``timeout`` seconds is refused with 504 and taken back.
    """

    def __init__(self, order: Order, capacity: int, timeout: float) -> None:
        self._order = order
        self._capacity = capacity
        self._timeout = timeout
        self._asks: dict[str, Ask] = {}
        self._ids = itertools.count()
        self._process: Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._first_load: asyncio.Future[Loaded] | None = None
        self._recent_seconds = 1.0  # of a request, a moving average
        self._stopping = False
        self.loaded: Loaded | None = None
        """None while the model is not there."""
        self.loop: asyncio.AbstractEventLoop
        self.task = ""
        self.restarts = 0

    @property
    def waiting(self) -> int:
        """Requests in the queue; rows of a call that was let in do not count."""
        return sum(not ask.started and not ask.more for ask in self._asks.values())

    @property
    def running(self) -> int:
        return sum(ask.started for ask in self._asks.values())

    @property
    def choices(self) -> int | None:
        """Answers that one request may ask for."""
        return self._order.limits.get("choices")

    async def start(self) -> Loaded:
        """Load the model. Raises ``ServeError`` with the model's own message."""
        self.loop = asyncio.get_running_loop()
        self._first_load = self.loop.create_future()
        self._supervisor = asyncio.create_task(self._supervise())
        return await self._first_load

    async def stop(self) -> None:
        """End the worker; what still runs is refused."""
        self._stopping = True
        for ask in list(self._asks.values()):
            self._refuse(ask, 503, STOPPING)
        if self._process is not None:
            await self._process.stop()
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor

    def ask(self, kind: str, body: Mapping[str, Any], more: bool = False) -> Ask:
        """Hand a request in; it ends with ``done`` or with ``close``. Raises ``Refused``.

        ``more``: a row of a call that was let in as a whole.
        """
        if not more:
            self.check_room()
        _check_depth(body, MOST_NESTED)
        deadline = time.monotonic() + self._timeout
        ask = Ask(str(next(self._ids)), kind, body, deadline, more)
        self._asks[ask.id] = ask
        if self.loaded is not None:  # else it is handed over when the model is there
            self._send(ask.line)
        return ask

    def check_room(self) -> None:
        """Raise ``Refused`` where one more request may not wait."""
        if self._stopping:
            raise Refused(503, STOPPING, "server_error")
        if self.waiting >= self._capacity:
            wait = max(1, math.ceil(self._recent_seconds))
            raise Refused(
                429,
                f"{self._capacity} requests are waiting already, which is all that this server "
                f"lets wait; try again in {wait} s",
                "rate_limit_error",
                code="queue_full",
                headers={"Retry-After": str(wait)},
            )

    async def accepted(self, ask: Ask) -> bool:
        """Wait until the model has read the request; whether it streams. Raises ``Refused``."""
        return bool((await self._event(ask, "accepted"))["stream"])

    async def chunks(self, ask: Ask) -> AsyncIterator[list[dict[str, Any]]]:
        """The chunks of a streamed response, those that are there together in one list; the
        ``done`` message is then in ``ask.events``. Raises ``Refused``."""
        ready: list[dict[str, Any]] = []
        while True:
            event = await self._event(ask, "chunk", "done")
            if event["event"] == "chunk":
                ready.append(event["chunk"])
            if ready and (event["event"] == "done" or ask.events.empty()):
                yield ready
                ready = []
            if event["event"] == "done":
                ask.events.put_nowait(event)
                return

    async def done(self, ask: Ask) -> dict[str, Any]:
        """Wait for the whole response and its times. Raises ``Refused``."""
        event = await self._event(ask, "done")
        self._recent_seconds += (event["seconds"] - self._recent_seconds) / 8
        return event

    def close(self, ask: Ask) -> None:
        """Nobody waits for it any more: frees its place."""
        if self._asks.pop(ask.id, None) is not None and self.loaded is not None:
            self._send(line_of({"cancel": ask.id}))

    async def _event(self, ask: Ask, *kinds: str) -> dict[str, Any]:
        """The next event of one of these kinds."""
        while True:
            try:
                async with asyncio.timeout(max(0.0, ask.deadline - time.monotonic())):
                    event = await ask.events.get()
            except TimeoutError:
                self.close(ask)
                raise Refused(
                    504,
                    f"the answer was not complete within {self._timeout:g} s "
                    "(serve.timeout); ask for less, or again when fewer requests wait",
                    "timeout_error",
                    code="deadline_exceeded",
                ) from None
            if event["event"] == "error":
                raise Refused.of(event["status"], event["error"])
            if event["event"] in kinds:
                return event

    def _send(self, line: bytes) -> None:
        if self._process is not None:
            self._process.send(line)

    async def _supervise(self) -> None:
        """Start the worker, and again whenever it ends."""
        attempt = 0
        while not self._stopping:
            was_loaded = await self._one_life()
            if self._stopping:
                return
            self.restarts += 1
            attempt = 0 if was_loaded else attempt + 1
            await asyncio.sleep(RESTART_SECONDS[min(attempt, len(RESTART_SECONDS) - 1)])

    async def _one_life(self) -> bool:
        """One worker process, from its start to its end. Whether it loaded the model."""
        self._process = process = await Process.start(self._order)
        was_loaded = False
        async for event in process.events():
            if event["event"] == "loaded":
                was_loaded = True
                self._hand_over(event)
            elif event["event"] == "failed":
                self._failed_to_load(event["error"])
            else:
                self._hear(event)
        self._bury(*process.end(), was_loaded)
        return was_loaded

    def _hand_over(self, event: Mapping[str, Any]) -> None:
        """The model is there: it gets all that waits."""
        self.loaded = Loaded(**{name: event[name] for name in Loaded.__annotations__})
        self.task = self.loaded.task
        if self._first_load is not None and not self._first_load.done():
            self._first_load.set_result(self.loaded)
        for ask in self._asks.values():
            self._send(ask.line)

    def _failed_to_load(self, error: str) -> None:
        if self._first_load is None or self._first_load.done():
            log.error("the model did not load: %s", error)
        else:
            self._stopping = True
            self._first_load.set_exception(
                ServeError(f"{self._order.uri} cannot be served: {error}")
            )

    def _hear(self, event: dict[str, Any]) -> None:
        ask = self._asks.get(event["id"])
        if ask is None:
            return  # taken back meanwhile
        if event["event"] == "started":
            ask.started = True
        elif event["event"] in ("done", "error"):
            del self._asks[ask.id]
        ask.events.put_nowait(event)

    def _bury(self, how: str, last_lines: str, was_loaded: bool) -> None:
        """The worker ended: what it was answering is lost, what waits goes on with the next."""
        self.loaded = None
        if self._stopping:
            return
        log.error("the model's process %s; starting it again\n%s", how, last_lines)
        if self._first_load is not None and not self._first_load.done():
            self._stopping = True
            why = f"{how}, most likely for want of memory" if "killed" in how else how
            told = f"{self._order.uri} cannot be served: its process {why}\n{last_lines}"
            self._first_load.set_exception(ServeError(told.strip()))
        for ask in list(self._asks.values()):
            ask.deaths += was_loaded
            if ask.started or ask.deaths == MOST_DEATHS:  # it may be what kills them
                self._refuse(ask, 503, DIED)

    def _refuse(self, ask: Ask, status: int, message: str) -> None:
        self._asks.pop(ask.id, None)
        error = {"message": message, "type": "server_error", "param": None, "code": None}
        ask.events.put_nowait({"event": "error", "status": status, "error": error})


def _check_depth(value: Any, left: int) -> None:
    if isinstance(value, dict | list):
        if left == 0:
            raise Refused(400, f"the request is nested more than {MOST_NESTED} levels deep")
        for held in value.values() if isinstance(value, dict) else value:
            _check_depth(held, left - 1)
