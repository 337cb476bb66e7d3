"""Which point is best, and which are worth a look: pure functions of what the points measured."""

import math
from collections.abc import Mapping, Sequence

from slmflow.config.sweep import Direction
from slmflow.sweeps.results import PointResult, State

Objectives = Mapping[str, Direction]
Rank = tuple[tuple[bool, float], ...]
"""By objective: whether the point has it, and how good it is. Greater is better throughout, and
what was not measured is worse than anything that was."""


def figure(point: PointResult, name: str) -> float | None:
    """What the point measured; NaN is nothing."""
    value = point.figures.get(name)
    return None if value is None or math.isnan(value) else value


def rank(objectives: Objectives, point: PointResult) -> Rank:
    def rated(name: str, direction: Direction) -> tuple[bool, float]:
        value = figure(point, name)
        if value is None:
            return False, 0.0
        return True, value if direction is Direction.maximize else -value

    return tuple(rated(name, direction) for name, direction in objectives.items())


def measured(objectives: Objectives, points: Sequence[PointResult]) -> dict[str, Direction]:
    """The objectives, in order, that at least one finished point has."""
    finished = [point for point in points if point.state is State.finished]
    return {
        name: direction
        for name, direction in objectives.items()
        if any(figure(point, name) is not None for point in finished)
    }


def best(objectives: Objectives, points: Sequence[PointResult]) -> int | None:
    """The finished point that leads in the first objective that was measured; the next objectives
    break ties, then the order of the sweep."""
    found = _ranks(objectives, points)
    return min(found, key=lambda number: (_descending(found[number]), number), default=None)


def ties(objectives: Objectives, points: Sequence[PointResult]) -> tuple[int, ...]:
    """The other points that equal the best one in every objective."""
    found = _ranks(objectives, points)
    winner = best(objectives, points)
    if winner is None:
        return ()
    return tuple(
        number for number in sorted(found) if number != winner and found[number] == found[winner]
    )


def front(objectives: Objectives, points: Sequence[PointResult]) -> tuple[int, ...]:
    """The finished points that no other equals in all objectives and beats in one."""
    found = _ranks(objectives, points)
    kept: list[int] = []
    # Who beats a point comes before it in this order, or is itself beaten by one that is kept.
    for number in sorted(found, key=lambda number: _descending(found[number])):
        if not any(_beats(found[other], found[number]) for other in kept):
            kept.append(number)
    return tuple(sorted(kept))


def _ranks(objectives: Objectives, points: Sequence[PointResult]) -> dict[int, Rank]:
    """By number: of the finished points that measured anything that counts."""
    counted = measured(objectives, points)
    found = {
        point.number: rank(counted, point) for point in points if point.state is State.finished
    }
    return {number: one for number, one in found.items() if any(has for has, _ in one)}


def _beats(one: Rank, other: Rank) -> bool:
    return one != other and all(mine >= theirs for mine, theirs in zip(one, other, strict=True))


def _descending(given: Rank) -> Rank:
    """Sorted by it, the best comes first."""
    return tuple((not has, -value) for has, value in given)
