"""One point, in the process that a launcher gave it: its run begun, carried out, ended."""

import atexit
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from slmflow.sweeps.ledger import Ledger, Point
from slmflow.sweeps.point_process import PointProcess
from slmflow.sweeps.results import State

_kept: PointProcess | None = None


@dataclass(frozen=True)
class Task:
    """All that a launcher's process must know, wherever it is. ``points``: in the order in which
    they are launched."""

    entry_point: str
    parent: str
    tracking_uri: str
    points: tuple[Point, ...]
    timeout: float | None
    followed: bool  # it may be stopped half-way
    driver: int  # process id, on its own machine

    def run(self, index: int, config: str, overrides: Sequence[str]) -> None:
        """Composed anew. Nothing is done where the point has FINISHED. Its end is on its run;
        raises only where the tracking server does not answer."""
        self._carry_out(index, {"config": config, "overrides": list(overrides)})

    def repeat(self, index: int, recorded: Mapping[str, Any]) -> None:
        """From what a point of an earlier sweep recorded, by ``slmflow.replay.pins.Order``."""
        self._carry_out(index, {"recorded": dict(recorded), "overrides": []})

    def _carry_out(self, index: int, what: Mapping[str, Any]) -> None:
        if os.getppid() == self.driver:  # a worker that would outlive it, as loky's do
            _end_with(self.driver)
        ledger = Ledger(self.parent, self.tracking_uri)
        point = self.points[index]
        run_id = ledger.begin(point)
        if run_id is None:
            return
        order = {
            "entry_point": self.entry_point,
            **what,
            "run_id": run_id,
            "experiment_id": ledger.experiment,
            "followed": self.followed,
        }
        ended = process(self.tracking_uri).run(order, self.timeout)
        if ended.died:
            ledger.end(point, State.killed, ended.words)


def process(tracking_uri: str) -> PointProcess:
    """The one that this process keeps; a new one where there is none that can be used."""
    global _kept
    if _kept is None or not _kept.usable:
        if _kept is None:
            atexit.register(stop_kept)
        _kept = PointProcess(tracking_uri)
    return _kept


@cache
def _end_with(driver: int) -> None:
    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1)
        stop_kept()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def stop_kept() -> None:
    """End the process that is kept, and with it the point that it runs: KILLED."""
    global _kept
    if _kept is not None:
        _kept.stop()
        _kept = None
