"""MLflow's own scoring application, its model being the one in the worker."""

import asyncio
from collections.abc import Mapping
from typing import Any

from mlflow.pyfunc import scoring_server
from starlette.routing import BaseRoute

from slmflow.served.packaged import CHAT_TASK, refusal, rows_of
from slmflow.serving.engine import Engine
from slmflow.serving.refused import Refused

SCORING_PATHS = ("/invocations", "/version")
ROWS_AT_ONCE = 64
"""Rows of one call that the worker knows at a time, so that others come between."""


def scoring_routes(engine: Engine, metadata: Any) -> list[BaseRoute]:
    """``/invocations`` and ``/version`` as ``mlflow models serve`` has them.

    Taken out of MLflow's application, whose time limit would cut a stream's connection.
    """
    app = scoring_server.init(_RemoteModel(engine, metadata))
    return [route for route in app.routes if getattr(route, "path", "") in SCORING_PATHS]


class _RemoteModel:
    """What the scoring application needs of a model."""

    def __init__(self, engine: Engine, metadata: Any) -> None:
        self._engine = engine
        self.metadata = metadata

    def predict(self, data: Any, params: Any = None) -> list[Any]:
        """Called in a thread of the application's; rows and errors as ``PackagedModel.predict``."""
        chat = self._engine.task == CHAT_TASK
        rows = rows_of(data, "messages" if chat else "prompt")
        answered = asyncio.run_coroutine_threadsafe(self._all(rows, chat), self._engine.loop)
        results = answered.result()
        if len(results) == 1 and isinstance(results[0], Refused):
            raise refusal(str(results[0]))
        return [{"error": one.error} if isinstance(one, Refused) else one for one in results]

    async def _all(self, rows: list[dict[str, Any]], chat: bool) -> list[Any]:
        room = asyncio.Semaphore(ROWS_AT_ONCE)

        async def one(index: int, row: Mapping[str, Any]) -> Any:
            async with room:
                return await self._one(row, chat, more=index > 0)

        return await asyncio.gather(*(one(index, row) for index, row in enumerate(rows)))

    async def _one(self, row: Mapping[str, Any], chat: bool, more: bool) -> Any:
        body = row if chat else {"prompt": [row.get("prompt")]}
        try:
            ask = self._engine.ask("chat" if chat else "text", body, more=more)
            try:
                if await self._engine.accepted(ask):
                    raise Refused(
                        400, "stream: /invocations answers in one piece; ask /v1/chat/completions"
                    )
                response = (await self._engine.done(ask))["response"]
            finally:
                self._engine.close(ask)
        except Refused as refused:
            return refused
        return response if chat else response["choices"][0]["text"]
