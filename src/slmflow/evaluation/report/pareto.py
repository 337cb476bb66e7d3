"""Quality against speed: what no other candidate beats in both."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator

from slmflow.drawing import svg, units
from slmflow.evaluation.report import words
from slmflow.evaluation.results import Evaluation
from slmflow.figures import LOWER_IS_BETTER

SPEED = "decode_tokens_per_second"
SMALLEST, LARGEST = 40.0, 420.0  # square points; of a dot
LONGEST = 26  # characters of a label


@dataclass(frozen=True)
class Dot:
    candidate: int
    label: str
    speed: float
    quality: float
    memory: float | None  # bytes


def dots(evaluation: Evaluation) -> list[Dot]:
    found = []
    for at, one in enumerate(evaluation.candidates):
        speed, quality = one.figures.get(SPEED), one.figures.get(evaluation.primary)
        memory = one.figures.get("peak_memory_bytes")
        if speed is not None and quality is not None:
            used = memory.value if memory is not None else None
            found.append(Dot(at, one.label, speed.value, quality.value, used))
    return found


def frontier(found: Sequence[Dot], lower_is_better: bool = False) -> list[Dot]:
    """The dots that no other equals in both and beats in one, slowest first."""
    sign = -1 if lower_is_better else 1

    def beats(one: Dot, other: Dot) -> bool:
        ahead = one.speed - other.speed, sign * (one.quality - other.quality)
        return min(ahead) >= 0 and max(ahead) > 0

    kept = [dot for dot in found if not any(beats(other, dot) for other in found)]
    return sorted(kept, key=lambda dot: dot.speed)


def draw_pareto(
    evaluation: Evaluation, canvas: Canvas, markers: Sequence[str]
) -> tuple[Canvas, tuple[int, ...], str] | None:
    """The canvas, the candidates on it and what it shows in words."""
    found = dots(evaluation)
    if len(found) < 2:
        return None
    lower_is_better = evaluation.primary in LOWER_IS_BETTER
    best = frontier(found, lower_is_better)
    axes = canvas.add_axes((0.13, 0.14, 0.84, 0.84))
    axes.plot(
        [dot.speed for dot in best],
        [dot.quality for dot in best],
        color=svg.MUTED,
        linewidth=1,
        linestyle=(0, (4, 3)),
        zorder=1,
    )
    _room(axes, found, lower_is_better)
    largest = max((dot.memory or 0 for dot in found), default=0)
    for dot in found:
        _draw(axes, dot, largest, markers[dot.candidate % len(markers)])
    _frame(axes, evaluation.primary)
    named = ", ".join(dot.label for dot in best)
    said = "; ".join(
        f"{dot.label}: {units.show(evaluation.primary, dot.quality)} at "
        f"{units.show(SPEED, dot.speed)} tokens/s"
        for dot in found
    )
    shown = tuple(dot.candidate for dot in found)
    return canvas, shown, f"{said}. On the frontier: {named}. {words.better_is(evaluation.primary)}"


def _draw(axes: Axes, dot: Dot, largest: float, marker: str) -> None:
    """A dot's area is its memory; where that was not seen, it is small and hollow."""
    colour = svg.MARKS[dot.candidate % len(svg.MARKS)]
    area = max(SMALLEST, LARGEST * dot.memory / largest) if dot.memory else SMALLEST
    axes.scatter(
        [dot.speed],
        [dot.quality],
        s=area,
        marker=marker,
        zorder=2,
        facecolor=colour if dot.memory else svg.BACK,
        edgecolor=svg.BACK if dot.memory else colour,
        linewidth=1 if dot.memory else 1.5,
    )
    low, high = axes.get_xlim()
    right = dot.speed > (low + high) / 2
    away = 4 + (area**0.5) / 2  # clear of the frontier, which falls from left to right
    axes.annotate(
        units.clip(dot.label, LONGEST),
        (dot.speed, dot.quality),
        xytext=(0, -away if right else away),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top" if right else "bottom",
        fontsize=9,
    )


def _room(axes: Axes, found: Sequence[Dot], lower_is_better: bool) -> None:
    """Speed from 0: twice as far is twice as fast. Better is up. Labels have room."""
    speeds = [dot.speed for dot in found]
    qualities = [dot.quality for dot in found]
    width = max(qualities) - min(qualities) or 0.1
    ends = min(qualities) - 0.35 * width, max(qualities) + 0.35 * width
    axes.set_xlim(0, max(speeds) * 1.12 or 1)
    axes.set_ylim(*(reversed(ends) if lower_is_better else ends))


def _frame(axes: Axes, primary: str) -> None:
    axes.set_xlabel("decode tokens/s")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.show(primary, value)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(color=svg.LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4)
    for side in ("right", "top"):
        axes.spines[side].set_visible(False)
