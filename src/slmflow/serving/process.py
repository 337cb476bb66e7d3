"""One worker process: started, spoken to, listened to, ended."""

import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
LINE_BYTES = 64 * 2**20  # of one message
STOP_SECONDS = 5.0
LAST_LINES = 15


@dataclass(frozen=True)
class Order:
    """What the worker loads, and how."""

    uri: str
    model_config: Mapping[str, Any]
    limits: Mapping[str, Any]
    environment: Mapping[str, str]

    def line(self) -> bytes:
        told = {"uri": self.uri, "model_config": dict(self.model_config) or None}
        return line_of({**told, "limits": dict(self.limits)})


class Process:
    """Messages in, messages out, a line of JSON each; see ``worker.py``."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Any) -> None:
        self._process = process
        self._errors = errors

    @classmethod
    async def start(cls, order: Order) -> "Process":
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        # -P: the folder of the script stays off sys.path; the working folder never was on it.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(WORKER)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=dict(order.environment),
            limit=LINE_BYTES,
        )
        started = cls(process, errors)
        started._write(order.line())
        return started

    def send(self, line: bytes) -> None:
        self._write(line)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What it says, until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            yield json.loads(line)
        await self._process.wait()

    async def stop(self) -> None:
        """Let it end, for a few seconds; then make it."""
        if self._process.returncode is not None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            self._process.kill()

    def end(self) -> tuple[str, str]:
        """How it ended, and the last lines that it printed."""
        self._errors.seek(0)
        text: str = self._errors.read().decode("utf-8", "replace")
        self._errors.close()
        killed = self._process.returncode == -signal.SIGKILL
        how = "was killed" if killed else f"ended with exit code {self._process.returncode}"
        return how, "\n".join(text.strip().splitlines()[-LAST_LINES:])

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(line)


def line_of(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
