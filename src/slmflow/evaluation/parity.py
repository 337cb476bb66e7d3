"""Why a candidate answers otherwise than the reference: template, tokenizer, weights or search.

Pure: what both models showed goes in, the cause and its evidence come out.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from slmflow.evaluation.parity_words import first_difference, in_words
from slmflow.evaluation.results import Cause, Parity

ROUNDING = 1e-6
"""Nats a token that equal weights may be apart. Measured on the demo model against transformers in
float32, 1,788 tokens: ONNX fp32 2e-9 on average, fp16 3e-6, bfloat16 2e-4, int8 1e-2, int4 0.9."""


@dataclass(frozen=True)
class Observation:
    """What a model showed of one row. ``None``: it does not show that."""

    prompt: str | None  # as rendered
    prompt_ids: Sequence[int] | None
    answer_ids: Sequence[int] | None
    answer: str

    @property
    def shows_prompt(self) -> bool:
        return self.prompt is not None and self.prompt_ids is not None


@dataclass(frozen=True)
class Forced:
    """The candidate's probabilities beside the reference's, at each token of the reference's own
    answer to its own prompt. KL(reference || candidate) in nats."""

    tokens: int
    same: int  # where both find the same token likeliest
    kl_sum: float
    kl_max: float

    @property
    def agreement(self) -> float:
        return self.same / self.tokens

    @property
    def kl_mean(self) -> float:
        return self.kl_sum / self.tokens

    @property
    def rounding(self) -> bool:
        return self.kl_mean <= ROUNDING

    @property
    def agrees(self) -> bool:
        return self.same == self.tokens and self.rounding


@dataclass(frozen=True)
class Pair:
    question: str
    reference: Observation
    candidate: Observation

    @property
    def seen(self) -> bool:
        return self.reference.shows_prompt and self.candidate.shows_prompt

    @property
    def same_prompt(self) -> bool:
        return self.reference.prompt == self.candidate.prompt

    @property
    def same_ids(self) -> bool:
        return list(self.reference.prompt_ids or ()) == list(self.candidate.prompt_ids or ())

    @property
    def same_answer(self) -> bool:
        return self.reference.answer == self.candidate.answer


@dataclass(frozen=True)
class Evidence:
    pairs: Sequence[Pair]
    forced: Forced | None
    vocabularies: tuple[int, int] | None

    @property
    def seen(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.seen]

    @property
    def other_prompts(self) -> list[Pair]:
        return [pair for pair in self.seen if not pair.same_prompt]

    @property
    def other_ids(self) -> list[Pair]:
        return [pair for pair in self.seen if not pair.same_ids]

    @property
    def other_answers(self) -> list[Pair]:
        return [pair for pair in self.pairs if not pair.same_answer]

    @property
    def other_vocabulary(self) -> bool:
        return self.vocabularies is not None and len(set(self.vocabularies)) > 1


def compare(
    reference: Sequence[Observation],
    candidate: Sequence[Observation],
    forced: Sequence[Forced] | None,
    questions: Sequence[str],
    vocabularies: tuple[int, int] | None = None,
) -> Parity:
    """The same rows of both, in order.

    ``forced`` is None where probabilities cannot be seen, or not compared because
    ``vocabularies``, how many tokens the logits of reference and candidate tell of, differ. A row
    that one of the two does not show the prompt of counts in none of the figures of prompts.
    """
    rows = zip(questions, reference, candidate, strict=True)
    evidence = Evidence([Pair(*row) for row in rows], _total(forced), vocabularies)
    if not evidence.pairs:
        raise ValueError("no rows to compare; give at least one")
    cause = _cause(evidence)
    seen, others, total = evidence.seen, evidence.other_answers, evidence.forced
    return Parity(
        rows=len(evidence.pairs),
        cause=cause,
        words=in_words(cause, evidence),
        same_prompts=sum(pair.same_prompt for pair in seen) if seen else None,
        same_prompt_tokens=sum(pair.same_ids for pair in seen) if seen else None,
        same_answers=len(evidence.pairs) - len(others),
        first_divergence=_median_place(others, in_tokens=cause is not Cause.unseen),
        top1_agreement=total.agreement if total else None,
        kl_mean=total.kl_mean if total else None,
        kl_max=total.kl_max if total else None,
        example=_example(evidence),
    )


def _example(evidence: Evidence) -> tuple[str, str] | None:
    """What differs first, reference and candidate: prompts, else answers."""
    for pair in evidence.other_prompts[:1]:
        return pair.reference.prompt or "", pair.candidate.prompt or ""
    for pair in evidence.other_answers[:1]:
        return pair.reference.answer, pair.candidate.answer
    return None


def _total(forced: Sequence[Forced] | None) -> Forced | None:
    rows = [row for row in forced or () if row.tokens]
    if not rows:
        return None
    return Forced(
        sum(row.tokens for row in rows),
        sum(row.same for row in rows),
        math.fsum(row.kl_sum for row in rows),
        max(row.kl_max for row in rows),
    )


def _cause(evidence: Evidence) -> Cause:
    """The first, on the way from the question to the answer, that differs."""
    if not evidence.seen:
        return Cause.unseen
    if evidence.other_prompts:
        return Cause.template
    if evidence.other_ids or evidence.other_vocabulary:
        return Cause.tokenizer
    if evidence.forced is not None and not evidence.forced.agrees:
        return Cause.weights
    if evidence.other_answers:
        return Cause.search if evidence.forced is not None else Cause.unseen
    return Cause.none


def _median_place(pairs: Sequence[Pair], in_tokens: bool) -> int | None:
    """Of the first token, or character, that differs."""
    places = []
    for pair in pairs:
        one, other = pair.reference, pair.candidate
        if not in_tokens:
            places.append(first_difference(one.answer, other.answer))
        elif one.answer_ids is not None and other.answer_ids is not None:
            places.append(first_difference(one.answer_ids, other.answer_ids))
    return statistics.median_low(places) if places else None
