"""Key and size of a request, before anything reads it."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slmflow.serving.refused import Refused, response_of

OPEN_PATHS = ("/", "/page/", "/health", "/ping", "/version", "/openapi.json")
"""Without a key: nothing there tells of a request or costs a token."""


@dataclass(frozen=True)
class Access:
    """``hosts``: values of the Host header that are answered, against pages of other origins
    that reach a loopback address by a name of their own; None: any."""

    api_key: str | None
    max_body_bytes: int
    hosts: tuple[str, ...] | None


class Guard:
    """Plain ASGI: streams pass untouched."""

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
            await response_of(refused)(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _key(self, path: str, headers: Mapping[str, bytes]) -> Refused | None:
        key = self._access.api_key
        free = path in OPEN_PATHS or path.startswith("/page/")
        scheme, _, given = headers.get("authorization", b"").partition(b" ")
        right = key is not None and secrets.compare_digest(given, key.encode())
        if key is None or free or (scheme.lower() == b"bearer" and right):
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
