"""A packaged model in a process of its own; the parent's side of ``worker.py``."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
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
    """A context: the model is loaded as it is entered, and gone when it is left.

    The process sees the tracking server of this one, but not this repository: the model loads
    with the code that it carries. Every method raises ``AskError`` with the model's own message,
    and ``Died`` where its process ended.
    """

    def __init__(self, uri: str, model_config: Mapping[str, Any] | None = None) -> None:
        self._uri = uri
        self._model_config = dict(model_config or {}) or None
        self.load_seconds = 0.0  # without the import of MLflow
        self.packaged = False  # by this project: it can be measured in batches, and looked into

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
        try:
            self._say({"uri": self._uri, "model_config": self._model_config})
            loaded = self._event()
        except BaseException:
            self._end()
            raise
        self.load_seconds, self.packaged = loaded["load_seconds"], loaded["packaged"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def answers(self, rows: Sequence[Row]) -> list[Reply]:
        """Every row's reply, in order."""
        return [Reply(**event) for event in self._do({"answer": list(rows)})]

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
        self, rows: Sequence[Row], new_tokens: int, save: Path | None
    ) -> Iterator[dict[str, Any]]:
        """Every row's prompt and greedy answer, in text and token ids; the log-probabilities of
        its tokens in the folder ``save``, a file a row."""
        where = None if save is None else str(save)
        yield from self._do({"observe": list(rows), "new_tokens": new_tokens, "save": where})

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
        self._say(order)
        while (event := self._event()).pop("event") != "done":
            yield event

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Died(self._death()) from None

    def _event(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
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
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):  # what it never read
                pipe.close()  # type: ignore[union-attr]

    def _death(self) -> str:
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
