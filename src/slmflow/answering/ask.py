"""A packaged model in a process of its own; the parent's side of ``worker.py``."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any

import mlflow

from slmflow.answering.reply import Measurement, Reply, Setting
from slmflow.errors import UserError

WORKER = Path(__file__).with_name("worker.py")
LAST_LINES = 15

Row = Mapping[str, Any]


class AskError(UserError):
    """The model did not load, or cannot do what it is asked."""


class Died(AskError):
    """The model's process ended before it answered."""


class ModelProcess:
    """A context: loading begins as it is entered, and the process is gone when it is left.

    The process sees the tracking server of this one, but not this repository: the model loads
    with the code that it carries. Every method raises ``AskError`` with the model's own message,
    and ``Died`` where its process ended.
    """

    def __init__(self, uri: str, model_config: Mapping[str, Any] | None = None) -> None:
        self._uri = uri
        self._model_config = dict(model_config or {}) or None
        self._loaded: dict[str, Any] | None = None

    def __enter__(self) -> "ModelProcess":
        self._errors = tempfile.TemporaryFile("w+")
        # -P: the folder of the script stays off sys.path; the working folder never was on it.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=model_environment(),
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._say({"uri": self._uri, "model_config": self._model_config})
        except BaseException:
            self._end()
            raise
        return self

    @property
    def load_seconds(self) -> float:
        """Without the import of MLflow."""
        return float(self._once_loaded()["load_seconds"])

    @property
    def packaged(self) -> bool:
        """By this project: it can be measured in batches, and looked into."""
        return bool(self._once_loaded()["packaged"])

    def _once_loaded(self) -> dict[str, Any]:
        if self._loaded is None:
            try:
                self._loaded = self._event()
            except Died as death:  # another process would fare no better
                raise AskError(f"{death}\n(while it was loaded)") from None
        return self._loaded

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def answers(self, rows: Sequence[Row]) -> list[Reply]:
        """Every row's reply, in order."""
        self.begin(rows)
        return [reply for _, reply in sorted(self.finish(), key=itemgetter(0))]

    def begin(self, rows: Sequence[Row]) -> None:
        """Have these rows answered after what was begun before, while the caller does more."""
        self._once_loaded()
        self._say({"answer": list(rows)})

    def finish(self) -> Iterator[tuple[int, Reply]]:
        """The replies to the rows that were begun first, with their places, as they come."""
        for event in self._events():
            yield event.pop("index"), Reply(**event)

    def measure(self, texts: Sequence[str], setting: Setting) -> Measurement | str:
        """One batch, after a shorter one to warm up; or why it cannot be measured."""
        (event,) = self._do({"measure": list(texts), "setting": asdict(setting)})
        if "reason" in event:
            return str(event["reason"])
        event["step_seconds"] = tuple(event["step_seconds"])
        return Measurement(setting, **event)

    def likelihood(self, pairs: Sequence[tuple[Row, str]]) -> Iterator[tuple[float, int]]:
        """Of every row's reference answer: the sum of its log-probabilities (nats), its tokens."""
        for event in self._do({"likelihood": list(pairs)}):
            yield event["nats"], event["tokens"]

    def observe(
        self, rows: Sequence[Row], new_tokens: int, save: Path | None, least: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Every row's prompt and greedy answer, in text and token ids; the log-probabilities of
        its tokens in the folder ``save``, a file a row. ``least``: tokens before which no answer
        ends."""
        where = None if save is None else str(save)
        length = {"new_tokens": new_tokens, "save": where, "least": least}
        yield from self._do({"observe": list(rows), **length})

    def force(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], against: Path
    ) -> Iterator[dict[str, Any]]:
        """Prompt and answer of another model, read by this one: how far the two are apart."""
        yield from self._do({"force": [list(pair) for pair in pairs], "against": str(against)})

    def memory(self) -> tuple[int, int | None]:
        """Peak resident memory so far and memory on the device, in bytes."""
        (event,) = self._do({"memory": True})
        return event["peak"], event["device"]

    def _do(self, order: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        self._once_loaded()
        self._say(order)
        return self._events()

    def _events(self) -> Iterator[dict[str, Any]]:
        """Of one order."""
        while (event := self._event()).pop("event") != "done":
            yield event

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Died(self._death()) from None

    def _read(self) -> None:
        """Else the model's process would wait to be read while it is written to, for ever."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _event(self) -> dict[str, Any]:
        line = self._lines.get()
        if not line.endswith("\n"):
            raise Died(self._death())
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "failed":
            raise AskError(f"{self._uri}: {event['error']}")
        return event

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):  # what it never read
                pipe.close()  # type: ignore[union-attr]

    def _death(self) -> str:
        self._lines.put("")  # whoever asks again is told the same
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()[-LAST_LINES:]
        if code == -signal.SIGKILL:
            reason = "was killed, most likely for want of memory"
        else:
            reason = f"ended with exit code {code}"
        return "\n".join([f"{self._uri}: its process {reason}", *lines])


def model_environment() -> dict[str, str]:
    """Of a process that loads a model: it sees the tracking server, neither run nor repository."""
    environment = {
        name: value
        for name, value in os.environ.items()
        # A model that is asked questions is no run.
        if name not in ("PYTHONPATH", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
    }
    environment["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
    environment["MLFLOW_REGISTRY_URI"] = mlflow.get_registry_uri()
    return environment
