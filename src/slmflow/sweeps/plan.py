"""What was typed, expanded: the points of a sweep, or where they come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from slmflow.config.sweep import Sweep
from slmflow.sweeps.point import Task
from slmflow.sweeps.results import PointResult

Launch = Callable[[Task], Mapping[int, str]]
"""Run the task's points, wherever, until each has ended; why some gave no result, by number."""


class Strategy(Protocol):
    """Which points are next. ``tell`` it all that ended, those of an earlier session first."""

    def ask(self) -> list[tuple[str, ...]]: ...

    def tell(self, result: PointResult) -> None: ...

    def should_stop(self, number: int, step: int, value: float) -> bool:
        """Whether a running point, whose objective is ``value`` after so many rows, is worth no
        more."""


@dataclass(frozen=True)
class Plan:
    entry_point: str
    name: str  # "custom_onnx phi3-demo"
    launcher: str  # basic, joblib, submitit_local, submitit_slurm, ...
    overrides: tuple[str, ...]  # all that was typed: from these it can be planned again
    key: str  # equal for the same command
    points: tuple[tuple[str, ...], ...]  # of a grid; empty where each follows from the others
    settings: Sweep
    aliases: bool = True  # move to the best point's models in the end; not those of a rerun
    config: Mapping[str, Any] = field(default_factory=dict)  # what the points have in common
    choices: Mapping[str, str] = field(default_factory=dict)  # the same, of groups

    @property
    def total(self) -> int:
        return len(self.points) or self.settings.trials

    def number(self, overrides: tuple[str, ...], known: Mapping[tuple[str, ...], int]) -> int:
        """The place of a point: in the grid, or after all that are known."""
        if overrides in known:
            return known[overrides]
        if self.points:
            return self.points.index(overrides)
        return max(known.values(), default=-1) + 1

    def as_json(self) -> dict[str, Any]:
        """Without what is recorded as every run's config and choices are."""
        apart = ("config", "choices")
        return {name: value for name, value in asdict(self).items() if name not in apart}


def common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys, at any depth, that have the same value in all of them."""
    first, *others = configs
    shared: dict[str, Any] = {}
    for key, value in first.items():
        if any(key not in other for other in others):
            continue
        values = [value, *(other[key] for other in others)]
        if all(isinstance(one, Mapping) for one in values):
            shared[key] = common(values)
        elif all(one == value for one in values):
            shared[key] = value
    return shared
