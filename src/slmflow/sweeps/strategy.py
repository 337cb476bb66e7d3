"""Which points run next: every combination, or what Optuna makes of those that ended.

Optuna is used in its current form, through ask and tell, and not through hydra-optuna-sweeper:
that plug-in pins Optuna 2.10.1 of 2022, whose database storage fails with SQLAlchemy 2.1, and its
study would be a second truth beside the tracking server. Here the points' own runs are the truth:
the study lives in memory and is made anew from their results whenever points are chosen, so a
sweep resumes wherever its runs can be read.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice, product
from typing import TYPE_CHECKING

from slmflow.config.sweep import Direction, Sweep
from slmflow.sweeps.judge import measured
from slmflow.sweeps.results import PointResult, State
from slmflow.sweeps.space import Space
from slmflow.sweeps.study import (
    build_study,
    distributions,
    load_optuna,
    objective_values,
    parameters,
)

if TYPE_CHECKING:
    from optuna import Study

SETTLED = frozenset({State.finished, State.pruned})  # a resume does not run them again
REPEATS = 50  # proposals of known points before the next unknown one is taken
STARTUP = 3  # finished points that were followed before another one is pruned

Point = tuple[str, ...]  # "key=value", one of each key that varies


class Grid:
    """Every point once, but for those that an earlier session settled."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._left = dict.fromkeys(points)

    def ask(self) -> list[Point]:
        """All that is left; empty from the second time on."""
        points = list(self._left)
        self._left = {}
        return points

    def tell(self, result: PointResult) -> None:
        if result.state in SETTLED:
            texts = frozenset(f"{key}={value}" for key, value in result.overrides.items())
            self._left = {point: None for point in self._left if frozenset(point) != texts}

    def should_stop(self, number: int, step: int, value: float) -> bool:
        """Never: a grid is run as a whole."""
        return False


class Tpe:
    """Optuna's tree-structured Parzen estimator (https://papers.nips.cc/paper/4443).

    The same seed and the same results choose the same points, also in another session. What an
    earlier one left unsettled is asked for again, before anything new.
    """

    def __init__(self, space: Mapping[str, Space], settings: Sweep) -> None:
        self._space = space
        self._settings = settings
        self._told: dict[int, PointResult] = {}
        self._again: list[Point] = []  # of an earlier session
        self._running: dict[Point, None] = {}
        self._asked = False
        self._followed: dict[int, dict[int, float]] = {}  # number, step, value

    def tell(self, result: PointResult) -> None:
        """A point that ended; before the first ``ask``, one of an earlier session, whatever its
        state."""
        point = self._point(result.overrides)
        known = parameters(self._space, result.overrides) is not None
        if not self._asked and result.state not in SETTLED and known:
            self._again.append(point)
            return
        self._told[result.number] = result
        self._running.pop(point, None)
        followed = self._followed.pop(result.number, None)
        if followed and result.state is State.finished:
            create_trial = load_optuna().trial.create_trial
            last = followed[max(followed)]
            self._finished.add_trial(create_trial(value=last, intermediate_values=followed))

    def ask(self) -> list[Point]:
        """``batch`` points or fewer; empty: all trials were asked for, or every combination."""
        self._asked = True
        if self._again:
            points = self._again[: self._settings.batch]
            del self._again[: len(points)]
        else:
            points = self._new_points()
        self._running |= dict.fromkeys(points)
        return points

    def should_stop(self, number: int, step: int, value: float) -> bool:
        """Whether a running point has fallen behind: its objective so far is worse than the
        median of the finished points at the same step.

        Only the latest value counts. A trial of Optuna would keep its best one, and a mean over
        the first few rows is high by luck.
        """
        if not self._settings.prune or math.isnan(value):
            return False
        self._followed.setdefault(number, {})[step] = value
        optuna = load_optuna()
        running = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, intermediate_values={step: value}
        )
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_min_trials=STARTUP)
        return bool(pruner.prune(self._finished, running))

    @cached_property
    def _finished(self) -> "Study":
        """Of the points that were followed to their end, in this session."""
        direction = next(iter(self._settings.directions.values()))
        study: Study = load_optuna().create_study(direction=direction.value)
        return study

    def _new_points(self) -> list[Point]:
        so_far = len(self._told) + len(self._running)
        left = self._settings.trials - so_far
        known = {self._point(result.overrides) for result in self._told.values()}
        known |= set(self._running)
        # A session that died within a batch may never have begun some of its points: the batch is
        # chosen once more, from what was known before it.
        begun = so_far % self._settings.batch
        for start in dict.fromkeys((so_far - begun, so_far)) if left > 0 else ():
            fresh = [point for point in self._batch(start) if point not in known]
            if fresh:
                return fresh[:left]
        return []

    def _batch(self, start: int) -> Iterator[Point]:
        """What is chosen when the first ``start`` points are known."""
        told = [self._told[number] for number in sorted(self._told)][:start]
        running = list(self._running)[: start - len(told)]
        objectives = self._objectives(told)
        taken: dict[Point, list[float] | None] = dict.fromkeys(running)
        for result in told:
            finished = result.state is State.finished
            values = objective_values(result, objectives) if finished else None
            taken[self._point(result.overrides)] = values
        overrides = [dict(_split(text) for text in point) for point in running]
        seed = (self._settings.seed, start)
        study = build_study(self._space, objectives, told, overrides, seed)
        for _ in range(self._settings.batch):
            point = self._next(study, taken)
            if point is None:
                return
            taken[point] = None
            yield point

    def _objectives(self, told: Sequence[PointResult]) -> Mapping[str, Direction]:
        """Those that a finished point measured; before there is one, the first stands in."""
        objectives = self._settings.directions
        return measured(objectives, told) or dict(islice(objectives.items(), 1))

    def _next(self, study: "Study", taken: Mapping[Point, list[float] | None]) -> Point | None:
        """A known point is not run again: what it measured is this trial's result too."""
        failed = load_optuna().trial.TrialState.FAIL
        axes = distributions(self._space)
        for _ in range(REPEATS):
            trial = study.ask(axes)
            point = self._point(
                {key: one.text(trial.params[key]) for key, one in self._space.items()}
            )
            if point not in taken:
                return point
            values = taken[point]
            study.tell(trial, values, state=None if values else failed)
        return self._untried(taken)

    def _untried(self, taken: Mapping[Point, list[float] | None]) -> Point | None:
        axes = []
        for key, one in self._space.items():
            texts = one.texts()
            if texts is None:
                return None
            # More values of one key than there are known points need not be looked at.
            axes.append([f"{key}={text}" for text in islice(texts, len(taken) + 1)])
        return next((point for point in product(*axes) if point not in taken), None)

    def _point(self, overrides: Mapping[str, str]) -> Point:
        return tuple(f"{key}={overrides.get(key, '')}" for key in self._space)


def _split(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value
