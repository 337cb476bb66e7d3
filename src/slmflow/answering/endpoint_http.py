"""Requests to an OpenAI-compatible server, their failures in words."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx

from slmflow.errors import ConfigError

KEYS = ("OPENAI_API_KEY", "SLMFLOW_API_KEY")
TIMEOUT = httpx.Timeout(600.0, connect=10.0)  # seconds without a byte
BUSY = (408, 429, 500, 502, 503, 504)
LONGEST_MESSAGE = 500  # characters


class Failed(Exception):
    """A request without an answer. ``status`` None: no whole response came.

    ``passing``: the next try may do better; ``wait``: not before so many seconds.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        passing: bool = False,
        wait: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.passing = passing
        self.wait = wait


class Server:
    """One server: its address, the key that it is told, connections that are kept."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._key_name: str | None
        self._key: str | None
        self._key_name, self._key = _key()
        host = httpx.URL(base).host
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=TIMEOUT,
            # A batch is asked at once, and again: as many connections as that takes.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not (host in ("localhost", "::1") or host.startswith("127.")),
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object of the response. Raises ``Failed``."""
        with self._words():
            return self._object(self._client.get(self.base + path))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object of the response. Raises ``Failed``."""
        with self._words():
            return self._object(self._client.post(self.base + path, json=body))

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[tuple[float, dict[str, Any]]]:
        """Server-sent events, each with the ``perf_counter`` of its arrival: those that came in
        one piece share it. Raises ``Failed``."""
        with (
            self._words(),
            self._client.stream("POST", self.base + path, json=body) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise self._failed(response)
            rest = b""
            for piece in response.iter_bytes():
                now = time.perf_counter()
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    data = line.removeprefix(b"data:").strip()
                    if line.startswith(b"data:") and data != b"[DONE]":
                        yield now, self._event(data)

    def _event(self, data: bytes) -> dict[str, Any]:
        event = json.loads(data)
        if not isinstance(event, dict) or "error" in event:
            raise Failed(self._clean(_message(event) or "a stream of no JSON objects"))
        return event

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code != 200:
            raise self._failed(response)
        value = response.json()
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        return value

    def _failed(self, response: httpx.Response) -> Failed:
        status = response.status_code
        try:
            said = _message(response.json())
        except ValueError:
            said = response.text
        said = said or response.headers.get("Location", "")
        message = f"it answers {status} {response.reason_phrase}: {said}".rstrip(": ")
        return Failed(
            self._clean(message) + self._advice(status, said),
            status,
            passing=status in BUSY,
            wait=_retry_after(response.headers.get("Retry-After")),
        )

    def _advice(self, status: int, said: str) -> str:
        if status in (401, 403):
            if self._key_name is None:
                return f"; give its key in the environment, as {' or '.join(KEYS)}"
            return f"; it was sent the key in {self._key_name}"
        if status in (404, 405) and "model" not in said:
            return "; is the path right? It ends where /chat/completions begins, mostly in /v1"
        return ""

    @contextmanager
    def _words(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            words = f"nothing answers at this address ({error}); is the server running there?"
            raise Failed(self._clean(words), passing=True) from None
        except httpx.ReadTimeout:
            raise Failed(f"it was silent for {TIMEOUT.read:.0f} seconds") from None
        except httpx.HTTPError as error:
            words = f"the connection broke ({type(error).__name__}: {error})"
            raise Failed(self._clean(words), passing=True) from None
        except ValueError:
            raise Failed("it answers, but not in OpenAI's JSON; is the path right?") from None

    def _clean(self, message: str) -> str:
        """On one line and without the key, which servers like to repeat."""
        if self._key:
            message = message.replace(self._key, "***")
        return " ".join(message.split())[:LONGEST_MESSAGE]


def _retry_after(value: str | None) -> float | None:
    """Seconds, of a header in either of its forms (RFC 9110, 10.2.3)."""
    try:
        if value is None or value.strip().isdecimal():
            return None if value is None else float(value)
        until = parsedate_to_datetime(value) - datetime.now(UTC)
    except (ValueError, TypeError):  # TypeError: a date without its zone
        return None
    return max(until.total_seconds(), 0.0)


def _key() -> tuple[str, str] | tuple[None, None]:
    """The variable that holds the key, and the key."""
    for name in KEYS:
        key = os.environ.get(name, "").strip()
        if not key:
            continue
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{name} holds characters that no HTTP header may have; set it anew")
        return name, key
    return None, None


def _message(body: Any) -> str:
    """What an error's body says, in the forms that servers have for it."""
    found = body
    for name in ("error", "message", "detail"):
        if isinstance(found, Mapping) and found.get(name):
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found)
