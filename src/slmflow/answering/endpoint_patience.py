"""Requests that are tried again where that helps."""

from collections.abc import Callable
from threading import Event
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

from slmflow.answering.endpoint_http import Failed

T = TypeVar("T")
TRIES = 5
FIRST_WAIT = 0.5  # seconds; doubled each time, where the server does not say how long
LONGEST_WAIT = 60.0  # seconds


def patiently(call: Callable[[], T], given_up: Event | None = None, connecting: bool = True) -> T:
    """``call`` until it answers, at most ``TRIES`` times. Raises its last ``Failed``.

    ``connecting``: also when no response came. ``given_up`` ends the waiting.
    """
    given_up = given_up or Event()

    def helps(error: BaseException) -> bool:
        return (
            isinstance(error, Failed) and error.passing and (connecting or error.status is not None)
        )

    retrying = Retrying(
        retry=retry_if_exception(helps),
        wait=_wait,
        stop=stop_after_attempt(TRIES) | stop_when_event_set(given_up),
        sleep=sleep_using_event(given_up),
        reraise=True,
    )
    return retrying(call)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    told = error.wait if isinstance(error, Failed) else None
    growing = FIRST_WAIT * 2.0 ** (state.attempt_number - 1)
    return min(growing if told is None else told, LONGEST_WAIT)
