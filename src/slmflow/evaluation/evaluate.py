"""The story of an evaluation: ask, time and look into each candidate, score, compare."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import mlflow

from slmflow import console
from slmflow.checkout import PROJECT_ROOT
from slmflow.config.evaluation import LmEval
from slmflow.config.schema import EvaluationSettings
from slmflow.errors import ConfigError
from slmflow.evaluation import beside, likelihood, record, scoring, speed
from slmflow.evaluation.answers import AnswerStore
from slmflow.evaluation.candidates import Candidate, resolve
from slmflow.evaluation.data.dataset import Dataset
from slmflow.evaluation.environment import environment
from slmflow.evaluation.findings import (
    Findings,
    comparison,
    disagreements,
    figures_of,
    metrics_that_apply,
    result,
)
from slmflow.evaluation.generation import Answers
from slmflow.evaluation.harness import check_harness, log_harness, run_harness
from slmflow.evaluation.metrics import METRICS, Metric, select_metrics
from slmflow.evaluation.results import Evaluation, Kind
from slmflow.evaluation.subject import Subject
from slmflow.evaluation.traces import traced
from slmflow.tracking.run import open_part


@dataclass(frozen=True)
class _Study:
    """What holds for every candidate."""

    dataset: Dataset
    settings: EvaluationSettings
    metrics: Mapping[str, Metric]
    texts: Sequence[str]  # that prompts are cut from
    scratch: Path


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
        study = _Study(dataset, settings, metrics, texts, Path(scratch))
        with console.step("find the models") as told:
            candidates = resolve(uris, parameters, study.scratch / "models")
            told.append(", ".join(candidate.label for candidate in candidates))
        every = [_begin(candidate, study, stack) for candidate in candidates]
        if not settings.speed.rounds:  # else it would be heard in the first measurement
            Thread(target=_import_what_follows, daemon=True).start()  # while the model loads
        for number in range(max(1, settings.speed.rounds)):
            _round(number, every, study)
        for found in every:
            found.figures = figures_of(found, settings)
            rounds = speed.by_round(found.timings, settings.speed)
            record.log_candidate(found, rounds)
        evaluation = _evaluation(every, study, started, begun)
        for found in every:
            if not found.candidate.repeatable:  # the next evaluation draws its own answers
                found.store.forget()
    return evaluation


def _metrics(settings: EvaluationSettings) -> dict[str, Metric]:
    """The built-in ones and the user's own, and the primary among them."""
    metrics = select_metrics([*METRICS, *settings.score.own_metrics])
    if settings.score.primary not in metrics:
        raise ConfigError(
            f"score.primary is {settings.score.primary!r}; allowed: {', '.join(metrics)}"
        )
    return metrics


def _begin(candidate: Candidate, study: _Study, stack: ExitStack) -> Findings:
    store = stack.enter_context(AnswerStore(candidate))
    return Findings(candidate, store, Answers(store, study.dataset, study.settings.ask))


def _round(number: int, every: Sequence[Findings], study: _Study) -> None:
    """Each candidate alone, in a process of its own. The first round also asks the questions, in
    a child run."""
    settings = study.settings
    for found in every:
        with Subject(found.candidate, settings.ask.concurrency) as subject:
            if settings.speed.rounds:
                what = f"time {found.label}, round {number + 1} of {settings.speed.rounds}"
                with console.step(what):
                    speed.measure_round(subject, settings.speed, study.texts, found.timings)
            if number == 0:
                with open_part(found.label) as run:
                    found.run_id = run.info.run_id
                    _ask(found, subject, study, follow=found is every[-1])
                    if found.candidate.kind is Kind.packaged:
                        _look_into(found, every, subject, study)


def _import_what_follows() -> None:
    """The libraries that statistics and report need take two seconds."""
    for name in ("statistics", "report.html"):
        import_module(f"slmflow.evaluation.{name}")


def _ask(found: Findings, subject: Subject, study: _Study, follow: bool) -> None:
    """Every row asked, scored and logged to the active run, while the next ones are answered.

    ``follow``: a sweep may stop the whole evaluation by how this candidate does.
    """
    metrics, file = study.metrics, study.scratch / "answers.parquet"
    with console.progress(f"ask and score {found.label}", total=len(study.dataset)) as bar:
        scored = scoring.score_rows(found.answers.asked(subject, bar), metrics)
        if follow:
            scored = scoring.followed(scored, study.settings)
        rows = record.written(scored, metrics, file)
        logged = traced(rows, found.candidate.model_id) if study.settings.trace else rows
        found.scored = scoring.tally(logged, len(study.dataset), metrics)
    mlflow.log_artifact(str(file))


def _look_into(found: Findings, every: Sequence[Findings], subject: Subject, study: _Study) -> None:
    dataset, settings = study.dataset, study.settings
    if settings.score.likelihood_rows:
        with console.step(f"likelihood of the references under {found.label}"):
            rows = settings.score.likelihood_rows
            found.likelihood = likelihood.measure(subject, dataset, rows)
        if found.likelihood is not None:
            found.tally.scores[likelihood.METRIC] = likelihood.of_rows(found.likelihood)
    if settings.parity.rows and len(every) > 1:
        reference = None if found is every[0] else every[0].beside
        with console.step(f"prompts and probabilities of {found.label}"):
            found.beside = beside.look(subject, dataset, settings.parity, reference, study.scratch)
    if settings.lm_eval.tasks:
        _run_harness(found.candidate, settings.lm_eval)


def _run_harness(candidate: Candidate, settings: LmEval) -> None:
    with console.step(f"lm-evaluation-harness on {candidate.label}") as told:
        found = run_harness(
            str(candidate.folder),
            settings.tasks,
            settings.limit,
            _folder(settings),
            candidate.parameters,
            chat_template=settings.chat_template,
        )
        log_harness(found, candidate.model_id)
        shown = {name: v for name, v in found.metrics.items() if not name.endswith("_stderr")}
        told += [f"{name.removeprefix('lm_eval/')} {value:.3g}" for name, value in shown.items()]


def _folder(harness: LmEval) -> Path | None:
    return None if harness.include is None else PROJECT_ROOT / harness.include


def _evaluation(
    every: Sequence[Findings], study: _Study, started: datetime, begun: float
) -> Evaluation:
    settings, dataset = study.settings, study.dataset
    run = mlflow.active_run()
    assert run is not None
    return Evaluation(
        name=run.info.run_name,
        run_id=run.info.run_id,
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - begun,
        dataset=dataset.facts,
        primary=settings.score.primary,
        metrics=tuple(metrics_that_apply(every)),
        confidence=settings.score.confidence,
        candidates=tuple(result(found, settings) for found in every),
        comparisons=tuple(comparison(one, every[0], dataset, settings) for one in every[1:]),
        disagreements=tuple(disagreements(every, settings.score.primary)),
        environment=environment(),
        settings=record.settings_of(settings),
    )
