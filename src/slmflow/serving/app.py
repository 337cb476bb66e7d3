"""The HTTP application: its routes, its errors, its description of itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from slmflow import __version__
from slmflow.serving.describe import TAGS, described_paths
from slmflow.serving.engine import Engine
from slmflow.serving.guard import Access, Guard
from slmflow.serving.invocations import add_scoring
from slmflow.serving.metrics import CONTENT_TYPE, Metrics
from slmflow.serving.openai_api import Door, Identity, add_openai
from slmflow.serving.refused import Refused, response_of
from slmflow.serving.tracing import NoTracer, Tracer

PAGE = Path(__file__).with_name("page")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


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
    door = Door(engine, identity, metrics, tracer)
    add_openai(app, door)
    _add_health(app, engine, metrics)
    _add_page(app)
    add_scoring(app, door, metadata)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Guard, access=access)
    if access.hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(access.hosts))
    app.openapi_schema = _description(app, identity, engine)
    return app


def _add_health(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get("/ping")
    @app.get("/health")
    async def health() -> Response:
        """200 while the model can answer, as MLflow's own; 503 while it is being loaded."""
        return PlainTextResponse("\n", 200 if engine.loaded is not None else 503)

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


async def _failed(_: Request, error: Exception) -> Response:
    """A bug of ours; uvicorn logs its trace."""
    return response_of(Refused(500, f"the server failed: {type(error).__name__}", "server_error"))


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return response_of(error)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = f"{request.method} {request.url.path}: {error.detail}; see /openapi.json"
    return response_of(Refused(error.status_code, told, headers=dict(error.headers or {})))


def _description(app: FastAPI, identity: Identity, engine: Engine) -> dict[str, Any]:
    described: dict[str, Any] = app.openapi()
    described["paths"] = described_paths(identity.names, engine.choices)
    described["components"] = {}
    return described
