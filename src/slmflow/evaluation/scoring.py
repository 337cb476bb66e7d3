"""Answers to scores, a row at a time, and what all rows together say."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from slmflow.answering.reply import Reply
from slmflow.config.evaluation import Score
from slmflow.config.schema import EvaluationSettings
from slmflow.evaluation.data.example import Example
from slmflow.evaluation.metrics import Metric, score
from slmflow.evaluation.results import FailedMetric, Figure
from slmflow.tracking import follow

MOST_VALUES = 50
"""A tag with more values than this is no slice: an id, say."""

Array = np.ndarray


@dataclass(frozen=True)
class ScoredRow:
    example: Example
    reply: Reply
    scores: Mapping[str, float]  # of the metrics that apply
    failures: Mapping[str, str]  # of the metrics that raised


@dataclass
class Tally:
    """Scores of all rows: eight bytes a row and metric, NaN where a metric does not apply."""

    scores: dict[str, Array]
    texts: Array  # a hash of each answer: two models gave the same one where theirs are equal
    tags: dict[str, list[str]]
    unanswered: int = 0
    first_error: str | None = None
    failed: dict[str, FailedMetric] = field(default_factory=dict)


def score_rows(
    answers: Iterable[tuple[Example, Reply]], metrics: Mapping[str, Metric]
) -> Iterator[ScoredRow]:
    """A row that has no answer scores 0 by every metric that applies to it."""
    for example, reply in answers:
        scores, failures = score(reply.text, example, metrics)
        if reply.error is not None:
            scores, failures = dict.fromkeys(scores, 0.0), {}
        yield ScoredRow(example, reply, scores, failures)


def followed(rows: Iterable[ScoredRow], settings: EvaluationSettings) -> Iterator[ScoredRow]:
    """The same rows; after each window the primary metric's mean so far is reported. Raises
    ``follow.Pruned`` where a sweep has seen enough."""
    total, count = 0.0, 0
    for number, row in enumerate(rows, start=1):
        if (value := row.scores.get(settings.score.primary)) is not None:
            total, count = total + value, count + 1
        yield row
        if number % settings.ask.window_rows == 0 and count:
            follow.report(settings.score.primary, total / count, number)


def tally(rows: Iterable[ScoredRow], count: int, metrics: Iterable[str]) -> Tally:
    """Add up ``count`` rows."""
    made = Tally({name: np.full(count, np.nan) for name in metrics}, np.zeros(count, "u8"), {})
    for index, row in enumerate(rows):
        for name, value in row.scores.items():
            made.scores[name][index] = value
        made.texts[index] = _hash(row.reply.text)
        for tag, named in row.example.tags.items():
            made.tags.setdefault(tag, [""] * count)[index] = named
        if row.reply.error is not None:
            made.unanswered += 1
            made.first_error = made.first_error or row.reply.error
        for name, message in row.failures.items():
            before = made.failed.get(name, FailedMetric(0, message))
            made.failed[name] = FailedMetric(before.rows + 1, before.message)
    made.scores = {
        name: values for name, values in made.scores.items() if np.isfinite(values).any()
    }
    return made


def quality(scores: Mapping[str, Array], settings: Score) -> dict[str, Figure]:
    """The mean of every metric over the rows that it applies to."""
    return {name: _mean(values, settings) for name, values in scores.items()}


def slices(made: Tally, settings: Score) -> dict[str, dict[str, dict[str, Figure]]]:
    """The primary metric over the rows of each value of each tag."""
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    if settings.primary not in made.scores:
        return found
    for tag, values in made.tags.items():
        of_row = np.array(values)
        names = sorted(set(values) - {""})
        if 1 < len(names) <= MOST_VALUES:
            found[tag] = {name: _slice(made, of_row == name, settings) for name in names}
    return found


def _slice(made: Tally, rows: Array, settings: Score) -> dict[str, Figure]:
    inside = {settings.primary: made.scores[settings.primary][rows]}
    return quality({n: v for n, v in inside.items() if np.isfinite(v).any()}, settings)


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    )


def _mean(values: Array, settings: Score) -> Figure:
    from slmflow.evaluation.statistics import mean_interval  # late: scipy takes most of a second

    given = values[np.isfinite(values)]
    return mean_interval(given, settings.confidence, settings.resamples, settings.seed)
