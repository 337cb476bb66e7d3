"""What the person sees: named steps with their times, tables, next commands. To stdout."""

import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from slmflow.redaction import redacted

WIDTH = 80  # tables must fit a terminal of this width


@cache
def console() -> Console:
    """One for all, so that a line does not run into a spinner. Paths are never cut or wrapped."""
    return Console(highlight=False, soft_wrap=True)


def _shown(text: str) -> str:
    """As it stands, but for secrets."""
    return escape(redacted(text))


def heading(text: str) -> None:
    console().print(f"\n[bold]{_shown(text)}[/]")


def note(text: str) -> None:
    console().print(f"  {_shown(text)}")


def prose(text: str) -> None:
    """A sentence that may be long, in lines that fit the terminal."""
    for line in textwrap.wrap(
        redacted(text), WIDTH - 2, break_long_words=False, break_on_hyphens=False
    ):
        note(line)


@contextmanager
def step(text: str) -> Iterator[list[str]]:
    """Show a step while it runs and one line when it is done.

    What the caller appends to the yielded list is added to that line.
    """
    details: list[str] = []
    out = console()
    started = time.monotonic()
    with out.status(_shown(text)):
        try:
            yield details
        except BaseException:
            out.print(f"  [red]✗[/] {_shown(text)}")
            raise
    seconds = time.monotonic() - started
    tail = f": {', '.join(details)}" if details else ""
    out.print(f"  [green]✓[/] {_shown(text + tail)} [dim]({seconds:.1f} s)[/]")


def mark(sign: str, text: str, seconds: float | None) -> None:
    """One line of many that are told as they end; ``sign`` is rich's markup."""
    tail = "" if seconds is None else f" [dim]({seconds:.1f} s)[/]"
    console().print(f"  {sign} {_shown(text)}{tail}")


def marked(sign: str, text: str) -> None:
    """The same of a sentence that may be long, in lines that fit the terminal."""
    first, *others = textwrap.wrap(
        redacted(text), WIDTH - 4, break_long_words=False, break_on_hyphens=False
    )
    mark(sign, first, None)
    for line in others:
        note(f"  {line}")


@contextmanager
def progress(text: str, total: int, steady: bool = True) -> Iterator["Bar"]:
    """A bar with count, time and time left for long work; one line when there is no terminal.

    ``steady``: what is counted goes fast enough for a rate, by which the time left is told. Where
    it does not, the caller may tell the time left with ``Bar.describe``.
    """
    columns: list[ProgressColumn] = [
        TextColumn("  {task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        *([_Rate()] if steady else []),
        TimeElapsedColumn(),
        *([TimeRemainingColumn()] if steady else []),
    ]
    out = console()
    started = time.monotonic()
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        task = bars.add_task(text, total=total)
        bar = Bar(bars, task)
        try:
            yield bar
        except BaseException:
            out.print(f"  [red]✗[/] {_shown(text)}")
            raise
    seconds = time.monotonic() - started
    rate = _rate(total / seconds) if seconds > 0 else ""
    tail = f": {', '.join(bar.details)}" if bar.details else ""
    out.print(f"  [green]✓[/] {_shown(text + tail)} [dim]({total} in {seconds:.1f} s{rate})[/]")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else _rate(speed).removeprefix(", "))


def _rate(per_second: float) -> str:
    return f", {per_second:,.0f}/s" if per_second >= 100 else f", {per_second:.2g}/s"


class Bar:
    """``details`` are added to the line that stays when the work is done."""

    def __init__(self, bars: Progress, task: object) -> None:
        self.details: list[str] = []
        self._bars = bars
        self._task = task

    def describe(self, text: str) -> None:
        """In place of the text that it began with, while it runs."""
        self._bars.update(self._task, description=text)  # type: ignore[arg-type]

    def advance(self, rows: int = 1) -> None:
        self._bars.advance(self._task, rows)  # type: ignore[arg-type]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """The first column is text, the others are numbers."""
    shown = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, box=None)
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(_shown(cell) for cell in row))
    console().print("", shown, sep="\n", width=WIDTH)


def commands(title: str, lines: Sequence[tuple[str, str]]) -> None:
    """Next commands: what each is for, and what to type."""
    out = console()
    out.print(f"\n[bold]{_shown(title)}[/]")
    for purpose, command in lines:
        out.print(f"  [dim]# {_shown(purpose)}[/]\n  {_shown(command)}")


def size(count: float) -> str:
    """Bytes for people, in powers of 1000 as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
