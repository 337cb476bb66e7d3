"""Parallel coordinates that lie: an axis a line, so that any number of them fits a phone."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from slmflow.drawing import svg, units
from slmflow.sweeps.report import words
from slmflow.sweeps.report.axes import Axis, objective, varying
from slmflow.sweeps.report.plot import WIDTH, Line, Plot, role
from slmflow.sweeps.results import PointResult, State, SweepResult

TITLE = 0.2  # inches; above an axis
LABELS = 0.16  # inches; a row of labels below it
GAP = 0.5  # inches; for the lines between the labels and the next title
SIDE = 0.02  # of the width
LETTER = 0.085  # inches; a wide one of a label
ROWS = 3  # of labels below an axis, when they are many
SHOWN = frozenset({State.finished, State.failed, State.killed, State.pruned})


def draw_parallel(result: SweepResult) -> Plot | None:
    """None where there are fewer than two axes, or no point that began."""
    points = [point for point in reversed(words.ranked(result)) if point.state in SHOWN]
    axes = _axes(result, points)
    if len(axes) < 2 or not points:
        return None
    rows = [_label_rows(axis) for axis in axes]
    tops, height = [], 0.0
    for count in rows:
        tops.append(height + TITLE)
        height += TITLE + count * LABELS + GAP
    height -= GAP - 0.05
    canvas = Canvas(figsize=(WIDTH, height))
    frame = canvas.add_axes((SIDE, 0, 1 - 2 * SIDE, 1))
    frame.set_axis_off()
    frame.set_xlim(0, 1)
    frame.set_ylim(height, 0)
    for axis, top, count in zip(axes, tops, rows, strict=True):
        _frame(frame, axis, top, count)
    for at, point in enumerate(points):
        line = role(result, point).line
        places = [axis.places[at] for axis in axes]
        _line(frame, places, tops, line, alone=len(points) == 1)
    title = "What each choice led to"
    shown = {role(result, point) for point in points}
    return Plot(
        title,
        svg.inline(canvas, "parallel", title, _said(result, points, axes)),
        "A line is a point: what was chosen for it, then what came out. Better is to the right. "
        "Where points share a choice, they lie side by side, the better ones to the right.",
        tuple(sorted(shown)),
    )


def _axes(result: SweepResult, points: Sequence[PointResult]) -> list[Axis]:
    chosen = [
        varying(title, [point.overrides.get(key) for point in points], _typed(points, key))
        for key, title in zip(result.keys, words.short_keys(result.keys), strict=True)
    ]
    # A point that did not finish leads nowhere, whatever it had measured.
    ended = [point if point.state is State.finished else _unmeasured(point) for point in points]
    measured = [objective(name, way, ended) for name, way in result.objectives.items()]
    return [axis for axis in (*chosen, *measured) if axis.ticks]


def _typed(points: Sequence[PointResult], key: str) -> list[str]:
    ordered = sorted(points, key=lambda point: point.number)
    return [point.overrides[key] for point in ordered if key in point.overrides]


def _unmeasured(point: PointResult) -> PointResult:
    return PointResult(point.number, point.overrides, point.run_id, point.state, {}, point.seconds)


def _label_rows(axis: Axis) -> int:
    """Labels that do not fit side by side take turns in rows."""
    longest = max(len(label) for _, label in axis.ticks)
    needed = longest * LETTER * len(axis.ticks) / WIDTH
    return 1 if len(axis.ticks) <= 3 else min(ROWS, max(1, round(needed + 0.5)))


def _frame(frame: Axes, axis: Axis, top: float, rows: int) -> None:
    back = {"facecolor": svg.BACK, "edgecolor": "none", "alpha": 0.85, "pad": 0.8}
    frame.plot([0, 1], [top, top], color=svg.LINE, linewidth=1.2, zorder=1)
    frame.text(0, top - 0.06, axis.title, fontweight="bold", fontsize=9, zorder=4, bbox=back)
    longest = max(len(label) for _, label in axis.ticks)
    apart = longest * LETTER / WIDTH / rows  # what a label needs of the width
    last = -1.0
    for at, (place, label) in enumerate(axis.ticks):
        if len(axis.ticks) > 3 and place - last < apart:
            continue  # no room: the table has it
        last = place
        frame.plot([place, place], [top - 0.03, top + 0.03], color=svg.MUTED, linewidth=1, zorder=3)
        half = len(label) * LETTER / WIDTH / 2
        frame.text(
            min(max(place, half), 1 - half),
            top + 0.04 + LABELS * (at % rows),
            label,
            ha="center",
            va="top",
            color=svg.MUTED,
            fontsize=9,
            zorder=4,
            bbox=back,
        )


def _line(
    frame: Axes, places: Sequence[float | None], tops: Sequence[float], line: Line, alone: bool
) -> None:
    known = [(place, top) for place, top in zip(places, tops, strict=True) if place is not None]
    if not known:
        return
    frame.plot(
        [place for place, _ in known],
        [top for _, top in known],
        color=line.colour,
        linewidth=line.width,
        linestyle="-" if line.solid else (0, (3, 2)),
        alpha=line.alpha,
        marker="o" if line.dots or alone else None,
        markersize=4.5,
        zorder=2 + line.width / 10,
        solid_joinstyle="round",
    )


def _said(result: SweepResult, points: Sequence[PointResult], axes: Sequence[Axis]) -> str:
    return (
        f"{units.count(len(points))} points over {', '.join(axis.title for axis in axes)}. "
        f"{words.best(result)}. The table below has every point."
    )
