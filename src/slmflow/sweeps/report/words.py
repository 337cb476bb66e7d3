"""A sweep in sentences, for the page and the terminal."""

import re
from collections.abc import Sequence

from slmflow.config.sweep import Direction
from slmflow.drawing import units
from slmflow.sweeps.judge import figure, rank
from slmflow.sweeps.results import PointResult, State, SweepResult

STATES = {
    State.finished: "finished",
    State.failed: "failed",
    State.killed: "killed",
    State.pruned: "pruned",
    State.running: "still running",
    State.waiting: "not run",
}
ORDER = (State.finished, State.pruned, State.running, State.waiting, State.killed, State.failed)
VALUE = 60  # characters of a value in a sentence
NAMED = 12  # points of a list that are named one by one


def counts(result: SweepResult) -> str:
    """``6 points: 4 finished, 1 failed, 1 not run``"""
    found = [(result.count(state), words) for state, words in STATES.items()]
    told = ", ".join(f"{units.count(number)} {words}" for number, words in found if number)
    points = f"{units.count(len(result.points))} point{'s' * (len(result.points) != 1)}"
    return f"{points}: {told}" if told else points


def verdicts(result: SweepResult) -> list[str]:
    """The best point and why, its ties, the front, and what could not decide."""
    told = [best(result)]
    if result.ties and result.best is not None:
        equal = numbers(sorted((result.best, *result.ties)))
        told.append(
            f"{equal.capitalize()} are equally good in {titles(list(result.objectives))}; "
            "the earliest of them is named"
        )
    if len(result.objectives) > 1 and result.front:
        alone = "alone " if len(result.front) == 1 else ""
        verb = "is" if len(result.front) == 1 else "are"
        told.append(
            f"{numbers(result.front).capitalize()} {alone}{verb} on the Pareto front: no other "
            f"point is at least as good in {titles(list(result.objectives))} and better in one"
        )
    if result.unmeasured and result.objectives:
        told.append(f"Not measured by any finished point: {titles(result.unmeasured)}")
    return told


def best(result: SweepResult) -> str:
    point = next((one for one in result.points if one.number == result.best), None)
    if point is not None:
        return f"Point {point.number} is the best: {words(point)}. {_why(result, point)}"
    if result.count(State.finished) == 0:
        return "No point finished, so none is the best"
    wanted = titles(result.unmeasured) if result.unmeasured else "an objective"
    return f"No finished point measured {wanted}, so none is the best"


def unfinished(result: SweepResult) -> str:
    """``Points 3 and 4 failed, point 5 killed``"""
    told = []
    for state in (State.failed, State.killed, State.pruned):
        which = [point.number for point in result.points if point.state is state]
        if which:
            told.append(f"{numbers(which)} {'was ' * (state is not State.failed)}{STATES[state]}")
    said = ", ".join(told)
    return said[:1].upper() + said[1:]


def words(point: PointResult) -> str:
    """``search.temperature=0.4 hardware.precision=int8``, long values cut."""
    return " ".join(
        f"{one_line(key)}={units.clip(one_line(value), VALUE)}"
        for key, value in point.overrides.items()
    )


def one_line(text: str) -> str:
    """Without what would turn the direction of the words that follow."""
    shown = re.sub("[\u202a-\u202e\u2066-\u2069]", "\N{REPLACEMENT CHARACTER}", text)
    return " ".join(units.printable(shown).split())


def numbers(given: Sequence[int]) -> str:
    """``points 1, 2 and 4``"""
    shown = [str(number) for number in given[:NAMED]]
    if len(given) > NAMED:
        shown.append(f"{len(given) - NAMED} more")
    return f"point{'s' * (len(given) != 1)} {_joined(shown)}"


def titles(names: Sequence[str]) -> str:
    return _joined([units.title(name) for name in names])


def short_keys(keys: Sequence[str]) -> list[str]:
    """``search.temperature`` as ``temperature``, where no other key ends so."""
    shown = []
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        alone = (
            end
            for end in ends
            if sum(other == end or other.endswith(f".{end}") for other in keys) == 1
        )
        shown.append(one_line(next(alone, key)))
    return shown


def short_values(texts: Sequence[str], length: int) -> list[str]:
    """What tells them apart: their beginnings, or else their ends; of long numbers four digits."""
    shown = [_short(text, length) for text in texts]
    if len(set(shown)) == len(set(texts)):
        return shown
    lines = [one_line(text) for text in texts]
    cut = "\N{HORIZONTAL ELLIPSIS}"
    return [line if len(line) <= length else cut + line[1 - length :] for line in lines]


def better(direction: Direction) -> str:
    return "higher is better" if direction is Direction.maximize else "lower is better"


def ranked(result: SweepResult) -> list[PointResult]:
    """The best first, what failed last."""

    def place(point: PointResult) -> tuple[object, ...]:
        known = rank(result.objectives, point)
        goodness = tuple((not has, -value) for has, value in known)
        return ORDER.index(point.state), goodness, point.number

    return sorted(result.points, key=place)


def troubles(result: SweepResult) -> list[tuple[str, str]]:
    """Points that did not finish: which they are, and what they said. The same message of many
    points is told once."""
    found: dict[tuple[State, str], list[int]] = {}
    for point in result.points:
        if point.state in (State.failed, State.killed, State.pruned):
            message = units.printable(point.message or "").strip() or "no message"
            found.setdefault((point.state, message), []).append(point.number)
    by_state = sorted(found.items(), key=lambda item: -ORDER.index(item[0][0]))
    return [
        (f"{numbers(which).capitalize()} {STATES[state]}", message)
        for (state, message), which in by_state
    ]


def _why(result: SweepResult, winner: PointResult) -> str:
    """By which objective it won, and against whom."""
    rivals = [
        point
        for point in result.points
        if point.state is State.finished and point.number != winner.number
    ]
    if not rivals:
        return "No other point finished"
    shared, said = [], []
    for name, direction in result.objectives.items():
        value = figure(winner, name)
        if value is None:
            continue
        equal = [point for point in rivals if figure(point, name) == value]
        shown = f"{units.title(name)}, {units.show(name, value)}"
        if len(equal) == len(rivals):
            shared.append(shown)
            continue
        most = "highest" if direction is Direction.maximize else "lowest"
        if not equal:
            said.append(f"the {most} {shown}{_next(name, direction, value, rivals)}")
            break
        said.append(f"the {most} {shown} (as {'has' if len(equal) == 1 else 'have'} {_of(equal)})")
        rivals = equal
    if not said:
        return f"Every finished point has the same {_joined(shared)}"
    same = f"Of points that all have the same {shared[0]}, it" if shared and not said[1:] else "It"
    return f"{same} has {', and of these '.join(said)}"


def _of(points: Sequence[PointResult]) -> str:
    return numbers(sorted(point.number for point in points))


def _next(name: str, direction: Direction, best: float, rivals: Sequence[PointResult]) -> str:
    known = [(value, one.number) for one in rivals if (value := figure(one, name)) is not None]
    if not known:
        return ", and no other has one"
    sign = -1 if direction is Direction.maximize else 1
    value, number = min(known, key=lambda pair: (sign * pair[0], pair[1]))
    shown = units.show(name, value)
    near = "just before" if shown == units.show(name, best) else "next:"
    return f" ({near} point {number}, {shown})"


def _joined(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _short(text: str, length: int) -> str:
    try:
        number = float(text)
        shown = f"{number:.4g}" if len(text) > 6 else text
    except ValueError:
        shown = text
    return units.clip(one_line(shown), length)
