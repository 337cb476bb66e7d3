"""Points through a launcher, until each has ended in a state that is true."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from slmflow import console
from slmflow.errors import UserError
from slmflow.sweeps.ledger import Ledger, Point
from slmflow.sweeps.plan import Launch, Plan, Strategy
from slmflow.sweeps.point import Task
from slmflow.sweeps.progress import Look, watching
from slmflow.sweeps.results import ENDED, PointResult, State

LEAVE = 5.0  # seconds that the server may lag: a launcher returns when its processes have ended
ORPHANS = 25.0  # seconds in which points of a driver that was killed end by themselves
POLL = 2.0  # seconds
BAD = frozenset({State.failed, State.killed})
INTERRUPTED = "the sweep was interrupted"


def run_points(plan: Plan, strategy: Strategy, launch: Launch, ledger: Ledger) -> None:
    """All that are not FINISHED. On an interrupt nothing is left running."""
    _wait_for_jobs(ledger)
    _wait_for_orphans(ledger)
    known = ledger.results()
    numbers = {_overrides(one): one.number for one in known}
    follow = _Follower(plan, strategy, ledger)
    with watching(ledger, plan.total, follow) as look, _leaving_nothing(ledger):
        for one in known:  # after the first look, which has heard how they did on their way
            strategy.tell(one)
        while batch := strategy.ask():
            points = []
            for overrides in batch:
                numbers[overrides] = plan.number(overrides, numbers)
                points.append(Point(numbers[overrides], overrides))
            _run_batch(points, plan, launch, ledger, look)
            results = look()
            for point in points:
                strategy.tell(results[point.number])
        for one in _not_ended(ledger):  # of another search space, left by a driver that was killed
            ledger.end(Point(one.number, _overrides(one)), State.killed, "its driver was killed")


class _Follower:
    """Hears how running points do, and stops those that the strategy gives up."""

    def __init__(self, plan: Plan, strategy: Strategy, ledger: Ledger) -> None:
        self._objective = plan.settings.objectives[0]
        self._prunes = plan.settings.prune
        self._strategy = strategy
        self._ledger = ledger
        self._heard: set[tuple[str | None, int]] = set()

    def __call__(self, result: PointResult) -> None:
        if not self._prunes:
            return
        for step, value in self._ledger.so_far(result, self._objective):
            if (result.run_id, step) in self._heard:
                continue
            self._heard.add((result.run_id, step))
            behind = self._strategy.should_stop(result.number, step, value)
            if behind and result.state is State.running:
                why = f"{self._objective} {value:.3g} after {step} rows: below the median so far"
                self._ledger.stop(result, why)


def _run_batch(
    points: Sequence[Point], plan: Plan, launch: Launch, ledger: Ledger, look: Look
) -> None:
    """A launcher that loses its workers is asked again for what it did not begin, as long as it
    gets something done."""
    rest = list(points)
    while rest:
        task = Task(
            plan.entry_point,
            ledger.parent,
            ledger.tracking_uri,
            tuple(rest),
            plan.settings.timeout,
            plan.settings.prune,
            os.getpid(),
        )
        reasons: Mapping[int, str] = {}
        crash = ""
        try:
            reasons = launch(task)
        except Exception as error:  # the launcher's; what points raise is on their runs
            told = str(error) if isinstance(error, UserError) else repr(error)
            crash = f"the launcher failed: {told}"
        results = look()
        _end_silent(rest, results, reasons, crash, ledger)
        not_begun = [point for point in rest if point.number not in results]
        if len(not_begun) == len(rest) or not crash:
            for point in not_begun:
                ledger.end(point, State.failed, reasons.get(point.number) or crash or "not begun")
            return
        rest = not_begun


def _end_silent(
    points: Sequence[Point],
    results: Mapping[int, PointResult],
    reasons: Mapping[int, str],
    crash: str,
    ledger: Ledger,
) -> None:
    """Of the points that began: those whose process or job went away without a word."""
    for point in points:
        result = results.get(point.number)
        why = reasons.get(point.number) or crash or "its process or its job went away"
        if result is not None and (
            result.state not in ENDED or (result.state in BAD and not result.message)
        ):
            ledger.end(point, State.killed, why)


@contextmanager
def _leaving_nothing(ledger: Ledger) -> Iterator[None]:
    """Whatever passes through: points that still run end by themselves, or are ended."""
    try:
        yield
    except BaseException:
        until = time.monotonic() + LEAVE
        while (left := _not_ended(ledger)) and time.monotonic() < until:
            time.sleep(0.5)
        silent = [one for one in ledger.results() if one.state in BAD and not one.message]
        for one in [*left, *silent]:
            ledger.end(Point(one.number, _overrides(one)), State.killed, INTERRUPTED)
        raise


def _not_ended(ledger: Ledger) -> list[PointResult]:
    return [one for one in ledger.results() if one.state not in ENDED]


def hear_one_interrupt() -> None:
    """Ctrl-C, or TERM, once: what it sets off takes seconds, and must not be cut short. From a
    terminal both come, as `mlflow run` hands its own Ctrl-C on."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)


def _interrupt(*_: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _wait_for_jobs(ledger: Ledger) -> None:
    """Of an earlier session whose driver has gone: what a scheduler still has is not run twice."""
    jobs = ledger.jobs()
    finished = {one.number for one in ledger.results() if one.state in ENDED}
    waiting = {number: job for number, job in jobs.items() if number not in finished}
    if not waiting:
        return
    from slmflow.sweeps.scheduler import alive, cancel  # late: most sweeps have no jobs

    if not alive(waiting.values()):
        return
    text = f"wait for {len(waiting)} jobs of an earlier session"
    with console.step(text), _leaving_nothing(ledger):
        try:
            while _alive(waiting.values()):
                time.sleep(POLL)
        except BaseException:
            cancel(waiting.values())
            raise


def _wait_for_orphans(ledger: Ledger) -> None:
    """Processes end with a driver that was killed, but not in the same moment."""
    until = time.monotonic() + ORPHANS
    while _running(ledger) and time.monotonic() < until:
        time.sleep(0.5)


def _running(ledger: Ledger) -> bool:
    return any(one.state is State.running for one in ledger.results())


def _alive(jobs: Iterable[str]) -> bool:
    from slmflow.sweeps.scheduler import SchedulerError, alive

    try:
        return bool(alive(jobs))
    except SchedulerError:  # restarted, or overloaded: what runs goes on
        return True


def _overrides(result: PointResult) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in result.overrides.items())
