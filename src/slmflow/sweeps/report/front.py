"""Quality against speed, or what else there is: the points that no other beats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator

from slmflow.config.sweep import Direction
from slmflow.drawing import svg, units
from slmflow.sweeps.judge import figure
from slmflow.sweeps.report import words
from slmflow.sweeps.report.plot import WIDTH, Plot, Role, role
from slmflow.sweeps.results import PointResult, State, SweepResult

SPEED = "decode_tokens_per_second"
MEMORY = "peak_memory_bytes"
SMALLEST, LARGEST = 14.0, 300.0  # square points; of a dot
PLAIN = 30.0  # of a dot that shows no memory
LABELLED = 8  # points of the front that are named


@dataclass(frozen=True)
class Dot:
    number: int
    role: Role
    x: float
    y: float
    memory: float | None  # bytes


def draw_front(result: SweepResult) -> Plot | None:
    """None where no finished point measured an objective."""
    across, up = _names(result)
    found = _dots(result, across, up)
    if up is None or not found:
        return None
    canvas = Canvas(figsize=(WIDTH, 3.1))
    axes = canvas.add_axes((0.16, 0.15, 0.8, 0.82))
    _room(result, axes, found, across, up)
    largest = max((dot.memory or 0 for dot in found), default=0)
    for dot in found:
        _draw(axes, dot, largest)
    _label(axes, found)
    _frame(axes, found, across, up)
    title = f"{units.title(up)} against {units.title(across)}" if across else units.title(up)
    return Plot(
        title,
        svg.inline(canvas, "front", title, _said(found, across, up)),
        _note(result, found, across, up, largest > 0),
        tuple(sorted({dot.role for dot in found})),
    )


def _names(result: SweepResult) -> tuple[str | None, str | None]:
    """Of the axes; None: the points in their order."""
    names = list(result.objectives)
    qualities = [name for name in names if not name.endswith(("_bytes", "_per_second", "_seconds"))]
    if SPEED in names and qualities:
        return SPEED, qualities[0]
    if len(names) > 1:
        return names[1], names[0]
    return None, next(iter(names), None)


def _dots(result: SweepResult, across: str | None, up: str | None) -> list[Dot]:
    found = []
    for point in result.points:
        if point.state is not State.finished or up is None:
            continue
        x = float(point.number) if across is None else _finite(point, across)
        y = _finite(point, up)
        memory = None if MEMORY in (across, up) else _finite(point, MEMORY)
        if x is not None and y is not None:
            found.append(Dot(point.number, role(result, point), x, y, memory))
    return sorted(found, key=lambda dot: -dot.role)  # the best is drawn last


def _finite(point: PointResult, name: str) -> float | None:
    value = figure(point, name)
    return value if value is not None and math.isfinite(value) else None


def _draw(axes: Axes, dot: Dot, largest: float) -> None:
    """A dot's area is its memory, where any was seen; without, it is hollow."""
    area = max(SMALLEST, LARGEST * (dot.memory or 0) / largest) if largest else PLAIN
    hollow = largest > 0 and dot.memory is None
    colour = dot.role.line.colour
    axes.scatter(
        [dot.x],
        [dot.y],
        s=area,
        marker="D" if dot.role is Role.best else "o",
        facecolor=svg.BACK if hollow else colour,
        edgecolor=colour if hollow else svg.BACK,
        linewidth=1.3 if hollow else 0.8,
        alpha=0.6 if dot.role is Role.other else 1,
        zorder=4 - dot.role,
    )


def _label(axes: Axes, found: Sequence[Dot]) -> None:
    front = [dot for dot in found if dot.role is Role.front]
    named = [dot for dot in found if dot.role is Role.best]
    middle = sum(axes.get_xlim()) / 2
    falling = axes.get_xlim()[0] > axes.get_xlim()[1]
    for dot in named + (front if len(front) <= LABELLED else []):
        right = (dot.x > middle) != falling
        axes.annotate(
            f"point {dot.number}" if dot.role is Role.best else str(dot.number),
            (dot.x, dot.y),
            xytext=(-8 if right else 8, 7),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=9,
            zorder=5,
        )


def _room(
    result: SweepResult, axes: Axes, found: Sequence[Dot], across: str | None, up: str
) -> None:
    """Better is up and to the right."""
    ends = _ends([dot.y for dot in found])
    axes.set_ylim(*(reversed(ends) if _falls(result, up) else ends))
    ends = _ends([dot.x for dot in found])
    axes.set_xlim(*(reversed(ends) if across and _falls(result, across) else ends))


def _falls(result: SweepResult, name: str) -> bool:
    return result.objectives[name] is Direction.minimize


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.14 * (high - low) or 0.1 * abs(high) or 0.5
    return low - margin, high + margin


def _frame(axes: Axes, found: Sequence[Dot], across: str | None, up: str) -> None:
    axes.set_xlabel(units.title(across) if across else "point")
    axes.xaxis.set_major_locator(_ticks([dot.x for dot in found], 4, across is None))
    axes.yaxis.set_major_locator(_ticks([dot.y for dot in found], 5))
    if across:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: units.show(across, value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.show(up, value)))
    axes.grid(color=svg.LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4)
    for side in ("right", "top"):
        axes.spines[side].set_visible(False)


def _ticks(values: Sequence[float], most: int, integer: bool = False) -> Locator:
    if min(values) == max(values):
        return FixedLocator(values[:1])
    return MaxNLocator(most, integer=integer)


def _said(found: Sequence[Dot], across: str | None, up: str) -> str:
    told = sorted(found, key=lambda dot: (dot.role, dot.number))[: words.NAMED]
    shown = "; ".join(
        f"point {dot.number} ({dot.role.words}): {units.show(up, dot.y)}"
        + (f" at {units.show(across, dot.x)} {units.title(across)}" if across else "")
        for dot in told
    )
    more = len(found) - len(told)
    return f"{shown}. {f'{units.count(more)} more are in the table below.' if more else ''}".strip()


def _note(
    result: SweepResult, found: Sequence[Dot], across: str | None, up: str, sized: bool
) -> str:
    if across is None:
        better = words.better(result.objectives[up]).capitalize()
        return f"The points in the order of the sweep. {better}."
    said = ["Better is up and to the right."]
    if sized:
        said.append(f"A dot's area is its {units.title(MEMORY)}.")
    missing = result.count(State.finished) - len(found)
    if missing:
        said.append(f"Finished without one of the two, and not shown: {units.count(missing)}.")
    if len(result.objectives) > 2:
        said.append(f"The front is that of {words.titles(list(result.objectives))} together.")
    return " ".join(said)
