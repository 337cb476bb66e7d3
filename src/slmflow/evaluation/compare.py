"""Answers to results: scores, speed, agreement. Pure: nothing here runs a model or logs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from slmflow.answering.ask import Reply, Session
from slmflow.evaluation.dataset import Example
from slmflow.evaluation.metrics import METRICS


@dataclass(frozen=True)
class Result:
    """One model's answers and what they are worth. Times in seconds, sizes in bytes.

    ``weights`` is their type (int4, float32), where the registry knows it. ``scores`` has one list
    a metric, one value an example.
    """

    label: str
    uri: str
    weights: str
    replies: Sequence[Reply]
    scores: Mapping[str, Sequence[float]]
    metrics: Mapping[str, float]


def score(replies: Sequence[Reply], examples: Sequence[Example]) -> dict[str, list[float]]:
    pairs = list(zip(replies, examples, strict=True))
    return {
        name: [metric(reply.text, example.references) for reply, example in pairs]
        for name, metric in METRICS.items()
    }


def summarize(
    session: Session, scores: Mapping[str, Sequence[float]], size_bytes: int | None
) -> dict[str, float]:
    """The numbers of one model under their MLflow metric names.

    ``tokens_per_second`` counts the tokens of all answers over the time from question to the end
    of the answer, one question at a time. Quality is the mean over the examples.
    """
    metrics = {name: statistics.fmean(values) for name, values in scores.items()}
    metrics |= _speed(session.replies)
    metrics["load_seconds"] = session.load_seconds
    metrics["peak_memory_bytes"] = float(session.peak_memory_bytes)
    if size_bytes is not None:
        metrics["size_bytes"] = float(size_bytes)
    return metrics


def agreement(results: Sequence[Result]) -> dict[tuple[str, str], float]:
    """Share of the examples that two models answer with the same text, for every pair."""
    return {
        (one.label, other.label): statistics.fmean(
            float(a.text == b.text) for a, b in zip(one.replies, other.replies, strict=True)
        )
        for one, other in combinations(results, 2)
    }


def _speed(replies: Sequence[Reply]) -> dict[str, float]:
    speed = {"answer_seconds_median": statistics.median(reply.seconds for reply in replies)}
    counted = [reply for reply in replies if reply.completion_tokens is not None]
    if counted:
        tokens = sum(reply.completion_tokens or 0 for reply in counted)
        speed["tokens_per_second"] = tokens / sum(reply.seconds for reply in counted)
    first = [
        reply.first_token_seconds for reply in replies if reply.first_token_seconds is not None
    ]
    if first:
        speed["first_token_seconds_median"] = statistics.median(first)
    return speed
