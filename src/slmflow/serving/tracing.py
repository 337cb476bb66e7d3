"""Served requests as MLflow traces, off the requests' path.

A thread takes them from a bounded queue. A tracking server that is slow or away fills the queue,
and what does not fit is counted and dropped: no answer waits for a trace.
"""

import json
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from slmflow.redaction import redacted

QUEUE = 1_000
CLOSE_SECONDS = 5.0
QUIET_SECONDS = 60.0
MLFLOWS_LOG = "mlflow.tracing.export.mlflow_v3"  # which says there that a trace did not get through
log = logging.getLogger(__name__)


class Served:
    """One request as it was served. Times in nanoseconds since 1970."""

    def __init__(self, kind: str, path: str, started_ns: int) -> None:
        self.kind = kind
        self.path = path
        self.started_ns = started_ns
        self.seconds: Mapping[str, float] = {}
        self.body: Mapping[str, Any] | None = None
        self.response: Mapping[str, Any] | None = None
        self.error: str | None = None

    def finish(self, done: Mapping[str, Any]) -> None:
        self.response = done["response"]
        names = ("waited_seconds", "first_token_seconds", "seconds")
        self.seconds = {name: done[name] for name in names}

    def fail(self, error: str) -> None:
        self.error = redacted(error)


class NoTracer:
    """Where nobody asked for traces."""

    dropped = 0

    def record(self, served: Served) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Tracer:
    """Records a share of the requests: ``rate`` from 0 to 1."""

    def __init__(self, rate: float, experiment_id: str, metadata: Mapping[str, str]) -> None:
        self._rate = rate
        self._experiment_id = experiment_id
        self._metadata = dict(metadata)
        # In this thread, not in one of MLflow's, whose queue has no bound.
        os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
        logging.getLogger(MLFLOWS_LOG).addFilter(_Seldom())
        self._queue: queue.Queue[tuple[Served, int] | None] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()
        self.dropped = 0

    def record(self, served: Served) -> None:
        if random.random() >= self._rate:
            return
        try:
            self._queue.put_nowait((served, _now_ns()))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Give what is left a few seconds; a tracking server that is away keeps nobody longer."""
        with suppress(queue.Full):
            self._queue.put_nowait(None)
            self._thread.join(CLOSE_SECONDS)
        lost = self.dropped + self._queue.qsize()
        if lost:
            log.warning("%s traces were not recorded: the tracking server was too slow", lost)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._log(*item)
            except Exception as error:  # the answer is long out; nobody waits for this
                self.dropped += 1
                log.warning("a trace was not recorded: %s", str(error).splitlines()[0])

    def _log(self, served: Served, ended_ns: int) -> None:
        import mlflow
        from mlflow.entities import SpanType

        span = mlflow.start_span_no_context(
            name=served.path,
            span_type=SpanType.CHAT_MODEL if served.kind == "chat" else SpanType.LLM,
            inputs=_clean(served.body),
            attributes=dict(served.seconds),
            metadata=self._metadata,
            experiment_id=self._experiment_id,
            start_time_ns=served.started_ns,
        )
        if served.response is not None:
            usage = served.response["usage"]
            span.set_attribute("mlflow.chat.tokenUsage", _token_usage(usage))
            span.set_outputs(served.response)
            span.end(end_time_ns=ended_ns)
        else:
            span.set_outputs({"error": served.error})
            span.end(status="ERROR", end_time_ns=ended_ns)


def _token_usage(usage: Mapping[str, int]) -> dict[str, int]:
    """MLflow's names for it (mlflow.tracing.constant.TokenUsageKey)."""
    return {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
    }


def _clean(body: Any) -> Any:
    """Without halves of surrogate pairs, which JSON can hold and no store can."""
    return json.loads(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))


class _Seldom(logging.Filter):
    """One message a minute: a tracking server that is away would fill the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + QUIET_SECONDS
        record.exc_info = None
        return True


def _now_ns() -> int:
    return time.time_ns()
