"""Ask a packaged model in a fresh process; the parent's side of ``worker.py``."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow

from slmflow.errors import UserError

WORKER = Path(__file__).with_name("worker.py")
LAST_LINES = 15


class AskError(UserError):
    """The model did not load or died while it answered."""


@dataclass(frozen=True)
class Reply:
    """One answer. Times in seconds; ``None`` where the model does not tell."""

    text: str
    seconds: float
    first_token_seconds: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    finish_reason: str | None = None


@dataclass
class Session:
    """What one process answered and took."""

    replies: list[Reply] = field(default_factory=list)
    load_seconds: float = 0.0  # without the import of MLflow
    peak_memory_bytes: int = 0


def ask(
    uri: str,
    rows: Sequence[Mapping[str, Any]],
    model_config: Mapping[str, Any] | None = None,
    answered: Callable[[], None] = lambda: None,
) -> Session:
    """Every row's reply, in order; ``answered`` is called after each.

    The process sees the tracking server of this one, but not this repository: the model loads
    with the code that it carries. Raises ``AskError`` with the model's own message.
    """
    request = {"uri": uri, "model_config": dict(model_config or {}) or None, "rows": list(rows)}
    session = Session()
    with tempfile.TemporaryFile("w+") as errors, _worker(request, errors) as process:
        for event in _events(process):
            kind = event.pop("event")
            if kind == "loaded":
                session.load_seconds = event["load_seconds"]
            elif kind == "answer":
                session.replies.append(Reply(**event))
                answered()
            elif kind == "done":
                session.peak_memory_bytes = event["peak_memory_bytes"]
            else:
                raise AskError(f"{uri}: {event['error']}")
        if process.wait() != 0 or len(session.replies) != len(rows):
            raise AskError(_death(uri, process.returncode, len(session.replies), errors))
    return session


def _events(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


@contextmanager
def _worker(request: Mapping[str, Any], errors: Any) -> Iterator["subprocess.Popen[str]"]:
    # -P: the folder of the script stays off sys.path; the working folder never was on it.
    process = subprocess.Popen(
        [sys.executable, "-P", str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=model_environment(),
    )
    try:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request))
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once; its exit code and last lines tell why
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


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


def _death(uri: str, code: int | None, replies: int, errors: Any) -> str:
    errors.seek(0)
    lines = errors.read().strip().splitlines()[-LAST_LINES:]
    if code == -signal.SIGKILL:
        reason = "was killed, most likely for want of memory"
    else:
        reason = f"ended with exit code {code}"
    return "\n".join([f"{uri}: its process {reason} after {replies} answers", *lines])
