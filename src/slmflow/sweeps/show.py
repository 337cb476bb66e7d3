"""A sweep as a person sees it in the terminal."""

from collections.abc import Sequence

from rich.cells import cell_len

from slmflow import console
from slmflow.drawing import units
from slmflow.sweeps.judge import figure
from slmflow.sweeps.report import words
from slmflow.sweeps.results import PointResult, State, SweepResult

TOP = 10  # points in the table
NARROWEST = 5  # cells of a column that gives way to the others
WIDEST = 16  # characters of a value
BETWEEN = 2  # cells between two columns
MESSAGES = 8  # that differ
MESSAGE_LINES = 6
TITLES = {"decode_tokens_per_second": "tokens/s", "peak_memory_bytes": "memory"}

Column = list[str]  # the title first


def show_sweep(result: SweepResult) -> None:
    _show_table(result)
    console.heading(words.counts(result))
    for sentence in words.verdicts(result):
        console.prose(f"{sentence}.")
    _show_troubles(result)


def _show_table(result: SweepResult) -> None:
    ranked = words.ranked(result)
    shown = [point for point in ranked if point.state is State.finished][:TOP]
    if not shown:
        return
    left_out = len(ranked) - len(shown)
    title = f"best {len(shown)} of {len(ranked)} points" if left_out else "points, best first"
    columns = fitting(_columns(result, shown), console.WIDTH)
    console.table(
        [column[0] for column in columns],
        list(zip(*(column[1:] for column in columns), strict=True)),
        title=title,
    )


def _columns(result: SweepResult, points: Sequence[PointResult]) -> list[Column]:
    numbers = ["point", *(str(point.number) for point in points)]
    objectives = [
        [
            TITLES.get(name) or units.title(name),
            *(units.show(name, figure(point, name)) for point in points),
        ]
        for name in result.objectives
    ]
    chosen = [
        [title, *words.short_values([point.overrides.get(key, "-") for point in points], WIDEST)]
        for key, title in zip(result.keys, words.short_keys(result.keys), strict=True)
    ]
    # In this order they give way from the right.
    return [numbers, *objectives[:1], *chosen, *objectives[1:]]


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Shortened until they stand side by side; the last ones are left out where that is not
    enough. The first is never touched."""
    kept = [list(column) for column in columns]
    while _needed(kept) > width:
        widths = [_width(column) for column in kept]
        widest = max(range(1, len(kept)), key=widths.__getitem__, default=0)
        if widths[widest] > NARROWEST and widest > 0:
            kept[widest] = [_cut(cell, widths[widest] - 1) for cell in kept[widest]]
        elif len(kept) > 1:
            kept.pop()
        else:
            break
    return kept


def _needed(columns: Sequence[Column]) -> int:
    return sum(map(_width, columns)) + BETWEEN * (len(columns) - 1)


def _width(column: Column) -> int:
    return max(map(cell_len, column))


def _cut(text: str, width: int) -> str:
    length = len(text)
    while cell_len(shown := units.clip(text, length)) > width:
        length -= 1
    return shown


def _show_troubles(result: SweepResult) -> None:
    troubles = words.troubles(result)
    for which, message in troubles[:MESSAGES]:
        console.heading(which)
        lines = message.splitlines()
        for line in lines[:MESSAGE_LINES]:
            console.prose(units.clip(words.one_line(line), 400))
        if len(lines) > MESSAGE_LINES:
            console.note(f"({len(lines) - MESSAGE_LINES} more lines are on its run)")
    left_out = len(troubles) - MESSAGES
    if left_out > 0:
        console.note(f"{left_out} more messages are in the sweep's report")
