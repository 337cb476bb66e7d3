"""Jobs that were submitted by submitit, until each has a result or is known to have none."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from submitit import Job

from slmflow.errors import UserError
from slmflow.sweeps.scheduler import (
    JobLost,
    JobState,
    SchedulerError,
    cancel,
    job_states,
    why_lost,
)

POLL = 0.5  # seconds between looks for results
ASK = (2.0, 30.0)  # seconds between questions to the scheduler, at first and at last
LATE = 15.0  # seconds that a shared folder may take to show a result
SURE = 1.0  # seconds after which a job that was killed is not about to run again


class TimeIsUp(UserError):
    """What a job raises in itself, before the scheduler kills it."""


class Jobs:
    """By the place of each one's point."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[str, Job[Any]]] = {}
        self._lost_since: dict[int, float] = {}
        self._started = self._asked = time.monotonic()

    def __len__(self) -> int:
        return len(self._running)

    def add(self, jobs: Mapping[int, tuple[str, Job[Any]]]) -> None:
        """With their names, as ``scheduler`` knows them."""
        self._running.update(jobs)

    def ended(self) -> Iterator[tuple[int, Any]]:
        """After a moment: those that have ended since, with their results. That of a job that gave
        none is a ``JobLost``."""
        time.sleep(POLL)
        for place, (name, job) in list(self._running.items()):
            if _has_result(job):
                del self._running[place]
                yield place, _result(name, job)
        for place, state in self._without_result():
            name, job = self._running.pop(place)
            if state.hopeless:
                cancel([name])
            yield place, why_lost(name, state, str(job.paths.stderr))

    def cancel(self) -> None:
        """Returns when all have ended."""
        cancel(name for name, _ in self._running.values())

    def _without_result(self) -> list[tuple[int, JobState]]:
        """Those that the scheduler calls ended, or not to be started, for long enough."""
        now = time.monotonic()
        if not self._running or now - self._asked < self._interval(now):
            return []
        self._asked = now
        names = {place: name for place, (name, _) in self._running.items()}
        try:
            states = job_states(names.values())
        except SchedulerError:  # restarted, or overloaded: what runs goes on
            return []
        for place, name in names.items():
            if states[name].alive and not states[name].hopeless:  # again, after its node died
                self._lost_since.pop(place, None)
            else:
                self._lost_since.setdefault(place, now)
        return [
            (place, states[names[place]])
            for place, since in self._lost_since.items()
            if place in names and now - since >= _patience(states[names[place]])
        ]

    def _interval(self, now: float) -> float:
        """A scheduler serves many: long sweeps ask seldom."""
        first, last = ASK
        return min(last, max(first, (now - self._started) / 10))


def _patience(state: JobState) -> float:
    """Who ended by itself has written a result, which may not be seen here yet."""
    return LATE if state.word in ("", "COMPLETED", "FAILED") else SURE


@contextmanager
def outside_any_job() -> Iterator[None]:
    """Slurm gives a job's own settings to what is submitted from within it, as one driven by a
    job would be: then its jobs would ask for what this one has."""
    kept = dict(os.environ)
    if "SLURM_JOB_ID" in kept:
        for name in kept:
            if name.startswith(("SLURM_", "SLURMD_", "SUBMITIT_")) and name != "SLURM_CONF":
                del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def undisturbed() -> Iterator[None]:
    """An interrupt comes after it. What is started within it hears of interrupts as always."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    usual = {n: signal.signal(n, lambda number, _: came.append(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def refusal(error: Exception) -> str:
    """The last words of sbatch, without submitit's trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("sbatch:")]
    return " ".join(line.removeprefix("sbatch: error: ") for line in said) or "\n".join(lines)


def _has_result(job: Job[Any]) -> bool:
    folder = job.paths.folder
    with suppress(OSError):  # as submitit does it: a change makes NFS look again
        folder.chmod(folder.stat().st_mode)
    return bool(job.paths.result_pickle.exists())


def _result(name: str, job: Job[Any]) -> Any:
    try:
        return job.results()[0]
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip(" -")]
        trace = [line for line in lines if not line.startswith(("You can check", "  - "))]
        last = trace[-1] if trace else type(error).__name__
        return JobLost(f"{name} failed outside of its point: {last}; its log: {job.paths.stderr}")
