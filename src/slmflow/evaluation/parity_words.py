"""The cause of a difference in plain words, with the evidence; see ``parity.py``."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slmflow.evaluation.results import Cause

if TYPE_CHECKING:
    from slmflow.evaluation.parity import Evidence, Forced, Pair  # which itself imports this module

EXCERPT = 24  # characters shown before and after the first place that differs


def in_words(cause: Cause, evidence: "Evidence") -> str:
    """One to three sentences, with numbers."""
    says = {
        Cause.none: _none_words,
        Cause.template: _template_words,
        Cause.tokenizer: _tokenizer_words,
        Cause.weights: _weights_words,
        Cause.search: _search_words,
        Cause.unseen: _unseen_words,
    }
    return says[cause](evidence)


def _none_words(evidence: "Evidence") -> str:
    words = f"Prompts, tokens and answers are the same in all of {len(evidence.pairs)} rows"
    if evidence.forced is None:
        return f"{words}; probabilities were not compared."
    return f"{words}, and {_agreement(evidence.forced)}."


def _template_words(evidence: "Evidence") -> str:
    others = evidence.other_prompts
    one, other = _excerpts(others[0].reference.prompt or "", others[0].candidate.prompt or "")
    return (
        f"The chat template differs: {len(others)} of {len(evidence.seen)} prompts are rendered "
        f"otherwise, first {one} by the reference and {other} by the candidate."
        f"{_beside(evidence, 'template')}"
    )


def _tokenizer_words(evidence: "Evidence") -> str:
    if not evidence.other_ids:
        return f"The tokenizer differs:{_beside(evidence, 'tokenizer')}"
    first = evidence.other_ids[0]
    one, other = list(first.reference.prompt_ids or ()), list(first.candidate.prompt_ids or ())
    place = first_difference(one, other)
    return (
        f"The tokenizer differs: {len(evidence.other_ids)} of {len(evidence.seen)} prompts become "
        f"other tokens, first at token {place} of {_question(first)}: "
        f"{one[place : place + 3]} in the reference, {other[place : place + 3]} in the candidate."
        f"{_beside(evidence, 'tokenizer')}"
    )


def _beside(evidence: "Evidence", what: str) -> str:
    """What the weights say where something before them differs already."""
    if evidence.other_vocabulary and evidence.vocabularies is not None:
        one, other = evidence.vocabularies
        return (
            f" The reference's vocabulary has {one} tokens and the candidate's {other}, so their "
            "weights cannot be compared."
        )
    total = evidence.forced
    if total is None:
        return " Whether the weights agree could not be seen."
    if total.agrees:
        return (
            f" With the reference's own prompts {_agreement(total)}, so the {what} alone is the "
            "fault."
        )
    return f" The weights differ as well: with the reference's own prompts {_agreement(total)}."


def _weights_words(evidence: "Evidence") -> str:
    assert evidence.forced is not None
    total, words = evidence.forced, _agreement(evidence.forced)
    then = f"The reference's own answers read by both, {words}; {_answers(evidence)}."
    if total.rounding:
        return f"The probabilities differ by rounding only, between tokens almost equal. {then}"
    return f"The weights differ. {then}"


def _search_words(evidence: "Evidence") -> str:
    assert evidence.forced is not None
    return (
        f"Prompts and tokens are the same and {_agreement(evidence.forced)}, yet "
        f"{_answers(evidence)}: the search differs, in its options or in the runtime."
    )


def _unseen_words(evidence: "Evidence") -> str:
    if evidence.seen:
        return (
            f"Prompts and tokens are the same, yet {_answers(evidence)}; the probabilities could "
            "not be seen, so it is the weights or the search."
        )
    hidden = [
        name
        for name, sides in (
            ("the reference", [pair.reference for pair in evidence.pairs]),
            ("the candidate", [pair.candidate for pair in evidence.pairs]),
        )
        if not all(side.shows_prompt for side in sides)
    ]
    return (
        f"The prompts and probabilities of {' and '.join(hidden)} cannot be seen, only answers: "
        f"{_answers(evidence)}."
    )


def _agreement(total: "Forced") -> str:
    share = 100 if total.agreement == 1 else min(99.9, round(100 * total.agreement, 1))
    return (
        f"the weights agree on the likeliest token in {share:g}% of {total.tokens} tokens "
        f"(KL divergence {total.kl_mean:.2g} nats a token, {total.kl_max:.2g} at most)"
    )


def _answers(evidence: "Evidence") -> str:
    others = evidence.other_answers
    if not others:
        return f"all of {len(evidence.pairs)} answers are the same"
    return f"{len(others)} of {len(evidence.pairs)} answers differ, first to {_question(others[0])}"


def _question(pair: "Pair") -> str:
    asked = pair.question
    return _quoted(asked if len(asked) <= 2 * EXCERPT else f"{asked[: 2 * EXCERPT]}…")


def _excerpts(one: str, other: str) -> tuple[str, str]:
    """Both around the first place that differs."""
    place = first_difference(one, other)
    start, end = max(0, place - EXCERPT), place + EXCERPT

    def excerpt(text: str) -> str:
        return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"

    return _quoted(excerpt(one)), _quoted(excerpt(other))


def _quoted(text: str) -> str:
    """On one line, with line ends that can be seen."""
    return json.dumps(text, ensure_ascii=False)


def first_difference(one: Sequence[object], other: Sequence[object]) -> int:
    """Index of the first item that differs; the shorter one's length where none does."""
    equal = (a == b for a, b in zip(one, other, strict=False))
    return next((i for i, same in enumerate(equal) if not same), min(len(one), len(other)))
