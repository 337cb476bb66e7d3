"""MLflow's own scoring application, its model being the one in the worker."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

from fastapi import FastAPI, Request, Response
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from mlflow.pyfunc import scoring_server

from slmflow.served.packaged import CHAT_TASK, rows_of
from slmflow.serving.openai_api import Door, unless_gone
from slmflow.serving.refused import Refused

PATH = "/invocations"
ROWS_AT_ONCE = 16
"""Rows of one call that the worker knows at a time, so that others come between."""

ERROR_CODES = {
    400: codes.INVALID_PARAMETER_VALUE,
    404: codes.RESOURCE_DOES_NOT_EXIST,
    429: codes.REQUEST_LIMIT_EXCEEDED,
    503: codes.TEMPORARILY_UNAVAILABLE,
    504: codes.DEADLINE_EXCEEDED,
}
"""MLflow's words for a status, from which its application makes the status again."""


def add_scoring(app: FastAPI, door: Door, metadata: Any) -> None:
    """``/invocations`` and ``/version`` as ``mlflow models serve`` has them.

    MLflow's functions without its application, whose time limit would be a second one.
    """
    scoring = scoring_server.init(_RemoteModel(door, metadata))
    answer = {getattr(route, "path", ""): route for route in scoring.routes}
    app.get("/version")(answer["/version"].endpoint)

    @app.post(PATH)
    async def invocations(request: Request) -> Response:
        if "content-type" not in request.headers:
            raise Refused(415, "the request has no Content-Type; send application/json")
        await request.body()  # kept by the request, so that only its end is left to wait for
        door.engine.check_room()
        works: list[Future[Any]] = []
        _works.set(works)
        try:
            response: Response = await unless_gone(request, answer[PATH].endpoint(request))
            return response
        finally:
            for work in works:
                work.cancel()


_works: ContextVar[list["Future[Any]"]] = ContextVar("works")
"""What the thread that answers a call waits for, to be ended when its client goes away."""


class _RemoteModel:
    """What the scoring application needs of a model."""

    def __init__(self, door: Door, metadata: Any) -> None:
        self._door = door
        self.metadata = metadata

    def predict(self, data: Any, params: Any = None) -> list[Any]:
        """Called in a thread of the application's; rows and errors as ``PackagedModel.predict``."""
        engine = self._door.engine
        chat = engine.task == CHAT_TASK
        rows = rows_of(data, "messages" if chat else "prompt")
        work = asyncio.run_coroutine_threadsafe(self._all(rows, chat), engine.loop)
        _works.get().append(work)
        results = work.result()
        if len(results) == 1 and isinstance(results[0], Refused):
            code = ERROR_CODES.get(results[0].status, codes.INTERNAL_ERROR)
            raise MlflowException(str(results[0]), error_code=code)
        return [{"error": one.error} if isinstance(one, Refused) else one for one in results]

    async def _all(self, rows: list[dict[str, Any]], chat: bool) -> list[Any]:
        room = asyncio.Semaphore(ROWS_AT_ONCE)

        async def one(row: Mapping[str, Any]) -> Any:
            async with room:
                try:
                    return await self._one(row, chat)
                except Refused as refused:
                    return refused

        return await asyncio.gather(*map(one, rows))

    async def _one(self, row: Mapping[str, Any], chat: bool) -> Any:
        if chat:
            return await self._door.row("chat", PATH, row)
        body = {**row, "prompt": [row.get("prompt")]}
        response = await self._door.row("text", PATH, body)
        return response["choices"][0]["text"]
