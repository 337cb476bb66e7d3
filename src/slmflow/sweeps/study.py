"""Optuna's study of a sweep, in memory, made from what its points' runs tell."""

import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from slmflow.config.sweep import Direction
from slmflow.sweeps.judge import figure
from slmflow.sweeps.results import PointResult, State
from slmflow.sweeps.space import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Objectives = Mapping[str, Direction]
Overrides = Mapping[str, str]


def load_optuna() -> ModuleType:
    """Late, as it takes half a second. Its own log would run into the progress bar."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    loaded: ModuleType = optuna
    return loaded


def build_study(
    space: Mapping[str, Space],
    objectives: Objectives,
    told: Iterable[PointResult],
    running: Iterable[Overrides],
    seed: tuple[int, int],
) -> "Study":
    """``seed``: of the sweep, and the number of points so far. A sampler that went on where it
    stood would choose otherwise after a resume."""
    optuna = load_optuna()
    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    study: Study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=mixed),
        directions=[direction.value for direction in objectives.values()],
    )
    for result in told:
        study.add_trial(_trial(space, objectives, result))
    for overrides in running:
        study.add_trial(_create(space, overrides, "RUNNING"))
    return study


def distributions(space: Mapping[str, Space]) -> "dict[str, BaseDistribution]":
    return {key: one.distribution() for key, one in space.items()}


def parameters(space: Mapping[str, Space], overrides: Overrides) -> dict[str, Any] | None:
    """None: no point of this space."""
    try:
        return {key: one.read(overrides[key]) for key, one in space.items()}
    except (KeyError, ValueError):
        return None


def objective_values(result: PointResult, objectives: Objectives) -> list[float] | None:
    """None: one of them is missing, or infinite, of which no estimate can be made."""
    values = [figure(result, name) for name in objectives]
    found = [value for value in values if value is not None and math.isfinite(value)]
    return found if len(found) == len(values) else None


def _trial(
    space: Mapping[str, Space], objectives: Objectives, result: PointResult
) -> "FrozenTrial":
    """What failed or was killed is no measurement, and neither is a point that finished without
    one of the objectives."""
    values = objective_values(result, objectives)
    if result.state is State.finished and values is not None:
        return _create(space, result.overrides, "COMPLETE", values=values)
    if result.state is State.pruned:
        # TPE learns from what a pruned trial reported, where there is one objective.
        so_far = {0: values[0]} if values is not None and len(values) == 1 else {}
        return _create(space, result.overrides, "PRUNED", intermediate_values=so_far)
    return _create(space, result.overrides, "FAIL")


def _create(
    space: Mapping[str, Space], overrides: Overrides, state: str, **about: Any
) -> "FrozenTrial":
    """A point outside of the space teaches nothing about it."""
    trial = load_optuna().trial
    params = parameters(space, overrides)
    if params is None:
        failed: FrozenTrial = trial.create_trial(state=trial.TrialState.FAIL)
        return failed
    created: FrozenTrial = trial.create_trial(
        state=trial.TrialState[state], params=params, distributions=distributions(space), **about
    )
    return created
