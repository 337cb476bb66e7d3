"""The sweep in the terminal: a line for each point that ended, and how many are left."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from mlflow.exceptions import MlflowException

from slmflow import console
from slmflow.drawing.units import duration
from slmflow.sweeps.ledger import Ledger
from slmflow.sweeps.results import ENDED, PointResult, State

PERIOD = 1.0  # seconds between two looks at the tracking server

SKEW = 600_000  # milliseconds that clocks of machines which begin points may be apart

Results = dict[int, PointResult]
Look = Callable[[], Results]


@contextmanager
def watching(ledger: Ledger, total: int, follow: Callable[[PointResult], None]) -> Iterator[Look]:
    """Yields a function that looks now and gives every point that has begun, by number.

    Every look shows ``follow`` the points that run or have just ended.
    """
    watch = _Watch(ledger, total, follow)
    stop = threading.Event()
    with console.progress("run the points", total, steady=False) as bar:
        watch.bar = bar
        watch.look(quietly=True)
        looking = threading.Thread(target=_keep_looking, args=(watch, stop), daemon=True)
        looking.start()
        try:
            yield watch.look
        finally:
            stop.set()
            looking.join()
            with suppress(MlflowException):
                watch.look()


def _keep_looking(watch: "_Watch", stop: threading.Event) -> None:
    while not stop.wait(PERIOD):
        with suppress(MlflowException):  # the server is away for a moment
            watch.look()


class _Watch:
    """What is known of the points. A look asks only for those that may have changed."""

    def __init__(self, ledger: Ledger, total: int, follow: Callable[[PointResult], None]) -> None:
        self.bar: console.Bar
        self._ledger = ledger
        self._total = total
        self._follow = follow
        self._started = time.monotonic()
        self._ended_here = 0
        self._known: Results = {}
        self._told: set[str | None] = set()
        self._lock = threading.Lock()

    def look(self, quietly: bool = False) -> Results:
        with self._lock:
            for one in self._ledger.results(self._since()):
                self._known[one.number] = one
                if one.run_id not in self._told:
                    self._follow(one)
                if one.state in ENDED and one.run_id not in self._told:
                    self._told.add(one.run_id)
                    if one.state in (State.finished, State.pruned) or not quietly:
                        self.bar.advance()
                    if not quietly:
                        self._ended_here += 1
                        self._tell(one)
            self.bar.describe(self._words())
            return dict(self._known)

    def _since(self) -> int:
        """When the first of those began that have not ended; where all have, the last one. So a
        look costs the same in a sweep of 20 points and of 200."""
        begun = [one.began or 0 for one in self._known.values()]
        running = [one.began or 0 for one in self._known.values() if one.state not in ENDED]
        return max(0, min(running or [max(begun, default=0)]) - SKEW)

    def _tell(self, one: PointResult) -> None:
        mark = "[green]✓[/]" if one.state is State.finished else f"[red]✗ {one.state}[/]"
        detail = (
            ""
            if one.state is State.finished
            else f": {(one.message or 'told to end').split(chr(10))[0]}"
        )
        console.mark(mark, f"point {one.number}: {one.words}{detail}", one.seconds)

    def _words(self) -> str:
        count = {state: 0 for state in State}
        for one in self._known.values():
            count[one.state] += 1
        bad = count[State.failed] + count[State.killed]
        pruned = f", {count[State.pruned]} pruned" if count[State.pruned] else ""
        self.bar.details = [f"{count[State.finished]} finished, {bad} failed{pruned}"]
        return f"{count[State.running]} running, {bad} failed{self._time_left(count)}"

    def _time_left(self, count: Mapping[State, int]) -> str:
        """By the points of this session, however many ran at once."""
        left = self._total - sum(count[state] for state in ENDED)
        if not self._ended_here or left <= 0:
            return ""
        seconds = (time.monotonic() - self._started) / self._ended_here * left
        return f", about {duration(seconds)} left"
