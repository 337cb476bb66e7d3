"""The story of an evaluation: ask, time and look into each candidate, score, compare, judge."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow

from slmflow import console
from slmflow.config.evaluation import LmEval
from slmflow.config.schema import EvaluationSettings
from slmflow.errors import ConfigError
from slmflow.evaluation import beside, compare, likelihood, record, scoring, speed
from slmflow.evaluation.answers import AnswerStore
from slmflow.evaluation.beside import Beside
from slmflow.evaluation.candidates import Candidate, resolve
from slmflow.evaluation.data.dataset import Dataset
from slmflow.evaluation.environment import environment
from slmflow.evaluation.generation import Answers
from slmflow.evaluation.harness import check_harness, log_harness, run_harness
from slmflow.evaluation.metrics import METRICS, Metric, select_metrics
from slmflow.evaluation.results import (
    CandidateResult,
    Comparison,
    Evaluation,
    Figure,
    Kind,
    Row,
)
from slmflow.evaluation.scoring import Array, Tally
from slmflow.evaluation.speed import Timings
from slmflow.evaluation.subject import Subject
from slmflow.evaluation.traces import traced
from slmflow.sources import PROJECT_ROOT
from slmflow.tracking.run import open_child

DISAGREEMENTS = 20  # rows in the report


@dataclass
class _Work:
    """One candidate and what is found out about it, step by step."""

    candidate: Candidate
    store: AnswerStore
    answers: Answers
    timings: Timings = field(default_factory=Timings)
    beside: Beside = field(default_factory=Beside)
    likelihood: Array | None = None
    tally: Tally | None = None
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.candidate.label


def evaluate_models(
    uris: Sequence[str],
    dataset: Dataset,
    settings: EvaluationSettings,
    parameters: Mapping[str, Any],
    prompts: Path,
) -> Evaluation:
    """Logged to the active run, each candidate to a child of it. The first URI is the reference.

    ``parameters`` override what this project's models were packaged with; ``prompts`` are the
    texts that speed is measured with. Raises ``AskError``, ``DataError`` and ``ConfigError``.
    """
    begun, started = time.monotonic(), datetime.now(UTC)
    metrics = _metrics(settings)
    check_harness(settings.lm_eval.tasks, _folder(settings.lm_eval))
    texts = speed.read_texts(prompts) if settings.speed.rounds else []
    record.log_dataset(dataset)
    with TemporaryDirectory() as scratch, ExitStack() as stack:
        with console.step("find the models") as told:
            candidates = resolve(uris, parameters, Path(scratch) / "models")
            told.append(", ".join(candidate.label for candidate in candidates))
        works = [_work(candidate, dataset, settings, stack) for candidate in candidates]
        for number in range(max(1, settings.speed.rounds)):
            _round(number, works, dataset, settings, texts, Path(scratch))
        for work in works:
            with open_child(work.label):
                _score(work, dataset, settings, metrics, Path(scratch))
                if settings.lm_eval.tasks and work.candidate.kind is Kind.packaged:
                    _run_harness(work.candidate, settings.lm_eval)
        results = [_result(work, settings) for work in works]
        run = mlflow.active_run()
        assert run is not None
        evaluation = Evaluation(
            name=run.info.run_name,
            run_id=run.info.run_id,
            started=started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - begun,
            dataset=dataset.facts,
            primary=settings.score.primary,
            metrics=tuple(_measured(works)),
            confidence=settings.score.confidence,
            candidates=tuple(results),
            comparisons=tuple(_compare(work, works[0], dataset, settings) for work in works[1:]),
            disagreements=tuple(_disagreements(works, dataset, settings.score.primary)),
            environment=environment(),
            settings=record.settings_of(settings),
        )
        _forget_unrepeatable(works)
    return evaluation


def _metrics(settings: EvaluationSettings) -> dict[str, Metric]:
    """The built-in ones and the user's own, and the primary among them."""
    metrics = select_metrics([*METRICS, *settings.score.own_metrics])
    if settings.score.primary not in metrics:
        raise ConfigError(
            f"score.primary is {settings.score.primary!r}; allowed: {', '.join(metrics)}"
        )
    return metrics


def _folder(harness: LmEval) -> Path | None:
    return None if harness.include is None else PROJECT_ROOT / harness.include


def _work(
    candidate: Candidate, dataset: Dataset, settings: EvaluationSettings, stack: ExitStack
) -> _Work:
    store = stack.enter_context(AnswerStore(candidate))
    return _Work(candidate, store, Answers(store, dataset, settings.ask))


def _round(
    number: int,
    works: Sequence[_Work],
    dataset: Dataset,
    settings: EvaluationSettings,
    texts: Sequence[str],
    scratch: Path,
) -> None:
    """Each candidate alone, in a process of its own. The first round also asks the questions."""
    for work in works:
        with Subject(work.candidate, settings.ask.concurrency) as subject:
            if settings.speed.rounds:
                what = f"time {work.label}, round {number + 1} of {settings.speed.rounds}"
                with console.step(what):
                    speed.measure_round(subject, settings.speed, texts, work.timings)
            if number == 0:
                work.answers.complete(subject, work.label)
                _look_into(work, works, subject, dataset, settings, scratch)


def _look_into(
    work: _Work,
    works: Sequence[_Work],
    subject: Subject,
    dataset: Dataset,
    settings: EvaluationSettings,
    scratch: Path,
) -> None:
    if work.candidate.kind is not Kind.packaged:
        return
    if settings.score.likelihood_rows:
        with console.step(f"likelihood of the references under {work.label}"):
            work.likelihood = likelihood.measure(subject, dataset, settings.score.likelihood_rows)
    if settings.parity.rows and len(works) > 1:
        reference = None if work is works[0] else works[0].beside
        with console.step(f"prompts and probabilities of {work.label}"):
            work.beside = beside.look(subject, dataset, settings.parity, reference, scratch)


def _score(
    work: _Work,
    dataset: Dataset,
    settings: EvaluationSettings,
    metrics: Mapping[str, Metric],
    scratch: Path,
) -> None:
    """Score every answer, a row at a time, and log it to the active run."""
    file = scratch / "answers.parquet"
    with console.step(f"score the answers of {work.label}"):
        rows = record.written(scoring.score_rows(work.answers, metrics), metrics, file)
        logged = traced(rows, work.candidate.model_id) if settings.trace else rows
        work.tally = scoring.tally(logged, len(dataset), metrics)
        mlflow.log_artifact(str(file))
        if work.likelihood is not None:
            work.tally.scores[likelihood.METRIC] = likelihood.of_rows(work.likelihood)
        work.figures = _figures(work, work.tally, settings)
        rounds = speed.by_round(work.timings, settings.speed)
        record.log_candidate(work.candidate, work.figures, rounds, work.tally.scores)


def _run_harness(candidate: Candidate, settings: LmEval) -> None:
    with console.step(f"lm-evaluation-harness on {candidate.label}") as told:
        result = run_harness(
            str(candidate.folder),
            settings.tasks,
            settings.limit,
            _folder(settings),
            candidate.parameters,
            chat_template=settings.chat_template,
        )
        log_harness(result, candidate.model_id)
        shown = {name: v for name, v in result.metrics.items() if not name.endswith("_stderr")}
        told += [f"{name.removeprefix('lm_eval/')} {value:.3g}" for name, value in shown.items()]


def _figures(work: _Work, tally: Tally, settings: EvaluationSettings) -> dict[str, Figure]:
    found = scoring.quality(tally.scores, settings.score)
    if work.likelihood is not None:
        uncertain = likelihood.perplexity(work.likelihood, settings.score)
        found |= {"perplexity": uncertain} if uncertain is not None else {}
    if settings.speed.rounds:
        found |= speed.figures(work.timings, settings.speed)
    exact = {"errors": tally.unanswered, "size_bytes": work.candidate.size_bytes}
    return found | {
        name: Figure(float(value), float(value), float(value))
        for name, value in exact.items()
        if value is not None
    }


def _result(work: _Work, settings: EvaluationSettings) -> CandidateResult:
    candidate, tally = work.candidate, work.tally
    assert tally is not None
    return CandidateResult(
        label=candidate.label,
        uri=candidate.uri,
        kind=candidate.kind,
        name=candidate.name,
        version=candidate.version,
        runtime=candidate.runtime,
        weights=candidate.weights,
        digest=candidate.digest,
        figures=work.figures,
        speed=speed.summarize(work.timings, settings.speed) if settings.speed.rounds else None,
        failed_metrics=tally.failed,
        slices=scoring.slices(tally, settings.score),
    )


def _compare(
    work: _Work, reference: _Work, dataset: Dataset, settings: EvaluationSettings
) -> Comparison:
    own, other = work.tally, reference.tally
    assert own is not None and other is not None
    rounds = [speed.by_round(one.timings, settings.speed) for one in (work, reference)]
    parity = None
    if settings.parity.rows:
        sides = (work.beside, work.answers), (reference.beside, reference.answers)
        parity = beside.parity(*sides, dataset, settings.parity)
    return Comparison(
        label=work.label,
        reference=reference.label,
        differences=compare.differences(own, other, settings.score),
        ratios=compare.ratios(work.figures, reference.figures, *rounds),
        agreement=compare.agreement(own, other),
        parity=parity,
    )


def _disagreements(works: Sequence[_Work], dataset: Dataset, primary: str) -> list[Row]:
    sides = [(w.label, w.answers, w.tally) for w in works if w.tally is not None]
    return compare.disagreements(sides, primary, DISAGREEMENTS)


def _measured(works: Sequence[_Work]) -> list[str]:
    """The metrics that apply to any row of any candidate, in their order."""
    names = (name for work in works if work.tally is not None for name in work.tally.scores)
    return list(dict.fromkeys(names))


def _forget_unrepeatable(works: Sequence[_Work]) -> None:
    """Another answer would be as good: the next evaluation draws its own."""
    for work in works:
        if not work.candidate.repeatable:
            work.store.forget()
