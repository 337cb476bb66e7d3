"""What a sweep found: the data that the table, the report, MLflow and the terminal show."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from slmflow.config.sweep import Direction


class State(StrEnum):
    waiting = "waiting"  # nothing has begun
    running = "running"
    finished = "finished"
    failed = "failed"  # with a message
    killed = "killed"  # stopped from outside: a signal, the scheduler, want of memory
    pruned = "pruned"  # stopped half-way, because it fell behind


ENDED = frozenset({State.finished, State.failed, State.killed, State.pruned})


@dataclass(frozen=True)
class PointResult:
    """One point, as its run on the tracking server tells it."""

    number: int  # from 0, in the order of the sweep
    overrides: Mapping[str, str]  # what varies, key to value, as typed
    run_id: str | None  # None: it has not begun
    state: State
    figures: Mapping[str, float]  # by metric: correct, decode_tokens_per_second, size_bytes, ...
    seconds: float | None  # None: it has not ended
    message: str | None = None  # why it failed, was killed or was pruned; first line first
    models: tuple[str, ...] = ()  # URIs of the versions that it registered: models:/phi3-demo/3
    attempts: int = 1  # how often it was begun
    began: int | None = None  # milliseconds since 1970, by the clock of who began it
    reported: frozenset[str] = frozenset()  # metrics of which it told how they are so far

    @property
    def words(self) -> str:
        """``search.temperature=0.4 hardware.precision=int8``"""
        return " ".join(f"{key}={value}" for key, value in self.overrides.items())


@dataclass(frozen=True)
class SweepResult:
    name: str  # "custom_onnx phi3-demo"
    run_id: str  # of the parent
    entry_point: str
    launcher: str  # basic, joblib, submitit_local, submitit_slurm
    keys: tuple[str, ...]  # what varies, in order
    objectives: Mapping[str, Direction]  # those that a point measured; the first one chooses
    unmeasured: tuple[str, ...]  # objectives that no finished point measured
    points: tuple[PointResult, ...]
    best: int | None  # number of the point; None: none finished, or nothing was measured
    ties: tuple[int, ...]  # points that are as good as the best in every objective
    front: tuple[int, ...]  # numbers of the points that no other beats in all objectives
    seconds: float

    def point(self, number: int) -> PointResult:
        """Numbers may have gaps: a run that was deleted leaves one."""
        return next(one for one in self.points if one.number == number)

    def count(self, state: State) -> int:
        return sum(point.state is state for point in self.points)

    def as_json(self) -> dict[str, Any]:
        told = asdict(self)
        for point in told["points"]:
            del point["reported"]  # of interest while it runs
        return told
