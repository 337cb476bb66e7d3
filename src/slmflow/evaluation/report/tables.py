"""The tables of the report, as cells of text: HTML and Markdown show the same ones."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmflow.drawing import units
from slmflow.evaluation.report import words
from slmflow.evaluation.results import (
    CandidateResult,
    Comparison,
    Decision,
    Evaluation,
    Figure,
    Verdict,
)

SHOWN_VALUES = 30  # of a tag
TONES = {
    Verdict.better: "good",
    Verdict.worse: "bad",
    Verdict.no_difference_shown: "",
    Verdict.too_few_rows: "unsure",
}


@dataclass(frozen=True)
class Cell:
    text: str
    detail: str = ""  # how far it can be trusted
    tone: str = ""  # good, bad, unsure
    mark: int | None = None  # the candidate that it names, as in the plots


@dataclass(frozen=True)
class Table:
    """The first column names the row; ``texts`` are the other columns that are no numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: frozenset[int] = frozenset()


def summary(evaluation: Evaluation) -> Table:
    shown = [
        evaluation.primary,
        *("decode_tokens_per_second", "first_token_seconds", "peak_memory_bytes", "size_bytes"),
    ]
    present = [name for name in shown if any(name in one.figures for one in evaluation.candidates)]
    ranges = [
        said
        for name, said in (
            (
                evaluation.primary,
                f"below {evaluation.primary} its {words.confidence(evaluation)} confidence "
                "interval",
            ),
            ("decode_tokens_per_second", "below a speed its slowest and fastest round"),
        )
        if name in present
    ]
    return Table(
        "The candidates; " + "; ".join(ranges) if ranges else "The candidates",
        ("model", "weights", *map(_median_title, present), "unanswered"),
        tuple(
            (
                name_cell(evaluation, one.label),
                Cell(one.weights or units.NONE),
                *(figure_cell(name, one.figures.get(name)) for name in present),
                _errors_cell(one),
            )
            for one in evaluation.candidates
        ),
        texts=frozenset({1}),
    )


def quality(evaluation: Evaluation) -> Table:
    names = _measured(evaluation)
    return Table(
        f"Means over the rows with {words.confidence(evaluation)} confidence intervals",
        ("model", *(f"{name}" for name in names)),
        tuple(
            (
                name_cell(evaluation, one.label),
                *(figure_cell(name, one.figures.get(name)) for name in names),
            )
            for one in evaluation.candidates
        ),
    )


def differences(evaluation: Evaluation, comparison: Comparison) -> Table:
    return Table(
        f"{comparison.label} minus {comparison.reference} over the rows that both have; shares in "
        "percentage points",
        ("metric", "difference", "verdict", "p", "rows"),
        tuple(
            (
                Cell(name),
                Cell(
                    units.signed(name, difference.change.value),
                    _signed_spread(name, difference.change),
                ),
                Cell(
                    difference.verdict.value,
                    _needed(difference.rows_needed),
                    TONES[difference.verdict],
                ),
                Cell(
                    units.p_value(difference.p_value).removeprefix("p ").removeprefix("= ")
                    or units.NONE
                ),
                Cell(_rows(difference.change)),
            )
            for name, difference in comparison.differences.items()
        ),
        texts=frozenset({2}),
    )


def gate(evaluation: Evaluation, decision: Decision) -> Table:
    return Table(
        f"Conditions of the gate {decision.gate}",
        ("model", "holds", "why", "metric", "condition"),
        tuple(
            (
                name_cell(evaluation, candidate.label),
                Cell("yes" if outcome.holds else "no", tone="good" if outcome.holds else "bad"),
                Cell(outcome.words),
                Cell(outcome.metric),
                Cell(outcome.condition),
            )
            for candidate in decision.candidates
            for outcome in candidate.outcomes
        ),
        texts=frozenset({1, 2, 3, 4}),
    )


def slices(evaluation: Evaluation) -> list[Table]:
    """A table a tag: the primary metric of every candidate by value."""
    values: dict[str, dict[str, None]] = {}
    for one in evaluation.candidates:
        for tag, by_value in one.slices.items():
            values.setdefault(tag, {}).update(dict.fromkeys(by_value))
    return [_slice(evaluation, tag, list(found)) for tag, found in values.items() if found]


def failures(evaluation: Evaluation) -> Table | None:
    rows = tuple(
        (name_cell(evaluation, one.label), Cell(name), Cell(str(failed.rows)), Cell(failed.message))
        for one in evaluation.candidates
        for name, failed in one.failed_metrics.items()
    )
    columns = ("model", "metric", "rows", "what it said first")
    return Table("Metrics that failed", columns, rows, texts=frozenset({1, 3})) if rows else None


def models(evaluation: Evaluation) -> Table:
    return Table(
        "What was compared",
        ("model", "kind", "runtime", "URI", "digest"),
        tuple(
            (
                name_cell(evaluation, one.label),
                Cell(one.kind.value),
                Cell(one.runtime or units.NONE),
                Cell(one.uri),
                Cell(one.digest),
            )
            for one in evaluation.candidates
        ),
        texts=frozenset({1, 2, 3, 4}),
    )


def facts(caption: str, columns: tuple[str, str], given: Mapping[str, Any]) -> Table:
    """Names and values; nested ones as paths with dots."""
    flat = [(Cell(name), Cell(value)) for name, value in _flat("", given)]
    return Table(caption, columns, tuple(flat), texts=frozenset({1}))


def name_cell(evaluation: Evaluation, label: str) -> Cell:
    labels = [one.label for one in evaluation.candidates]
    reference = evaluation.comparisons and label == evaluation.comparisons[0].reference
    return Cell(
        label,
        "reference" if reference else "",
        mark=labels.index(label) if label in labels else None,
    )


def figure_cell(name: str, figure: Figure | None) -> Cell:
    if figure is None:
        return Cell(units.NONE)
    return Cell(
        units.show(name, figure.value), units.spread(name, figure.low, figure.value, figure.high)
    )


def rounds_cell(name: str, measured: Sequence[float]) -> Cell:
    """The median of what each round measured, and the extremes."""
    if not measured:
        return Cell(units.NONE)
    return figure_cell(name, Figure(statistics.median(measured), min(measured), max(measured)))


def _slice(evaluation: Evaluation, tag: str, values: Sequence[str]) -> Table:
    metric = evaluation.primary
    rows = []
    for value in values[:SHOWN_VALUES]:
        found = [
            one.slices.get(tag, {}).get(value, {}).get(metric) for one in evaluation.candidates
        ]
        counts = [figure.rows for figure in found if figure is not None and figure.rows is not None]
        asked = units.count(max(counts)) if counts else units.NONE
        rows.append((Cell(value), Cell(asked), *(figure_cell(metric, figure) for figure in found)))
    left_out = len(values) - len(rows)
    more = f"; {left_out} more values are not shown" if left_out else ""
    labels = (one.label for one in evaluation.candidates)
    return Table(f"{metric} by {tag}{more}", (tag, "rows", *labels), tuple(rows))


def _measured(evaluation: Evaluation) -> list[str]:
    """Quality metrics that any candidate has, and how it reads the references."""
    names = dict.fromkeys((*evaluation.metrics, "perplexity", "reference_log_likelihood"))
    return [name for name in names if any(name in one.figures for one in evaluation.candidates)]


def _errors_cell(candidate: CandidateResult) -> Cell:
    number = words.errors(candidate)
    return Cell(units.show("errors", number), tone="bad" if number else "")


def _median_title(name: str) -> str:
    return f"{units.title(name)} p50" if name == "first_token_seconds" else units.title(name)


def _signed_spread(name: str, figure: Figure) -> str:
    if figure.low == figure.high:
        return ""
    return f"{units.signed(name, figure.low)} to {units.signed(name, figure.high)}"


def _needed(rows: int | None) -> str:
    return f"about {units.count(rows)} rows needed" if rows else ""


def _rows(figure: Figure) -> str:
    return units.NONE if figure.rows is None else units.count(figure.rows)


def _flat(prefix: str, given: Any) -> list[tuple[str, str]]:
    if isinstance(given, Mapping) and (given or not prefix):
        return [pair for key, value in given.items() for pair in _flat(f"{prefix}.{key}", value)]
    shown = ", ".join(map(str, given)) if isinstance(given, list | tuple) else str(given)
    return [(prefix.removeprefix("."), shown)]
