"""What is examined: a model on a hardware, and what is known of its files."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import TypeVar

from slmflow.config.doctor import Kind
from slmflow.config.schema import Hardware, Model
from slmflow.doctor import artifacts, weights
from slmflow.doctor.weights import Weights
from slmflow.served.search import SearchOptions

Result = TypeVar("Result")
PATIENCE = (
    0.6  # of the time of a check, for one answer from elsewhere: it must tell of silence, too
)


@dataclass(frozen=True)
class Subject:
    """The futures are what several checks wait for, and is found out once."""

    model: Model
    hardware: Hardware
    kinds: tuple[Kind, ...]
    length: int  # tokens of prompt and answer
    beams: int  # answers that a search keeps at once
    own: bool  # weights=own
    seconds: float  # for one answer from elsewhere
    checkpoint: "Future[Weights]"
    prebuilt: "Future[Weights | None]"
    artifacts: "Future[str | None]"

    @property
    def onnx(self) -> bool:
        return Kind.custom_onnx in self.kinds

    @property
    def transformers(self) -> bool:
        return Kind.transformers_pipeline in self.kinds


def begin(
    model: Model,
    hardware: Hardware,
    search: SearchOptions | None,
    kinds: tuple[Kind, ...],
    length: int,
    seconds: float,
    own: bool = False,
) -> Subject:
    """Ask for what takes time at once, in threads."""
    patience = seconds * PATIENCE
    return Subject(
        model,
        hardware,
        kinds,
        _bounded(length, search),
        _beams(search),
        own,
        patience,
        later(lambda: weights.checkpoint(model, patience)),
        later(lambda: weights.prebuilt(model, hardware, patience)),
        later(lambda: artifacts.location(patience)),
    )


def at_once(
    model: Model,
    hardware: Hardware,
    search: SearchOptions | None,
    kinds: tuple[Kind, ...],
    length: int,
    own: bool = False,
) -> Subject:
    """From this machine alone: nobody is asked."""
    return Subject(
        model,
        hardware,
        kinds,
        _bounded(length, search),
        _beams(search),
        own,
        0.0,
        _now(lambda: weights.checkpoint(model, None)),
        _now(lambda: weights.prebuilt(model, hardware, None)),
        _now(artifacts.location_here),
    )


def later(work: Callable[[], Result]) -> "Future[Result]":
    """In a thread that nobody has to wait for, not even the end of the process."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _now(work: Callable[[], Result]) -> "Future[Result]":
    """An error is told by the checks that need the result."""
    future: Future[Result] = Future()
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
    return future


def _beams(search: SearchOptions | None) -> int:
    return search.num_beams if search is not None else 1


def _bounded(length: int, search: SearchOptions | None) -> int:
    return min(length, (search and search.max_length) or length)
