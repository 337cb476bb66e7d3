"""The address, who may use it, and uvicorn on it."""

import ipaddress
import os
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from slmflow.config.schema import Serve
from slmflow.errors import ServeError
from slmflow.serving.guard import Access

API_KEY = "SLMFLOW_API_KEY"  # in the environment: parameters are logged
LOCAL_HOSTS = ("localhost", "127.0.0.1")


def listen(settings: Serve) -> socket.socket:
    """The address, reserved before the model is loaded. Raises ``ServeError``."""
    try:
        family, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        # By its name: asyncio sends small pieces at once only where it sees that this is TCP.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()  # now, or another server could still take it
    except OSError as error:
        raise ServeError(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}; choose "
            "another with -P serve.port=..., 0 for any that is free"
        ) from None
    return bound


def address_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    host = "127.0.0.1" if host == "0.0.0.0" else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def access(settings: Serve, bound: socket.socket) -> Access:
    host = bound.getsockname()[0]
    local = ipaddress.ip_address(host).is_loopback and ":" not in host
    return Access(
        api_key=os.environ.get(API_KEY) or None,
        max_body_bytes=settings.max_body_bytes,
        hosts=(*LOCAL_HOSTS, settings.host) if local else None,
    )


class Server(uvicorn.Server):
    """Ends on Ctrl-C or SIGTERM, when what runs is finished."""

    def __init__(self, app: FastAPI, settings: Serve, listening: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(settings.timeout) + 1,
        )
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()
