"""OpenAI's paths: a request from its bytes to its response."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from slmflow.serving.engine import Ask, Engine
from slmflow.serving.metrics import Metrics
from slmflow.serving.refused import Refused
from slmflow.serving.tracing import NoTracer, Served, Tracer

T = TypeVar("T")
GONE = "the client closed the connection"
PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}


@dataclass(frozen=True)
class Identity:
    """What is served: the name that answers carry, and every other name that requests may use."""

    name: str
    uri: str
    created: int  # seconds since 1970
    names: frozenset[str]
    about: Mapping[str, Any]


def add_openai(app: FastAPI, door: "Door") -> None:
    @app.post(PATHS["chat"])
    async def chat_completions(request: Request) -> Response:
        return await door.answer("chat", request)

    @app.post(PATHS["text"])
    async def completions(request: Request) -> Response:
        return await door.answer("text", request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [door.model()]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        door.check_model(model)
        return door.model()


class Door:
    """Answers the requests of OpenAI's API with one engine."""

    def __init__(
        self, engine: Engine, identity: Identity, metrics: Metrics, tracer: Tracer | NoTracer
    ) -> None:
        self.engine = engine
        self._identity = identity
        self._metrics = metrics
        self._tracer = tracer

    async def answer(self, kind: str, request: Request) -> Response:
        served = Served(kind, PATHS[kind], time.time_ns())
        with self._failing(served):
            served.body = body = _object(await request.body())
            self.check_model(body.get("model"))
            ask = self.engine.ask(kind, body)
            with _closing(self.engine, ask) as kept:
                if await unless_gone(request, self.engine.accepted(ask)):
                    kept.pop_all()  # the stream closes it
                    return _Stream(self._events(ask, served), lambda: self._over(ask, served))
                done = await unless_gone(request, self.engine.done(ask))
                self._served(served, done)
                return JSONResponse(done["response"])

    async def row(self, kind: str, path: str, body: Mapping[str, Any]) -> Any:
        """The whole response to one row of a call that was let in. Raises ``Refused``."""
        served = Served(kind, path, time.time_ns())
        served.body = body
        with self._failing(served):
            self.check_model(body.get("model"))
            ask = self.engine.ask(kind, body, more=True)
            with _closing(self.engine, ask):
                if await self.engine.accepted(ask):
                    raise Refused(400, f"stream: {path} answers in one piece", param="stream")
                done = await self.engine.done(ask)
                self._served(served, done)
                return done["response"]

    def check_model(self, name: Any) -> None:
        identity = self._identity
        if name is not None and not (isinstance(name, str) and name in identity.names):
            raise Refused(
                404,
                f"the model {name!r} is not served here; allowed: "
                f"{', '.join(sorted(identity.names))}",
                param="model",
                code="model_not_found",
            )

    def model(self) -> dict[str, Any]:
        identity = self._identity
        return {
            "id": identity.name,
            "object": "model",
            "created": identity.created,
            "owned_by": "slmflow",
            "uri": identity.uri,
            **identity.about,
        }

    async def _events(self, ask: Ask, served: Served) -> AsyncIterator[bytes]:
        """Server-sent events, as OpenAI writes them."""
        try:
            async for chunks in self.engine.chunks(ask):
                yield b"".join(_event(chunk) for chunk in chunks)
            self._served(served, await self.engine.done(ask))
            yield b"data: [DONE]\n\n"
        except Refused as refused:
            self._failed(served, refused)
            yield _event({"error": refused.error})

    def _over(self, ask: Ask, served: Served) -> None:
        """A stream has ended, or its client has gone."""
        self.engine.close(ask)
        if served.response is None and served.error is None:
            self._failed(served, Refused(499, GONE, "client_closed"))

    def _served(self, served: Served, done: Mapping[str, Any]) -> None:
        served.finish(done)
        self._metrics.count(served.path, 200, done)
        self._tracer.record(served)

    @contextmanager
    def _failing(self, served: Served) -> Iterator[None]:
        try:
            yield
        except Refused as refused:
            self._failed(served, refused)
            raise

    def _failed(self, served: Served, refused: Refused) -> None:
        served.fail(str(refused))
        self._metrics.count(served.path, refused.status, None)
        self._tracer.record(served)


class _Stream(StreamingResponse):
    """Says when it is over: a client can go away before the first event is asked for."""

    def __init__(self, events: AsyncIterator[bytes], over: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()


def _closing(engine: Engine, ask: Ask) -> ExitStack:
    """Frees the request's place at the end, however that comes."""
    stack = ExitStack()
    stack.callback(engine.close, ask)
    return stack


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises ``Refused``."""
    try:
        value = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the request is no JSON object; see /openapi.json for what it may hold")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, unless the client goes away first: then it is ended."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(499, GONE, "client_closed")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
