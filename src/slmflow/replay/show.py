"""A rerun in the terminal: what has changed, before it runs; what came out, after."""

from collections.abc import Iterable, Sequence

from slmflow import console
from slmflow.drawing.units import clip
from slmflow.replay.circumstances import MEANINGS
from slmflow.replay.record import Record
from slmflow.replay.results import Circumstances, Difference, Finding, Report, Sameness

NONE = "-"
WIDTHS = (20, 27, 27)  # with two spaces before each: less than 80
NAMED = 6  # findings of one kind in the terminal; the page has all
FIRST = ("model", "weights", "code and settings", "probe tokens", "answers", "rows", "gate")
SIGNS = {
    Sameness.identical: "[green]=[/]",
    Sameness.equal: "[green]~[/]",
    Sameness.different: "[red]≠[/]",
    Sameness.noise: "[dim]·[/]",
    Sameness.unknown: "[yellow]?[/]",
}


def show_beginning(record: Record, notes: Sequence[str], pins: Sequence[str]) -> None:
    console.heading(f"rerun: {record.name}, of {record.began}")
    console.note(f"run {record.run_id}")
    for pin in pins:
        console.prose(f"as it was resolved then: {pin}")
    for note in notes:
        console.prose(note)


def show_circumstances(found: Circumstances) -> None:
    if not found.recorded:
        console.prose(
            "code, libraries and machine of then were not recorded (an earlier version of this "
            "project), so that they cannot be compared"
        )
    if not found.differences and not found.others:
        if found.recorded:
            console.note("code, libraries, machine, weights and models are those of then")
        return
    _table(("since then", "was", "is now"), found.differences)
    if found.others:
        names = ", ".join(one.name for one in found.others[:3])
        more = ", ..." if len(found.others) > 3 else ""
        console.prose(f"and {len(found.others)} other packages: {names}{more} (rerun.json)")
    for group, meaning in MEANINGS.items():
        if found.of(group):
            console.prose(meaning)
    if found.advice:
        purpose = "nothing is checked out here; the code of then, beside this checkout"
        console.commands(purpose, [(_purpose(line), line.split("  #")[0]) for line in found.advice])


def show_report(report: Report, place: str) -> None:
    console.heading(f"rerun: {verdict_words(report)}")
    for sameness in (
        *(Sameness.different, Sameness.unknown, Sameness.equal, Sameness.identical),
        Sameness.noise,
    ):
        _findings(sameness, report.of_sameness(sameness))
    console.note(f"the whole page: {place}")


def verdict_words(report: Report) -> str:
    """One sentence without its full stop: of the page, the tag and the terminal."""
    if report.error is not None:
        return f"the run did not finish: {report.error.splitlines()[0]}"
    counted = [
        one for one in report.findings if one.sameness not in (Sameness.noise, Sameness.unknown)
    ]
    if report.verdict is Sameness.unknown:
        return "there was nothing to compare"
    if report.verdict is Sameness.different:
        different = len(report.of_sameness(Sameness.different))
        return f"{different} of {len(counted)} results differ from those of then"
    if report.verdict is Sameness.equal:
        equal = len(report.of_sameness(Sameness.equal))
        return f"the same, {equal} of {len(counted)} results within tolerance"
    return f"identical in all {len(counted)} results" if len(counted) > 1 else "identical"


def _findings(sameness: Sameness, found: Sequence[Finding]) -> None:
    """Those that differ each in a line; of the others, the first ones."""
    ordered = sorted(found, key=lambda one: one.what not in FIRST)
    shown = ordered if sameness is Sameness.different else ordered[:NAMED]
    for one in shown:
        console.marked(SIGNS[sameness], f"{sameness.value}: {one.part}: {one.what}: {one.words}")
    if len(found) > len(shown):
        console.note(f"  and {len(found) - len(shown)} more: {sameness.value}")


def _purpose(line: str) -> str:
    _, marked, purpose = line.partition("  # ")
    return purpose if marked else "a folder of its own"


def _table(heads: tuple[str, str, str], differences: Iterable[Difference]) -> None:
    rows = [heads, *((one.name, one.then or NONE, one.now or NONE) for one in differences)]
    for row in rows:
        cells = [clip(cell, width).ljust(width) for cell, width in zip(row, WIDTHS, strict=True)]
        console.note("  ".join(cells).rstrip())
