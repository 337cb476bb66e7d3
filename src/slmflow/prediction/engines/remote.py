"""What the engines have in common that answer parts on other nodes."""

import importlib.util
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from slmflow.errors import ConfigError, UserError
from slmflow.prediction.errors import PredictionError
from slmflow.prediction.model import ModelSpec, RestartingModel
from slmflow.prediction.part import PartDone, PartJob, answer_part
from slmflow.prediction.places import find

ATTEMPTS = 4
"""How often a part is begun before the job gives up: its node may have died under it."""
PATIENCE = 30.0
"""Seconds without any worker, after which the person is told; a busy cluster may need longer."""

Outcome = PartDone | UserError


def check_installed(engine: str, module: str, package: str) -> None:
    """Raise ``ConfigError`` where the engine's package is missing."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"engine={engine} needs {package}, which is not installed; "
            f"pip install -r requirements-{engine}.txt"
        )


def on_cores(spec: ModelSpec, cores: int) -> ModelSpec:
    """The model takes the cores that its worker has; on auto it would take the whole node's.

    User and password of a tracking server are not sent along: nodes have their own.
    """
    config = dict(spec.model_config)
    if config.get("threads") == "auto":
        config["threads"] = cores
    return replace(
        spec,
        model_config=config,
        tracking_uri=_without_user(spec.tracking_uri),
        registry_uri=_without_user(spec.registry_uri),
    )


def _without_user(uri: str | None) -> str | None:
    return None if uri is None else re.sub(r"//[^/@]+@", "//", uri)


def outcome(job: PartJob, model: Callable[[], RestartingModel]) -> Outcome:
    """The part answered; or what a person must act on, which no other node would do better.

    Any other error (a full disk, say) is raised: the part is worth another attempt.
    """
    try:
        return answer_part(job, model())
    except FileNotFoundError:
        system, path = find(job.input)
        if system.exists(path):
            raise
        return PredictionError(
            f"{job.input} cannot be seen from {socket.gethostname()}; give an output that all "
            "nodes reach: a folder that they share, or a URL (s3://, gs://, abfs://)"
        )
    except UserError as error:
        return error


def result(outcome: Outcome) -> PartDone:
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Spark and Ray put their own signal handlers in place of those that end the run truthfully."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
