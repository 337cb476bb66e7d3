"""Where a point lies on an axis of the parallel coordinates: what varies, or an objective."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slmflow.config.sweep import Direction
from slmflow.drawing import units
from slmflow.sweeps.judge import figure
from slmflow.sweeps.report import words
from slmflow.sweeps.results import PointResult

DISCRETE = 6  # values of a number that have a place of their own each
SPREAD = 0.7  # of a value's room: points that share it lie side by side, the best last
LOG_FROM = 20  # largest over smallest
LABEL = 12  # characters
TITLE = 44


@dataclass(frozen=True)
class Axis:
    """``places`` by point, 0 at the left and 1 at the right; None: it has none."""

    title: str
    places: tuple[float | None, ...]
    ticks: tuple[tuple[float, str], ...]


def varying(title: str, texts: Sequence[str | None], typed: Sequence[str]) -> Axis:
    """``texts`` by point, the worst point first; ``typed``: the same, in the order of the sweep."""
    title = units.clip(title, TITLE)
    distinct = list(dict.fromkeys(typed))
    numbers = {text: value for text in distinct if (value := _number(text)) is not None}
    if len(numbers) < len(distinct):
        return _discrete(title, texts, distinct)
    if len(distinct) <= DISCRETE:
        return _discrete(title, texts, sorted(distinct, key=numbers.__getitem__))
    values = [None if text is None else numbers[text] for text in texts]
    return _continuous(title, values, lambda value: f"{value:.4g}")


def objective(name: str, direction: Direction, points: Sequence[PointResult]) -> Axis:
    """Better is to the right."""
    values = [figure(point, name) for point in points]
    finite = [None if value is None or math.isinf(value) else value for value in values]
    title = f"{units.title(name)} ({words.better(direction)})"
    axis = _continuous(title, finite, lambda value: units.show(name, value))
    if direction is Direction.maximize:
        return axis
    return Axis(
        title,
        tuple(None if place is None else 1 - place for place in axis.places),
        tuple((1 - place, label) for place, label in axis.ticks),
    )


def _discrete(title: str, texts: Sequence[str | None], distinct: Sequence[str]) -> Axis:
    room = 1 / max(1, len(distinct))
    middles = {text: (at + 0.5) * room for at, text in enumerate(distinct)}
    last = max(1, len(texts) - 1)
    spread = SPREAD * room if len(texts) > len(distinct) else 0.0
    return Axis(
        title,
        tuple(
            None if text is None else middles[text] + spread * (at / last - 0.5)
            for at, text in enumerate(texts)
        ),
        tuple(zip(middles.values(), words.short_values(distinct, LABEL), strict=True)),
    )


def _continuous(title: str, values: Sequence[float | None], show: Callable[[float], str]) -> Axis:
    """Logarithmic where the values differ a lot and all are above 0."""
    known = [value for value in values if value is not None]
    if not known:
        return Axis(title, (None,) * len(values), ())
    low, high = min(known), max(known)
    if low == high:
        return Axis(title, tuple(None if v is None else 0.5 for v in values), ((0.5, show(low)),))
    scale, back = (math.log, math.exp) if 0 < low * LOG_FROM <= high else (float, float)
    start, width = scale(low), scale(high) - scale(low)
    return Axis(
        title,
        tuple(None if value is None else (scale(value) - start) / width for value in values),
        ((0.0, show(low)), (0.5, show(back(start + width / 2))), (1.0, show(high))),
    )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
