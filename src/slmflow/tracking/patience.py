"""While the tracking server does not answer: waited for, told, and in the end given up.

MLflow's client sends each request again, POST as well, seven times with pauses of 4, 8, ... 120 s
and without a word. Its pauses together (MLFLOW_HTTP_REQUEST_MAX_RETRIES and ..._BACKOFF_FACTOR)
say here, too, how long is waited, but the server is asked every few seconds, so that the work goes
on when it is back; and the person is told. Once one request was given up, each further one is sent
once until the server answers again: an error must not wait four minutes for each of its last words.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import requests
from mlflow.exceptions import MlflowException
from urllib3.exceptions import MaxRetryError
from urllib3.util import Retry

from slmflow import console
from slmflow.tracking.pauses import EVERY, away, back, mlflows_pauses, pauses

TELLS_AFTER = 2.0  # seconds without an answer
PAUSES = (0.25, 0.5, 1, 2, 4)  # seconds, before something is begun anew by whoever sent it

T = TypeVar("T")


@dataclass
class _Outage:
    since: float | None = None  # time.monotonic() of the first request without an answer
    told: bool = False
    given_up: bool = False


_outage = _Outage()
_here = threading.local()  # sends_once: True within once()


class Patience(Retry):
    """What urllib3 asks after each attempt; MLflow's sessions are made with it (``rest.install``).

    ``patient`` makes one from MLflow's numbers.
    """

    def increment(self, *args: Any, **about: Any) -> "Patience":
        only_once = _sends_once()
        last = self.new(total=0) if only_once or _outage.given_up else self
        if _outage.since is None:
            _outage.since = time.monotonic()
        try:
            following = Retry.increment(last, *args, **about)
        except MaxRetryError:
            waited = bool(self.history) and not only_once  # MLflow sends some once by itself
            _outage.given_up = _outage.given_up or waited
            raise
        _tell(following, about)
        return following

    def sleep(self, response: Any = None) -> None:
        try:
            super().sleep(response)
        except KeyboardInterrupt:
            _outage.given_up = True
            raise

    def is_retry(self, method: str, status_code: int, has_retry_after: bool = False) -> bool:
        again = super().is_retry(method, status_code, has_retry_after)
        if not again:
            _answered()
        return again


def patient(total: int, backoff_factor: float, **numbers: Any) -> Patience:
    """Waits as long as urllib3's ``Retry`` of these numbers would, in smaller steps."""
    count = total
    while pauses(count, backoff_factor, EVERY) < mlflows_pauses(total, backoff_factor):
        count += 1
    numbers |= {key: count for key in ("connect", "read", "redirect", "status") if key in numbers}
    return Patience(total=count, backoff_factor=backoff_factor, backoff_max=EVERY, **numbers)


@contextmanager
def once() -> Iterator[None]:
    """Requests of this thread are sent once: the sender finds out himself whether one that got no
    answer was carried out."""
    before = _sends_once()
    _here.sends_once = True
    try:
        yield
    finally:
        _here.sends_once = before


def give_up() -> None:
    """Where another process has waited in vain already: until an answer comes nothing waits."""
    _outage.given_up = True


def unanswered(error: BaseException | None) -> bool:
    """Whether it came of a request without an answer that counts (503 does not): nobody knows
    whether that was carried out."""
    while error is not None:
        if isinstance(error, requests.RequestException):
            return error.response is None
        if isinstance(error, MlflowException) and _outage.given_up:
            return True  # downloads, which MLflow does in threads, lose their errors' causes
        error = error.__cause__ or error.__context__
    return False


def made_once(make: Callable[[], T], find: Callable[[], T | None]) -> T:
    """``make``, which must not be carried out twice: before it is sent again, ``find`` looks for
    what the first time has left."""

    def attempt() -> T:
        with once():
            return make()

    def look_and_attempt() -> T:
        found = find()
        return attempt() if found is None else found

    return _again(attempt, look_and_attempt)


def repeated(work: Callable[[], T]) -> T:
    """``work``, which may be carried out twice: again where its answer broke off, which urllib3
    leaves to the caller."""
    return work() if _sends_once() else _again(work, work)


def _again(first: Callable[[], T], others: Callable[[], T]) -> T:
    attempt = first
    for pause in PAUSES:
        try:
            return attempt()
        except Exception as error:
            if not unanswered(error) or _outage.given_up:
                raise
        time.sleep(pause)
        attempt = others
    return attempt()


def _sends_once() -> bool:
    return bool(getattr(_here, "sends_once", False))


def _tell(following: Retry, about: dict[str, Any]) -> None:
    waits = (following.total or 0) * EVERY
    silent = time.monotonic() - (_outage.since or 0)
    if _outage.told or silent < TELLS_AFTER or not waits:
        return
    _outage.told = True
    response, pool = about.get("response"), about.get("_pool")
    where = f"{pool.host}:{pool.port}" if pool is not None else "the tracking server"
    what = f"answers {response.status}" if response is not None else "does not answer"
    console.note(away(where, what, waits))


def _answered() -> None:
    if _outage.told and _outage.since is not None:
        console.note(back(time.monotonic() - _outage.since))
    _outage.since, _outage.told, _outage.given_up = None, False, False
