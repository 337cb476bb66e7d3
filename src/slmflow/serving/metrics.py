"""What Prometheus reads at /metrics."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from slmflow.serving.engine import Engine

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "slmflow_requests", "Requests by path and status", ["path", "status"], registry=registry
        )
        self._tokens = Counter(
            "slmflow_tokens", "Tokens read and made", ["kind"], registry=registry
        )
        self._waiting = Gauge("slmflow_queue_length", "Requests that wait", registry=registry)
        self._running = Gauge("slmflow_running", "Requests being answered", registry=registry)
        self._restarts = Gauge(
            "slmflow_worker_restarts", "Times that the model's process died", registry=registry
        )
        self._first_token = Histogram(
            "slmflow_time_to_first_token_seconds",
            "From the request's arrival to its first token",
            buckets=SECONDS,
            registry=registry,
        )
        self._seconds = Histogram(
            "slmflow_request_seconds",
            "From the request's arrival to its last token",
            buckets=SECONDS,
            registry=registry,
        )
        self._rate = Histogram(
            "slmflow_tokens_per_second",
            "Tokens made after a request's first, over the time that they took",
            buckets=RATES,
            registry=registry,
        )
        for kind in ("prompt", "completion"):
            self._tokens.labels(kind)

    def count(self, path: str, status: int, done: Mapping[str, Any] | None) -> None:
        """A request that ended; ``done`` is what the session said of it, if it was answered."""
        self._requests.labels(path, str(status)).inc()
        if done is None:
            return
        usage = done["response"]["usage"]
        made, seconds = usage["completion_tokens"], done["seconds"] - done["first_token_seconds"]
        self._tokens.labels("prompt").inc(usage["prompt_tokens"])
        self._tokens.labels("completion").inc(made)
        self._first_token.observe(done["first_token_seconds"])
        self._seconds.observe(done["seconds"])
        if made > 1 and seconds > 0:
            self._rate.observe((made - 1) / seconds)

    def text(self, engine: Engine) -> bytes:
        self._waiting.set(engine.waiting)
        self._running.set(engine.running)
        self._restarts.set(engine.restarts)
        return generate_latest(self._registry)
