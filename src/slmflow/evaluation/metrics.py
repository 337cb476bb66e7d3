"""Scores of one answer, 0 to 1: against its references, the best one counting, or by the checks
of its row (``checks.py``); built in, or a function of the user's own."""

import math
import numbers
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

import numpy as np

from slmflow.errors import ConfigError
from slmflow.evaluation.checks import json_schema, number, regex
from slmflow.evaluation.data.example import Example
from slmflow.evaluation.own_metrics import import_metric
from slmflow.figures import LOWER_IS_BETTER

Metric = Callable[[str, Example], float | None]
"""Answer and example -> score 0 to 1, or ``None`` where the metric does not apply to the row."""

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
WORD = re.compile(r"[^\W_]+")
SLACK = 1e-6  # that rounding may put a score past 0 or 1
LONGEST_MESSAGE = 300  # characters


def correct(answer: str, example: Example) -> float | None:
    """Whether the row's own demands are met: all of its checks; without checks, ``exact_match``."""
    checks = [check(answer, example) for check in (regex, json_schema, number)]
    met = [check for check in checks if check is not None]
    return min(met) if met else exact_match(answer, example)


def exact_match(answer: str, example: Example) -> float | None:
    if not example.references:
        return None
    return float(normalize(answer) in map(normalize, example.references))


def contains_answer(answer: str, example: Example) -> float | None:
    """Whether the words of a reference stand in the answer, in order and side by side."""
    if not example.references:
        return None
    given = f" {normalize(answer)} "
    return float(any(f" {normalize(reference)} " in given for reference in example.references))


def token_f1(answer: str, example: Example) -> float | None:
    """Harmonic mean of the words' precision and recall (SQuAD 2.0's F1)."""
    if not example.references:
        return None
    given = normalize(answer).split()
    return max(_f1(given, normalize(reference).split()) for reference in example.references)


def rouge_l(answer: str, example: Example) -> float | None:
    """ROUGE-L's F1 (Lin 2004, aclanthology.org/W04-1013) by rouge-score, without stemming.

    Words are runs of letters and digits of any script; rouge-score's own are of a-z and 0-9 only,
    and the same for English. The time grows with words of the answer times words of a reference.
    """
    if not example.references:
        return None
    if answer in example.references:  # rouge-score gives 0 where there is no word
        return 1.0
    scorer = _rouge_scorer()
    scores = [scorer.score(reference, answer)["rougeL"] for reference in example.references]
    return max(float(score.fmeasure) for score in scores)


def chrf(answer: str, example: Example) -> float | None:
    """Character n-gram F-score (Popović 2015, aclanthology.org/W15-3049) by sacrebleu with its
    defaults (n up to 6, beta 2, spaces left out), as a fraction."""
    if not example.references:
        return None
    if answer in example.references:  # sacrebleu gives 0 where there is no character
        return 1.0
    score = _chrf_scorer().sentence_score(answer, list(example.references)).score
    return min(float(score) / 100, 1.0)


METRICS: dict[str, Metric] = {
    "correct": correct,
    "exact_match": exact_match,
    "contains_answer": contains_answer,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
    "chrf": chrf,
    "regex": regex,
    "json_schema": json_schema,
    "number": number,
}


def select_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Metrics in the order asked for: built-in names, or ``module:function``, which takes
    ``(answer: str, example: Example)`` and is found in the current folder or on PYTHONPATH.

    Raises ``ConfigError``.
    """
    selected: dict[str, Metric] = {}
    for asked in names:
        name = asked.rpartition(":")[2]
        if name in selected:
            raise ConfigError(f"metrics: {name} is asked for twice in {', '.join(names)}")
        selected[name] = _own_metric(asked, name) if ":" in asked else _built_in(asked)
    return selected


def score(
    answer: str, example: Example, metrics: Mapping[str, Metric]
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores of the metrics that apply, and what those said that failed: a metric that raises, or
    returns no number from 0 to 1, never ends an evaluation."""
    scores: dict[str, float] = {}
    failures: dict[str, str] = {}
    for name, metric in metrics.items():
        try:
            value = metric(answer, example)
            if value is not None:
                scores[name] = _checked(value)
        except Exception as error:  # of code that is not ours
            message = f"{type(error).__name__}: {error}"
            failures[name] = " ".join(message.split())[:LONGEST_MESSAGE]
    return scores, failures


def is_right_wrong(values: np.ndarray) -> bool:
    """Whether scores are right or wrong, 1 or 0, and nothing between."""
    return bool(np.isin(values, (0, 1)).all())


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces, as SQuAD's evaluation does
    (Rajpurkar et al. 2016)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def _f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


class _Words:
    """rouge-score's tokenizer interface."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: seconds

    return RougeScorer(["rougeL"], tokenizer=_Words())


@cache
def _chrf_scorer() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def _built_in(name: str) -> Metric:
    if name in METRICS:
        return METRICS[name]
    close = get_close_matches(name, METRICS, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigError(
        f"metrics: no metric {name!r}{hint}; built in are {', '.join(METRICS)}; "
        "a function of your own is module:function"
    )


def _own_metric(asked: str, name: str) -> Metric:
    if name in METRICS or name in LOWER_IS_BETTER:
        raise ConfigError(
            f"metrics: {asked}: {name} is the name of a figure already; give your function another"
        )
    return import_metric(asked)


def _checked(value: object) -> float:
    if not isinstance(value, numbers.Real | np.bool_):
        raise TypeError(f"returned {value!r}, no number from 0 to 1 and not None")
    score = float(value)
    if not (math.isfinite(score) and -SLACK <= score <= 1 + SLACK):
        raise ValueError(f"returned {score:g}, no number from 0 to 1")
    return min(max(score, 0.0), 1.0)
