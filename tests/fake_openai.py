"""A server for the chat page that says exactly what a test tells it to, byte by byte."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

PAGE = Path(__file__).resolve().parents[1] / "src/slmflow/serving/page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
MODEL = "fake-model"
DONE = b"data: [DONE]\n\n"


class FakeServer:
    """``with FakeServer() as server:`` serves the page at ``server.url``."""

    def __init__(self) -> None:
        self.key: str | None = None  # what callers must know
        self.refusal: Response | None = None  # the answer to everything, if there is one
        self.asked: list[dict[str, Any]] = []  # the bodies of the chat requests
        self.hung_up = Event()  # a client left before its answer was whole
        self._written: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(self._app(), log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = Thread(target=self._run, daemon=True)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> "FakeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def write(self, *pieces: bytes | Exception) -> None:
        """These bytes follow in the answer under way, or begin the next one.

        ``EOFError()`` ends it in good order but too early, any other exception breaks it.
        """
        for piece in pieces:
            self._loop.call_soon_threadsafe(self._written.put_nowait, piece)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve(sockets=[self._socket]))
        self._loop.close()

    async def _stream(self) -> AsyncIterator[bytes]:
        whole = False
        try:
            while not whole:
                piece = await self._written.get()
                if isinstance(piece, EOFError):
                    return
                if isinstance(piece, Exception):
                    raise piece
                whole = piece.endswith(DONE)
                yield piece
        finally:
            if not whole:
                self.hung_up.set()

    def _refusal_of(self, request: Request) -> Response | None:
        wrong = self.key and request.headers.get("Authorization") != f"Bearer {self.key}"
        return refusal(401, "Give a valid API key.") if wrong else self.refusal

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/")
        @app.get("/page/{name}")
        def page(name: str = "index.html") -> FileResponse:
            return FileResponse(PAGE / name, headers={"Content-Security-Policy": POLICY})

        @app.get("/v1/models", response_model=None)
        def models(request: Request) -> Response:
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "tests"}
            listed = JSONResponse({"object": "list", "data": [model]})
            return self._refusal_of(request) or listed

        @app.post("/v1/chat/completions", response_model=None)
        async def chat(request: Request) -> Response:
            if refused := self._refusal_of(request):
                return refused
            self.asked.append(await request.json())
            return StreamingResponse(self._stream(), media_type="text/event-stream")

        return app


def refusal(status: int, message: str, **headers: str) -> JSONResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": {"message": message}}, status, named)


def event(data: Any) -> bytes:
    """One event of a stream, its text as UTF-8 and not escaped."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def piece(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return event({"object": "chat.completion.chunk", "choices": [choice], "usage": None})


def end(reason: str = "stop", completion_tokens: int = 3) -> bytes:
    """How an answer ends: the reason, the usage in a chunk of its own, the last event."""
    choice = {"index": 0, "delta": {}, "finish_reason": reason}
    usage = {"prompt_tokens": 12, "completion_tokens": completion_tokens}
    return event({"choices": [choice]}) + event({"choices": [], "usage": usage}) + DONE
