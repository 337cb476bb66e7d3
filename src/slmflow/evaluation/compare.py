"""Candidates against the reference: differences, ratios, agreement, and where they disagree."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np

from slmflow.answering.reply import Reply
from slmflow.config.evaluation import Score
from slmflow.evaluation.data.example import Example
from slmflow.evaluation.results import Difference, Figure, Row
from slmflow.evaluation.scoring import Array, Tally

Side = tuple[str, Iterable[tuple[Example, Reply]], Tally]
"""A candidate: its label, its answers in order, its scores."""

SIZES = ("peak_memory_bytes", "device_memory_bytes", "size_bytes")


def differences(candidate: Tally, reference: Tally, settings: Score) -> dict[str, Difference]:
    """By metric, over the rows that both have a score for."""
    from slmflow.evaluation.statistics import difference  # late: scipy takes most of a second

    found = {}
    for name in candidate.scores.keys() & reference.scores.keys():
        own, other = candidate.scores[name], reference.scores[name]
        both = np.isfinite(own) & np.isfinite(other)
        if both.any():
            found[name] = difference(
                own[both],
                other[both],
                confidence=settings.confidence,
                resamples=settings.resamples,
                seed=settings.seed,
                matters=settings.matters,
            )
    return {name: found[name] for name in candidate.scores if name in found}


def ratios(
    candidate: Mapping[str, Figure],
    reference: Mapping[str, Figure],
    candidate_rounds: Mapping[str, Sequence[float]],
    reference_rounds: Mapping[str, Sequence[float]],
) -> dict[str, Figure]:
    """Of the figures as they are shown; of speeds, between the extremes of the paired rounds."""
    from slmflow.evaluation.statistics import ratio

    both = [name for name in candidate if name in reference and reference[name].value]
    values = {name: candidate[name].value / reference[name].value for name in both}
    exact = [name for name in SIZES if name in values]
    found = {name: Figure(values[name], values[name], values[name]) for name in exact}
    for name in candidate_rounds.keys() & reference_rounds.keys() & values.keys():
        if len(candidate_rounds[name]) == len(reference_rounds[name]):
            paired = ratio(candidate_rounds[name], reference_rounds[name])
            value = values[name]
            found[name] = Figure(value, min(paired.low, value), max(paired.high, value))
    return found


def agreement(candidate: Tally, reference: Tally) -> float:
    """Share of the rows that both answer with the same text."""
    return float((candidate.texts == reference.texts).mean())


def disagreements(sides: Sequence[Side], primary: str, most: int) -> list[Row]:
    """The rows on which candidates differ most, with every answer: at most ``most`` are held."""
    chosen = most_different([tally for _, _, tally in sides], primary, most)
    if len(sides) < 2 or not chosen:
        return []
    found = {}
    every = zip(*(answers for _, answers, _ in sides), strict=True)
    for index, row in enumerate(islice(every, max(chosen) + 1)):
        if index in chosen:
            example = row[0][0]
            replies = {side[0]: reply.text for side, (_, reply) in zip(sides, row, strict=True)}
            scores = {label: _scores_at(tally, index) for label, _, tally in sides}
            found[index] = Row(
                example.id, example.question, example.references, example.tags, replies, scores
            )
    return [found[index] for index in chosen]


def most_different(tallies: Sequence[Tally], primary: str, most: int) -> list[int]:
    """Rows on which the candidates differ most: by score, then by the number of answers."""
    texts = np.stack([one.texts for one in tallies])
    answers = np.array([len(set(column)) for column in texts.T])
    order = np.lexsort((np.arange(texts.shape[1]), -answers, -_spread(tallies, primary, answers)))
    return [int(index) for index in order if answers[index] > 1][:most]


def _spread(tallies: Sequence[Tally], primary: str, answers: Array) -> Array:
    given = [one.scores[primary] for one in tallies if primary in one.scores]
    if len(given) < 2:
        return np.zeros(len(answers))
    scores = np.nan_to_num(np.stack(given))
    return np.asarray(scores.max(axis=0) - scores.min(axis=0))


def _scores_at(tally: Tally, index: int) -> dict[str, float]:
    at = {name: float(values[index]) for name, values in tally.scores.items()}
    return {name: value for name, value in at.items() if np.isfinite(value)}
