"""The schema of the group ``sweep``: which points, how they are chosen, what decides among them."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from slmflow.figures import LOWER_IS_BETTER

OBJECTIVES = ("correct", "decode_tokens_per_second", "peak_memory_bytes", "size_bytes")


class Direction(StrEnum):
    maximize = "maximize"
    minimize = "minimize"


class Strategy(StrEnum):
    grid = "grid"  # every combination
    tpe = "tpe"  # Optuna's tree-structured Parzen estimator: the next from what came out so far


@dataclass
class Sweep:
    over: dict[str, Any] = field(default_factory=dict)
    """Key to values, as they would be typed: ``{search.temperature: "0.0,0.4"}``. What is typed
    for the same key goes before."""
    objectives: list[str] = field(default_factory=lambda: list(OBJECTIVES))
    """Metrics. The first that the points measured chooses the best one; the next ones break
    ties. All of them together make the Pareto front."""
    strategy: Strategy = Strategy.grid
    trials: int = 20  # tpe: points in all
    batch: int = 1  # tpe: points that are chosen and run at once
    seed: int = 0  # tpe
    prune: bool = False  # tpe, one objective: stop points that fall behind half-way
    timeout: float | None = None  # seconds that a point may take; null: any time
    resume: str = "auto"  # auto: the same command's sweep, where one is unfinished; never; a run id

    def __post_init__(self) -> None:
        """Raise ``ValueError`` naming the key, its value and what is allowed."""
        for name, value in (("trials", self.trials), ("batch", self.batch)):
            if value < 1:
                raise ValueError(f"sweep.{name} is {value}; allowed: 1 or more")
        if self.timeout is not None and self.timeout <= 0:
            raise ValueError(f"sweep.timeout is {self.timeout}; allowed: seconds above 0, or null")
        if self.seed < 0:
            raise ValueError(f"sweep.seed is {self.seed}; allowed: 0 or more")
        if not self.objectives:
            raise ValueError(
                "sweep.objectives is empty; allowed: one metric or more, "
                "as in sweep.objectives=[correct,size_bytes]"
            )
        if self.prune and self.strategy is not Strategy.tpe:
            raise ValueError("sweep.prune=true needs sweep.strategy=tpe: a grid is run as a whole")
        if self.prune and len(self.objectives) > 1:
            raise ValueError(
                f"sweep.prune=true needs one objective, and there are {len(self.objectives)} "
                f"({', '.join(self.objectives)}); name one, as in sweep.objectives=[correct]"
            )

    @property
    def directions(self) -> dict[str, Direction]:
        """Every objective, in order, with the way it is better."""
        return {
            name: Direction.minimize if name in LOWER_IS_BETTER else Direction.maximize
            for name in self.objectives
        }
