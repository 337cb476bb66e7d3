"""The cause of a difference, from what two models showed."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmflow.evaluation.parity import Forced, Observation, compare
from slmflow.evaluation.results import Cause, Parity

SAME = Forced(tokens=4, same=4, kl_sum=0.0, kl_max=0.0)
OTHER = Forced(tokens=4, same=3, kl_sum=0.4, kl_max=0.3)

IDS = st.lists(st.integers(0, 9), min_size=1, max_size=5)
OBSERVATIONS = st.builds(Observation, st.text(min_size=1, max_size=9), IDS, IDS, st.text())
ROWS = st.lists(OBSERVATIONS, min_size=1, max_size=5)


def row(prompt: str = "<user>Hi", answer: str = "Hello", name: int = 0) -> Observation:
    ids, answered = [ord(letter) for letter in prompt], [ord(letter) for letter in answer]
    return Observation(prompt, [*ids, name], answered, answer)


def compared(
    reference: Sequence[Observation],
    candidate: Sequence[Observation],
    forced: Sequence[Forced] | None = (SAME,),
    vocabularies: tuple[int, int] | None = None,
) -> Parity:
    questions = [f"question {index}" for index in range(len(reference))]
    return compare(reference, candidate, forced, questions, vocabularies)


# Laws.


@given(ROWS, st.sampled_from([None, [SAME]]))
def test_a_model_beside_itself_has_no_cause_to_differ(
    rows: list[Observation], forced: list[Forced] | None
) -> None:
    found = compared(rows, rows, forced)
    assert found.cause is Cause.none
    assert found.rows == found.same_prompts == found.same_prompt_tokens == found.same_answers
    assert (found.first_divergence, found.example) == (None, None)


@given(
    st.integers(1, 4),
    st.fixed_dictionaries({name: st.booleans() for name in ("prompt", "ids", "answer", "weights")}),
    st.booleans(),
)
def test_the_first_difference_on_the_way_to_the_answer_is_the_cause(
    rows: int, differs: dict[str, bool], seen: bool
) -> None:
    reference = [row()] * rows
    candidate = [row()] * (rows - 1)
    last = row()
    if differs["prompt"]:
        last = replace(last, prompt="<system>Hi")
    if differs["ids"]:
        last = replace(last, prompt_ids=[1, 2, 3])
    if differs["answer"]:
        last = replace(last, answer="Bye", answer_ids=[1])
    if not seen:
        last = replace(last, prompt=None, prompt_ids=None)
        candidate = [last] * (rows - 1)
    found = compared(reference, [*candidate, last], [OTHER if differs["weights"] else SAME])

    order = [
        (not seen, Cause.unseen),
        (differs["prompt"], Cause.template),
        (differs["ids"], Cause.tokenizer),
        (differs["weights"], Cause.weights),
        (differs["answer"], Cause.search),
        (True, Cause.none),
    ]
    assert found.cause is next(cause for holds, cause in order if holds)
    assert found.words.endswith(".")
    assert len(found.words.split(". ")) <= 3


@given(ROWS, ROWS, st.none() | st.lists(st.sampled_from([SAME, OTHER])))
def test_whatever_was_shown_the_figures_are_within_the_rows(
    one: list[Observation], other: list[Observation], forced: list[Forced] | None
) -> None:
    rows = min(len(one), len(other))
    found = compared(one[:rows], other[:rows], forced)
    for count in (found.same_prompts, found.same_prompt_tokens, found.same_answers):
        assert count is not None
        assert 0 <= count <= rows
    same = found.same_answers == rows and found.cause is not Cause.template
    assert (found.example is None) == same
    assert (found.top1_agreement is None) == (not forced)


# What each cause says.


def test_a_template_is_shown_where_the_prompts_part() -> None:
    long = "x" * 100
    found = compared(
        [row(f"{long}<|end|>\n<|assistant|>\n{long}")], [row(f"{long}<|end|><|assistant|>{long}")]
    )
    assert found.cause is Cause.template
    assert "1 of 1 prompts are rendered otherwise" in found.words
    assert r'"…xxxxxxxxxxxxxxxxx<|end|>\n<|assistant|>\nxxxxxxxxx…" by the reference' in found.words
    assert '"…xxxxxxxxxxxxxxxxx<|end|><|assistant|>xxxxxxxxxxx…" by the candidate' in found.words
    assert "weights agree on the likeliest token in 100% of 4 tokens" in found.words
    assert "so the template alone is the fault" in found.words


def test_a_template_and_weights_that_both_differ_are_both_told() -> None:
    found = compared([row("a")], [row("b")], [OTHER])
    assert found.cause is Cause.template
    assert "weights differ as well" in found.words
    assert "75% of 4 tokens (KL divergence 0.1 nats a token, 0.3 at most)" in found.words
    assert (found.top1_agreement, found.kl_mean, found.kl_max) == (0.75, 0.1, 0.3)


def test_a_template_without_probabilities_leaves_the_weights_open() -> None:
    found = compared([row("a")], [row("b")], None)
    assert found.cause is Cause.template
    assert "Whether the weights agree could not be seen." in found.words


def test_a_tokenizer_is_shown_where_the_tokens_part() -> None:
    found = compared([row(), row("abc", name=7)], [row(), row("abc", name=8)])
    assert found.cause is Cause.tokenizer
    assert found.same_prompts == 2
    assert found.same_prompt_tokens == 1
    assert "1 of 2 prompts become other tokens" in found.words
    assert 'first at token 3 of "question 1": [7] in the reference, [8]' in found.words
    assert "so the tokenizer alone is the fault" in found.words


def test_vocabularies_of_other_sizes_are_another_tokenizer() -> None:
    found = compared([row()], [row()], None, vocabularies=(32_064, 2_048))
    assert found.cause is Cause.tokenizer
    assert "32064 tokens and the candidate's 2048" in found.words
    assert (found.top1_agreement, found.kl_mean, found.kl_max) == (None, None, None)
    assert compared([row()], [row()], None, vocabularies=(7, 7)).cause is Cause.none


def test_weights_are_told_with_their_distance_and_what_came_of_it() -> None:
    reference = [row(), row(answer="Yes")]
    found = compared(reference, [row(), row(answer="Yet")], [SAME, OTHER])
    assert found.cause is Cause.weights
    assert "likeliest token in 87.5% of 8 tokens (KL divergence 0.05 nats a token" in found.words
    assert '1 of 2 answers differ, first to "question 1"' in found.words
    assert found.example == ("Yes", "Yet")
    assert found.first_divergence == 2
    assert "all of 2 answers are the same" in compared(reference, reference, [OTHER]).words


@pytest.mark.parametrize(
    ("kl", "same", "cause"),
    [
        (2e-9, 4, Cause.none),  # float32 in two runtimes
        (2.7e-6, 4, Cause.weights),  # float16
        (2e-9, 3, Cause.weights),
        (float("nan"), 4, Cause.weights),
    ],
)
def test_rounding_is_no_difference_as_long_as_the_likeliest_tokens_agree(
    kl: float, same: int, cause: Cause
) -> None:
    found = compared([row()], [row()], [Forced(4, same, 4 * kl, kl)])
    assert found.cause is cause
    assert ("by rounding only" in found.words) == (same == 3)


def test_all_but_one_of_many_tokens_is_not_100_percent() -> None:
    found = compared([row()], [row()], [Forced(100_000, 99_999, 0.0, 0.0)])
    assert "99.9% of 100000 tokens" in found.words


def test_the_search_is_left_where_all_before_it_agrees() -> None:
    found = compared([row()], [row(answer="Hell")])
    assert found.cause is Cause.search
    assert "1 of 1 answers differ" in found.words
    assert "the search differs, in its options or in the runtime" in found.words
    assert found.first_divergence == 4


def test_without_probabilities_weights_and_search_cannot_be_told_apart() -> None:
    found = compared([row()], [row(answer="Help")], None)
    assert found.cause is Cause.unseen
    assert "it is the weights or the search" in found.words
    assert found.same_prompts == 1


def test_answers_alone_are_compared_by_character() -> None:
    answers = [("Madrid", "Madras"), ("Rome", "Rome"), ("Paris", "Part")]
    reference = [row(answer=one) for one, _ in answers]
    candidate = [Observation(None, None, None, other) for _, other in answers]
    found = compared(reference, candidate, None)
    assert found.cause is Cause.unseen
    assert (found.same_prompts, found.same_prompt_tokens, found.same_answers) == (None, None, 1)
    assert found.first_divergence == 3
    assert found.words == (
        "The prompts and probabilities of the candidate cannot be seen, only answers: "
        '2 of 3 answers differ, first to "question 0".'
    )
    assert "of the reference cannot" in compared(candidate, reference, None).words
    assert "reference and the candidate cannot" in compared(candidate, candidate, None).words


def test_a_row_that_one_does_not_show_does_not_hide_the_others() -> None:
    hidden = Observation(None, None, None, "")
    found = compared([row("a"), row()], [row("b"), hidden])
    assert found.cause is Cause.template
    assert (found.rows, found.same_prompts) == (2, 0)
    assert "1 of 1 prompts" in found.words


def test_every_row_needs_its_counterpart() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compared([row(), row()], [row()])
    with pytest.raises(ValueError, match="no rows to compare"):
        compared([], [])
