"""What the plots of a sweep share: the part that a point plays, and how that looks."""

from dataclasses import dataclass
from enum import IntEnum

from slmflow.drawing import svg
from slmflow.sweeps.results import PointResult, State, SweepResult

WIDTH = 4.2  # inches


@dataclass(frozen=True)
class Line:
    colour: str
    width: float
    alpha: float
    solid: bool = True
    dots: bool = False


class Role(IntEnum):
    best = 0
    front = 1
    other = 2
    unfinished = 3

    @property
    def line(self) -> Line:
        return LINES[self]

    @property
    def words(self) -> str:
        return WORDS[self]


LINES = {
    Role.best: Line(svg.MARKS[0], 2.6, 1, dots=True),
    Role.front: Line(svg.MARKS[2], 1.4, 1),
    Role.other: Line(svg.MUTED, 0.8, 0.55),
    Role.unfinished: Line(svg.MARKS[1], 0.9, 0.75, solid=False),
}
WORDS = {
    Role.best: "best",
    Role.front: "Pareto front",
    Role.other: "others",
    Role.unfinished: "not finished",
}


@dataclass(frozen=True)
class Plot:
    title: str
    svg: str
    note: str
    roles: tuple[Role, ...]  # that it shows, for its legend


def role(result: SweepResult, point: PointResult) -> Role:
    if point.state is not State.finished:
        return Role.unfinished
    if point.number == result.best:
        return Role.best
    on_front = len(result.objectives) > 1 and point.number in result.front
    return Role.front if on_front or point.number in result.ties else Role.other
