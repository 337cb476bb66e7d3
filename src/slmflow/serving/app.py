"""OpenAI's HTTP API and MLflow's, over one engine."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slmflow import __version__
from slmflow.serving.describe import TAGS, openai_paths
from slmflow.serving.engine import Ask, Engine
from slmflow.serving.invocations import scoring_routes
from slmflow.serving.metrics import CONTENT_TYPE, Metrics
from slmflow.serving.refused import Refused
from slmflow.serving.tracing import NoTracer, Served, Tracer

PAGE = Path(__file__).with_name("page")
OPEN_PATHS = ("/", "/page/", "/health", "/ping", "/version", "/docs", "/openapi.json")
"""Without a key: nothing there tells of a request or costs a token."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
KINDS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}


@dataclass(frozen=True)
class Identity:
    """What is served: the name that answers carry, and every other name that requests may use."""

    name: str
    uri: str
    created: int  # seconds since 1970
    names: frozenset[str]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Access:
    """``hosts``: values of the Host header that are answered, against pages of other origins
    that reach a loopback address by a name of their own; None: any."""

    api_key: str | None
    max_body_bytes: int
    hosts: tuple[str, ...] | None


def create_app(
    engine: Engine,
    identity: Identity,
    access: Access,
    metadata: Any,
    metrics: Metrics,
    tracer: Tracer | NoTracer,
) -> FastAPI:
    """``metadata`` is the MLflow model's, for ``/invocations``."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.stop()
        tracer.close()

    app = FastAPI(
        title=f"slmflow: {identity.name}",
        version=__version__,
        lifespan=lifespan,
        openapi_tags=TAGS,
        redoc_url=None,
    )
    door = _Door(engine, identity, metrics, tracer)
    _add_openai(app, door)
    _add_health(app, engine, metrics)
    _add_page(app)
    app.router.routes.extend(scoring_routes(engine, metadata))
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_middleware(_Guard, access=access)
    if access.hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(access.hosts))
    app.openapi_schema = _description(app, openai_paths(identity.names, engine.choices))
    return app


def _add_openai(app: FastAPI, door: "_Door") -> None:
    @app.post(KINDS["chat"])
    async def chat_completions(request: Request) -> Response:
        return await door.answer("chat", request)

    @app.post(KINDS["text"])
    async def completions(request: Request) -> Response:
        return await door.answer("text", request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [door.model()]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        door.check_model(model)
        return door.model()


def _add_health(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get("/ping")
    @app.get("/health")
    async def health() -> Response:
        """200 while the model can answer, as MLflow's own; 503 while it is being loaded."""
        status = 200 if engine.loaded is not None else 503
        return Response("\n", status, media_type="application/json")

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(engine), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=headers)

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> FileResponse:
        if name not in ("chat.js", "chat.css"):
            raise HTTPException(404)
        return FileResponse(PAGE / name, headers=headers)


class _Door:
    """One request of OpenAI's API, from its bytes to its response."""

    def __init__(
        self, engine: Engine, identity: Identity, metrics: Metrics, tracer: Tracer | NoTracer
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._metrics = metrics
        self._tracer = tracer

    async def answer(self, kind: str, request: Request) -> Response:
        served = Served(kind, time.time_ns())
        try:
            served.body = body = _object(await request.body())
            self.check_model(body.get("model"))
            ask = self._engine.ask(kind, body)
            try:
                if await self._engine.accepted(ask):
                    return StreamingResponse(
                        self._events(ask, served), media_type="text/event-stream"
                    )
                return JSONResponse(await self._whole(ask, request, served))
            except BaseException:
                self._engine.close(ask)
                raise
        except Refused as refused:
            self._failed(served, refused)
            raise

    def check_model(self, name: Any) -> None:
        identity = self._identity
        if name is not None and name not in identity.names:
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

    async def _whole(self, ask: Ask, request: Request, served: Served) -> dict[str, Any]:
        """The response, unless the client goes away first: then its place is freed."""
        answered = asyncio.ensure_future(self._engine.done(ask))
        gone = asyncio.ensure_future(_gone(request))
        await asyncio.wait({answered, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not answered.done():
            answered.cancel()
            raise Refused(499, "the client closed the connection", "client_closed")
        done = answered.result()
        self._served(served, done)
        response: dict[str, Any] = done["response"]
        return response

    async def _events(self, ask: Ask, served: Served) -> AsyncIterator[bytes]:
        """Server-sent events, as OpenAI writes them. Closed when the client goes away."""
        try:
            async for chunks in self._engine.chunks(ask):
                yield b"".join(_event(chunk) for chunk in chunks)
            self._served(served, await self._engine.done(ask))
            yield b"data: [DONE]\n\n"
        except Refused as refused:
            self._failed(served, refused)
            yield _event({"error": refused.error})
        except (asyncio.CancelledError, GeneratorExit):
            self._failed(served, Refused(499, "the client closed the connection", "client_closed"))
            raise
        finally:
            self._engine.close(ask)

    def _served(self, served: Served, done: Mapping[str, Any]) -> None:
        served.finish(done)
        self._metrics.count(KINDS[served.kind], 200, done)
        self._tracer.record(served)

    def _failed(self, served: Served, refused: Refused) -> None:
        served.fail(str(refused))
        self._metrics.count(KINDS[served.kind], refused.status, None)
        self._tracer.record(served)


class _Guard:
    """Key and size of a request, before anything reads it. Plain ASGI: streams pass untouched."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        refused = self._key(scope["path"], headers) or self._length(headers)
        if refused is not None:
            await _response(refused)(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _key(self, path: str, headers: Mapping[str, bytes]) -> Refused | None:
        key = self._access.api_key
        free = path in OPEN_PATHS or path.startswith("/page/")
        given = headers.get("authorization", b"")
        if key is None or free or secrets.compare_digest(given, f"Bearer {key}".encode()):
            return None
        return Refused(
            401,
            "this server wants its API key: send the header Authorization: Bearer <key>",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _length(self, headers: Mapping[str, bytes]) -> Refused | None:
        length = headers.get("content-length", b"0")
        return self._too_large() if int(length) > self._access.max_body_bytes else None

    def _too_large(self) -> Refused:
        most = self._access.max_body_bytes
        return Refused(
            413,
            f"a request may have {most} bytes (serve.max_body_bytes); send less",
            code="too_large",
        )

    def _counted(self, receive: Receive) -> Receive:
        """A body that comes in pieces says no length before."""
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._access.max_body_bytes:
                raise self._too_large()
            return message

        return counted


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises ``Refused``."""
    try:
        value = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the request is no JSON object; see /docs for what it may hold")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def _response(refused: Refused) -> JSONResponse:
    return JSONResponse({"error": refused.error}, refused.status, refused.headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _response(error)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = f"{request.method} {request.url.path}: {error.detail}; see /docs"
    return _response(Refused(error.status_code, told, headers=dict(error.headers or {})))


def _description(app: FastAPI, openai: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """FastAPI's description of the routes, with the schemas of what they read and write."""
    described: dict[str, Any] = app.openapi()
    described["paths"] |= openai
    return described
