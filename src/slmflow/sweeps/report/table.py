"""The points as rows: for a program as CSV, for the page as cells of text."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

from slmflow.drawing import units
from slmflow.sweeps.judge import figure
from slmflow.sweeps.report import words
from slmflow.sweeps.results import PointResult, State, SweepResult

TONES = {State.failed: "bad", State.killed: "bad", State.pruned: "unsure"}
MESSAGE = 160  # characters in a cell; the whole is told below the table


@dataclass(frozen=True)
class Cell:
    text: str
    tone: str = ""  # good, bad, unsure
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """The first column names the row; ``texts`` are the other columns that are no numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: frozenset[int]


def render_csv(result: SweepResult) -> str:
    """A row a point, in the order of the sweep. What was not measured is empty."""
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = metrics(result)
    writer.writerow(
        [
            *("number", "state", *map(units.printable, (*result.keys, *names))),
            *("seconds", "attempts", "models", "message", "run_id"),
        ]
    )
    for point in sorted(result.points, key=lambda point: point.number):
        figures = (point.figures.get(name) for name in names)
        row = [
            *(str(point.number), point.state.value),
            *(point.overrides.get(key, "") for key in result.keys),
            *("" if value is None else repr(float(value)) for value in figures),
            "" if point.seconds is None else f"{point.seconds:.3f}",
            *(str(point.attempts), " ".join(point.models)),
            *(point.message or "", point.run_id or ""),
        ]
        writer.writerow(map(units.printable, row))
    return file.getvalue()


def metrics(result: SweepResult) -> list[str]:
    """Of any point; the objectives first."""
    found = {name for point in result.points for name in point.figures}
    return [
        *(name for name in result.objectives if name in found),
        *sorted(found - set(result.objectives)),
    ]


def points(result: SweepResult) -> Table:
    """The best first. What varies, the objectives, the time, and what went wrong."""
    order = words.ranked(result)
    messages = any(point.message for point in order)
    keys = len(result.keys)
    return Table(
        "The points, the best first" if result.objectives else "The points",
        (
            "point",
            *words.short_keys(result.keys),
            *(units.title(name) for name in result.objectives),
            "time",
            *(["message"] if messages else []),
        ),
        tuple(
            (
                _name(result, point),
                *_values(result, point),
                *(Cell(units.show(name, figure(point, name))) for name in result.objectives),
                Cell(units.NONE if point.seconds is None else units.duration(point.seconds)),
                *([Cell(_first_line(point.message))] if messages else []),
            )
            for point in order
        ),
        frozenset({*range(1, keys + 1), keys + len(result.objectives) + 2}),
    )


def everything(result: SweepResult) -> Table:
    """Every metric of every point, its models and its run."""
    names = metrics(result)
    last = len(names) + 2
    return Table(
        "Every metric of every point, in the order of the sweep",
        ("point", *map(units.title, names), "attempts", "models", "run"),
        tuple(
            (
                Cell(str(point.number)),
                *(Cell(units.show(name, figure(point, name))) for name in names),
                Cell(str(point.attempts)),
                Cell(" ".join(point.models) or units.NONE),
                Cell(point.run_id or units.NONE),
            )
            for point in sorted(result.points, key=lambda point: point.number)
        ),
        frozenset({last, last + 1}),
    )


def _name(result: SweepResult, point: PointResult) -> Cell:
    if point.state is not State.finished:
        return Cell(str(point.number), TONES.get(point.state, ""), words.STATES[point.state])
    if point.number == result.best:
        return Cell(str(point.number), "good", "best")
    if point.number in result.ties:
        return Cell(str(point.number), "good", "as good")
    on_front = len(result.objectives) > 1 and point.number in result.front
    return Cell(str(point.number), detail="Pareto front" if on_front else "")


def _values(result: SweepResult, point: PointResult) -> Sequence[Cell]:
    return [Cell(point.overrides.get(key, units.NONE)) for key in result.keys]


def _first_line(message: str | None) -> str:
    lines = (message or "").strip().splitlines()
    return units.clip(lines[0], MESSAGE) if lines else ""
