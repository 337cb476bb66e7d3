"""Scores of one answer against its references, 0 to 1, the best reference counting."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from sacrebleu.metrics import CHRF

Metric = Callable[[str, Sequence[str]], float]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
CHRF_SCORER = CHRF()


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces, as SQuAD's evaluation does
    (Rajpurkar et al. 2016)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    return float(any(normalize(answer) == normalize(reference) for reference in references))


def contains_answer(answer: str, references: Sequence[str]) -> float:
    """Whether the words of a reference stand in the answer, in order and side by side."""
    given = f" {normalize(answer)} "
    return float(any(f" {normalize(reference)} " in given for reference in references))


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of the words' precision and recall (SQuAD's F1)."""
    return max(_f1(normalize(answer).split(), normalize(ref).split()) for ref in references)


def chrf(answer: str, references: Sequence[str]) -> float:
    """Character n-gram F-score (Popović 2015), by sacrebleu, as a fraction."""
    return float(CHRF_SCORER.sentence_score(answer, list(references)).score) / 100


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "contains_answer": contains_answer,
    "token_f1": token_f1,
    "chrf": chrf,
}


def _f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))
