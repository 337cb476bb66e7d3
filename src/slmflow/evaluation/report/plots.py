"""The plots of the report: small enough for a phone, told apart by shape as well as by colour."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from slmflow.drawing import svg, units
from slmflow.evaluation.report import speed, words
from slmflow.evaluation.report.pareto import draw_pareto
from slmflow.evaluation.results import Evaluation, Figure

WIDTH = 4.2  # inches
ROW = 0.2  # inches; of one candidate
GROUP = 0.3  # inches; of the name above its candidates
FOOT = 0.32  # inches; below the axes
SIDE = 0.05  # of the width; half a number below the axes fits in
VALUE = 0.62  # inches; right of the axes, for the value of a row
MARKERS = ("o", "s", "D", "^", "v", "P")
LOG_FROM = 20  # largest over smallest


@dataclass(frozen=True)
class Plot:
    title: str
    svg: str
    candidates: tuple[int, ...]  # that it shows, for its legend


@dataclass(frozen=True)
class Whisker:
    """A dot and the line through it; ``inner`` is drawn thicker. ``candidate``: by position."""

    candidate: int
    low: float
    value: float
    high: float
    shown: str
    inner: tuple[float, float] | None = None


Group = tuple[str, Sequence[Whisker]]


def quality(evaluation: Evaluation) -> Plot | None:
    """Every metric that is a share, with its confidence interval."""
    groups = []
    for name in filter(units.is_share, evaluation.metrics):
        found = [(at, one.figures.get(name)) for at, one in enumerate(evaluation.candidates)]
        groups.append((name, [_whisker(at, name, figure) for at, figure in found if figure]))
    title = f"Quality, with {words.confidence(evaluation)} confidence intervals"
    return _whiskers("quality", title, groups, _percent)


def differences(evaluation: Evaluation) -> Plot | None:
    """Every candidate minus the reference. The line at 0 is the reference."""
    labels = [one.label for one in evaluation.candidates]
    groups = []
    for name in filter(units.is_share, evaluation.metrics):
        rows = []
        for comparison in evaluation.comparisons:
            found = comparison.differences.get(name)
            if found is not None and comparison.label in labels:
                change = found.change
                shown = units.signed(name, change.value)
                at = labels.index(comparison.label)
                rows.append(Whisker(at, change.low, change.value, change.high, shown))
        groups.append((name, rows))
    title = f"Points more or less than {_reference(evaluation)}"
    return _whiskers("differences", title, groups, _points, zero=True)


def first_token(evaluation: Evaluation) -> Plot | None:
    title = "Time to the first token"
    return _whiskers("first-token", title, _latency(evaluation, "first_token_seconds"), _seconds)


def inter_token(evaluation: Evaluation) -> Plot | None:
    title = "Time between two tokens"
    return _whiskers("inter-token", title, _latency(evaluation, "inter_token_seconds"), _seconds)


def pareto(evaluation: Evaluation) -> Plot | None:
    """None where fewer than two candidates have both a score and a speed."""
    drawn = draw_pareto(evaluation, Canvas(figsize=(WIDTH, 3.1)), MARKERS)
    if drawn is None:
        return None
    canvas, shown, description = drawn
    title = f"{evaluation.primary} against decode tokens/s"
    return Plot(title, svg.inline(canvas, "pareto", title, description), shown)


def _whisker(candidate: int, name: str, figure: Figure) -> Whisker:
    shown = units.show(name, figure.value)
    return Whisker(candidate, figure.low, figure.value, figure.high, shown)


def _latency(evaluation: Evaluation, name: str) -> list[Group]:
    """From the fastest measurement to p99, the middle half thicker, the median a dot."""
    groups: list[Group] = []
    for setting in speed.settings(evaluation):
        rows = []
        for at, one in enumerate(evaluation.candidates):
            point = speed.point_at(one.speed, setting)
            seconds = getattr(point, name) if point is not None else ()
            if seconds:
                low, first, median, third, high = map(
                    float, np.percentile(seconds, (0, 25, 50, 75, 99))
                )
                shown = units.show(name, median)
                rows.append(Whisker(at, low, median, high, shown, (first, third)))
        groups.append((speed.describe(setting), rows))
    return groups


def _whiskers(
    name: str, title: str, groups: Sequence[Group], ticks: FuncFormatter, zero: bool = False
) -> Plot | None:
    groups = [(heading, rows) for heading, rows in groups if rows]
    if not groups:
        return None
    inches = sum(GROUP + ROW * len(rows) for _, rows in groups) + 0.1
    canvas = Canvas(figsize=(WIDTH, inches + FOOT))
    foot = FOOT / (inches + FOOT)
    axes = canvas.add_axes((SIDE, foot, 1 - SIDE - VALUE / WIDTH, 1 - foot))
    axes.set_ylim(inches, 0)
    _scale(axes, [row for _, rows in groups for row in rows], zero)
    at = 0.0
    for heading, rows in groups:
        at += GROUP
        axes.text(0, at - 0.06, heading, transform=axes.get_yaxis_transform(), fontweight="bold")
        for row in rows:
            at += ROW
            _draw(axes, row, at - ROW / 2 + 0.03)
    if zero:
        axes.axvline(0, color=svg.MUTED, linewidth=1, zorder=1)
    axes.xaxis.set_major_formatter(ticks)
    _bare(axes)
    shown = tuple(sorted({row.candidate for _, rows in groups for row in rows}))
    return Plot(title, svg.inline(canvas, name, title, _said(groups)), shown)


def _draw(axes: Axes, row: Whisker, at: float) -> None:
    colour = svg.MARKS[row.candidate % len(svg.MARKS)]
    axes.plot([row.low, row.high], [at, at], color=colour, linewidth=1.4, solid_capstyle="butt")
    if row.inner is not None:
        axes.plot(row.inner, [at, at], color=colour, linewidth=4, solid_capstyle="butt")
    marker = MARKERS[row.candidate % len(MARKERS)]
    axes.plot(
        [row.value], [at], marker=marker, color=colour, markersize=6.5, markeredgecolor=svg.BACK
    )
    axes.text(1.03, at, row.shown, transform=axes.get_yaxis_transform(), va="center", fontsize=9)


def _scale(axes: Axes, rows: Sequence[Whisker], zero: bool) -> None:
    """Logarithmic where the values differ a lot and none is 0."""
    low = min(row.low for row in rows)
    high = max(row.high for row in rows)
    if 0 < low * LOG_FROM < high:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(low / 1.3, high * 1.3)
        return
    if zero:
        low, high = min(low, 0), max(high, 0)
    margin = 0.05 * (high - low) or 0.05
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _bare(axes: Axes) -> None:
    axes.set_yticks([])
    axes.grid(axis="x", color=svg.LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)


def _said(groups: Sequence[Group]) -> str:
    """The dots in words, for who cannot see them; the table beside the plot has the rest."""
    return "; ".join(
        f"{heading}: {', '.join(row.shown for row in rows)}" for heading, rows in groups
    )


def _reference(evaluation: Evaluation) -> str:
    return evaluation.comparisons[0].reference if evaluation.comparisons else ""


def _short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


_percent = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")
_points = FuncFormatter(lambda value, _: f"{100 * value:.3g}".replace("-", units.MINUS))
_seconds = FuncFormatter(lambda value, _: _short(value))
