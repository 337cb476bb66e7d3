"""What is found out about one candidate, step by step, and what it comes to."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from slmflow.config.schema import EvaluationSettings
from slmflow.evaluation import beside, compare, likelihood, scoring, speed
from slmflow.evaluation.answers import AnswerStore
from slmflow.evaluation.beside import Beside
from slmflow.evaluation.candidates import Candidate
from slmflow.evaluation.data.dataset import Dataset
from slmflow.evaluation.generation import Answers
from slmflow.evaluation.results import CandidateResult, Comparison, Figure, Row
from slmflow.evaluation.scoring import Array, Tally
from slmflow.evaluation.speed import Timings

DISAGREEMENTS = 20  # rows in the report


@dataclass
class Findings:
    candidate: Candidate
    store: AnswerStore
    answers: Answers
    timings: Timings = field(default_factory=Timings)
    beside: Beside = field(default_factory=Beside)
    likelihood: Array | None = None
    scored: Tally | None = None  # None: not yet
    figures: dict[str, Figure] = field(default_factory=dict)
    run_id: str = ""  # of the child run

    @property
    def label(self) -> str:
        return self.candidate.label

    @property
    def tally(self) -> Tally:
        assert self.scored is not None, "the answers are scored first"
        return self.scored


def figures_of(found: Findings, settings: EvaluationSettings) -> dict[str, Figure]:
    """By MLflow metric name: quality, speed, memory, size, rows without an answer."""
    named = scoring.quality(found.tally.scores, settings.score)
    if found.likelihood is not None:
        uncertain = likelihood.perplexity(found.likelihood, settings.score)
        named |= {"perplexity": uncertain} if uncertain is not None else {}
    if settings.speed.rounds:
        named |= speed.figures(found.timings, settings.speed)
    exact = {"errors": found.tally.unanswered, "size_bytes": found.candidate.size_bytes}
    return named | {
        name: Figure(float(value), float(value), float(value))
        for name, value in exact.items()
        if value is not None
    }


def result(found: Findings, settings: EvaluationSettings) -> CandidateResult:
    candidate, tally = found.candidate, found.tally
    return CandidateResult(
        label=candidate.label,
        uri=candidate.uri,
        kind=candidate.kind,
        name=candidate.name,
        version=candidate.version,
        runtime=candidate.runtime,
        weights=candidate.weights,
        digest=candidate.digest,
        figures=found.figures,
        speed=speed.summarize(found.timings, settings.speed) if settings.speed.rounds else None,
        first_error=tally.first_error,
        failed_metrics=tally.failed,
        slices=scoring.slices(tally, settings.score),
    )


def comparison(
    found: Findings, reference: Findings, dataset: Dataset, settings: EvaluationSettings
) -> Comparison:
    parity = None
    if settings.parity.rows:
        sides = (found.beside, found.answers), (reference.beside, reference.answers)
        parity = beside.parity(*sides, dataset, settings.parity)
    return Comparison(
        label=found.label,
        reference=reference.label,
        differences=compare.differences(found.tally, reference.tally, settings.score),
        ratios=compare.ratios(
            found.figures,
            reference.figures,
            speed.by_round(found.timings, settings.speed),
            speed.by_round(reference.timings, settings.speed),
        ),
        agreement=compare.agreement(found.tally, reference.tally),
        parity=parity,
    )


def disagreements(every: Sequence[Findings], primary: str) -> list[Row]:
    sides = [(found.label, found.answers, found.tally) for found in every]
    return compare.disagreements(sides, primary, DISAGREEMENTS)


def metrics_that_apply(every: Sequence[Findings]) -> list[str]:
    """To any row of any candidate, in their order."""
    return list(dict.fromkeys(name for found in every for name in found.tally.scores))
