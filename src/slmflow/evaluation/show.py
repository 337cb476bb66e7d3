"""The evaluation as a person sees it in the terminal."""

from collections.abc import Sequence

from slmflow import console
from slmflow.drawing import units
from slmflow.evaluation.report import words
from slmflow.evaluation.results import CandidateResult, Decision, Evaluation, Row

COLUMNS = (
    ("size", "size_bytes"),
    ("", ""),  # the primary metric
    ("tokens/s", "decode_tokens_per_second"),
    ("TTFT", "first_token_seconds"),
    ("memory", "peak_memory_bytes"),
)
SHOWN_ROWS = 3


def show_evaluation(evaluation: Evaluation) -> None:
    names = [(title or evaluation.primary, name or evaluation.primary) for title, name in COLUMNS]
    console.table(
        ["model", "weights", *(title for title, _ in names)],
        [_row(candidate, [name for _, name in names]) for candidate in evaluation.candidates],
        title=f"{evaluation.dataset.name}, {words.rows(evaluation.dataset)}",
    )
    if len(evaluation.candidates) > 1:
        console.heading("side by side")
    for sentence in words.verdicts(evaluation):
        console.prose(sentence)
    for comparison in evaluation.comparisons:
        same = f"{comparison.agreement:.0%} of the questions"
        console.prose(f"{comparison.label} and {comparison.reference}: same answer to {same}")
        if comparison.parity is not None:
            console.prose(comparison.parity.words)
    timed = any(one.speed is not None for one in evaluation.candidates)
    if timed and words.rounds(evaluation) == words.ONE_ROUND:
        console.prose(f"{words.ONE_ROUND} speed=standard measures three.")
    _show_trouble(evaluation)
    _show_rows(evaluation.disagreements)
    if evaluation.decision is not None:
        show_decision(evaluation.decision)


def show_decision(decision: Decision) -> None:
    console.heading(f"gate {decision.gate}, for {decision.alias}")
    for candidate in decision.candidates:
        console.note(f"{candidate.label}: {'passed' if candidate.passed else 'refused'}")
        for outcome in candidate.outcomes:
            console.note(f"  {'✓' if outcome.holds else '✗'} {outcome.words}")
    console.prose(words.gate(decision))


def _row(candidate: CandidateResult, names: Sequence[str]) -> list[str]:
    figures = candidate.figures
    shown = [units.show(n, figures[n].value) if n in figures else "-" for n in names]
    return [candidate.label, candidate.weights or "-", *shown]


def _show_trouble(evaluation: Evaluation) -> None:
    primary = evaluation.candidates[0].figures.get(evaluation.primary)
    if primary is not None and primary.rows not in (None, evaluation.dataset.rows):
        rows = f"{primary.rows} of the {evaluation.dataset.rows} rows"
        console.prose(f"{evaluation.primary} applies to {rows}; the others have no answer to check")
    for said in words.not_measured(evaluation):
        console.prose(said)
    for candidate in evaluation.candidates:
        unanswered = words.unanswered(candidate, evaluation)
        if unanswered is not None:
            console.prose(unanswered)
        for name, failed in candidate.failed_metrics.items():
            rows = f"{failed.rows} row{'s' * (failed.rows > 1)} of {candidate.label}"
            console.prose(f"{name} failed on {rows}, left out of its mean: {failed.message}")


def _show_rows(rows: Sequence[Row]) -> None:
    """A few questions that the models answer differently, to see what the numbers mean."""
    if rows:
        console.heading("answered differently, for example")
    for row in rows[:SHOWN_ROWS]:
        reference = f" ({row.references[0]})" if row.references else ""
        console.prose(f"{units.clip(row.question, 200)}{reference}")
        for label, answer in row.answers.items():
            console.note(f"  {label}: {units.clip(answer, 200)}")
