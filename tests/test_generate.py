"""Prompts to answers: batching changes how fast, never what."""

import re
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmflow.served.answer import Answer
from slmflow.served.generate import (
    BATCH_ROWS,
    BATCH_TOKENS,
    Prompt,
    PromptError,
    generate,
    plan_batches,
    prepare,
    stream,
)
from slmflow.served.onnx_runtime import OnnxRuntime
from slmflow.served.search import SearchOptions
from tests.fakes import EOS, FakeRuntime

CONTEXT = 8_000
GREEDY = SearchOptions(max_new_tokens=20)
SEEDED = SearchOptions(max_new_tokens=20, temperature=0.5, seed=1)
BEAMS = replace(GREEDY, num_beams=2)
OPTIONS = [
    GREEDY,
    replace(GREEDY, max_new_tokens=5, stop=["b", "cd"]),
    replace(GREEDY, max_new_tokens=None, max_length=60),
    BEAMS,
    SEEDED,
]
PENALISED = [replace(GREEDY, repetition_penalty=1.3), replace(GREEDY, no_repeat_ngram_size=2)]
PLANNED = [*OPTIONS, *PENALISED, replace(SEEDED, seed=None)]


@st.composite
def planned_prompts(draw: st.DrawFn) -> list[Prompt]:
    lengths = st.one_of(st.integers(1, 3), st.integers(1, CONTEXT - 1))
    rows = draw(st.lists(st.tuples(lengths, st.sampled_from(PLANNED)), max_size=60))
    return [
        Prompt((0,) * length, options, draw(st.integers(1, CONTEXT - length)))
        for length, options in rows
    ]


def width(prompts: Sequence[Prompt]) -> int:
    """Tokens of the longest row, as the runtimes reserve them for every row."""
    return max(len(row.ids) for row in prompts) + max(row.new_tokens for row in prompts)


@settings(deadline=None)
@given(planned_prompts())
def test_every_prompt_is_in_exactly_one_batch_that_fits(prompts: list[Prompt]) -> None:
    batches = plan_batches(prompts, CONTEXT)
    assert sorted(index for batch in batches for index in batch) == list(range(len(prompts)))
    for batch in batches:
        rows = [prompts[index] for index in batch]
        assert width(rows) <= CONTEXT
        assert len(rows) <= BATCH_ROWS
        assert len(rows) == 1 or len(rows) * width(rows) <= BATCH_TOKENS


@settings(deadline=None)
@given(planned_prompts())
def test_rows_of_a_batch_can_be_generated_together(prompts: list[Prompt]) -> None:
    for batch in plan_batches(prompts, CONTEXT):
        rows = [prompts[index] for index in batch]
        searches = [
            replace(row.options, max_new_tokens=1, max_length=None, stop=[]) for row in rows
        ]
        assert all(search == searches[0] for search in searches)
        if rows[0].options == SEEDED:
            assert len(rows) == 1
        if rows[0].options in PENALISED:  # padding would be penalised as a part of the prompt
            assert len({len(row.ids) for row in rows}) == 1
        if rows[0].options == BEAMS:  # the best short answer is no piece of the best long one
            assert len({row.new_tokens for row in rows}) == 1


def test_batches_are_as_full_as_the_bounds_allow() -> None:
    short = [Prompt((0,), GREEDY, 20)] * (2 * BATCH_ROWS + 3)
    assert [len(batch) for batch in plan_batches(short, CONTEXT)] == [BATCH_ROWS, BATCH_ROWS, 3]
    long = [Prompt((0,) * (BATCH_TOKENS // 4 - 20), GREEDY, 20)] * 8
    assert [len(batch) for batch in plan_batches(long, CONTEXT)] == [4, 4]
    assert plan_batches([], CONTEXT) == []


TEXTS = st.text("abcd \N{EURO SIGN}", min_size=1, max_size=30).filter(str.strip)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, st.sampled_from(OPTIONS)), max_size=40))
def test_answers_of_a_batch_equal_the_single_answers(
    rows: list[tuple[str, SearchOptions]],
) -> None:
    runtime = FakeRuntime(context_length=60)
    prompts = [
        prepare(runtime, text, options, rendered=True)
        for text, options in rows[:40]
        if len(text.encode()) < 60
    ]
    assert generate(runtime, prompts) == [generate(runtime, [prompt])[0] for prompt in prompts]


def test_answers_keep_the_order_of_the_prompts_though_batches_do_not() -> None:
    runtime = FakeRuntime()
    texts = [f"{'x' * (index * 7 % 40)}{index}" for index in range(100)]
    answers = generate(runtime, [prepare(runtime, text, GREEDY, True) for text in texts])
    assert [answer.text for answer in answers] == [text[::-1][:20] for text in texts]
    assert len(runtime.batches) < 10
    assert [text for batch in runtime.batches for text in batch] != texts


def test_a_long_prompt_and_a_long_answer_share_no_batch_that_is_longer_than_the_context() -> None:
    runtime = FakeRuntime(lambda text, options: "y" * 80, context_length=100)
    options = SearchOptions(max_new_tokens=80)
    prompts = [prepare(runtime, text, options, True) for text in ("a" * 10, "b" * 90)]
    assert [answer.completion_tokens for answer in generate(runtime, prompts)] == [80, 10]


def test_a_batch_ends_when_every_row_has_ended() -> None:
    made: list[int] = []

    class Counting(FakeRuntime):
        def steps(self, *arguments: Any) -> Generator[Sequence[int], None, None]:
            for step in super().steps(*arguments):
                made.append(len(step))
                yield step

    runtime = Counting(lambda text, options: text + ". And so on and on and on")
    options = SearchOptions(max_new_tokens=500, stop=["."])
    prompts = [prepare(runtime, text, options, True) for text in ("One", "Three")]
    assert [answer.text for answer in generate(runtime, prompts)] == ["One", "Three"]
    assert made == [2] * len("Three.")


@settings(deadline=None)
@given(TEXTS, st.sampled_from(OPTIONS))
def test_streamed_pieces_join_to_the_generated_answer(text: str, options: SearchOptions) -> None:
    runtime = FakeRuntime(context_length=120)
    prompt = prepare(runtime, text, options, rendered=True)
    *pieces, last = stream(runtime, prompt)
    (answer,) = generate(runtime, [prompt])
    assert last == answer
    assert all(pieces)
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == answer.text


def test_what_was_held_back_is_streamed_when_the_runtime_ends_by_itself() -> None:
    class Short(FakeRuntime):
        def steps(self, *arguments: Any) -> Generator[Sequence[int], None, None]:
            yield from islice(super().steps(*arguments), 4)

    runtime = Short(lambda text, options: "1 <|end|>")
    prompt = prepare(runtime, "x", replace(GREEDY, stop=["<|end|>"]), True)
    assert list(stream(runtime, prompt)) == ["1", " ", "<|", Answer("1 <|", "length", 1, 4)]


def test_closing_a_stream_stops_the_runtime() -> None:
    closed: list[bool] = []

    class Closing(FakeRuntime):
        def steps(self, *arguments: Any) -> Generator[Sequence[int], None, None]:
            try:
                yield from super().steps(*arguments)
            finally:
                closed.append(True)

    runtime = Closing()
    pieces = stream(runtime, prepare(runtime, "hello", GREEDY, True))
    assert next(iter(pieces)) == "o"
    pieces.close()  # type: ignore[attr-defined]
    assert closed == [True]


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_an_empty_prompt_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="empty"):
        prepare(FakeRuntime(), text, GREEDY, rendered=False)


@pytest.mark.parametrize(
    ("options", "length", "said"),
    [
        (GREEDY, 100, "the prompt has 100 tokens and the model's context allows 100"),
        (GREEDY, 130, "the prompt has 130 tokens and the model's context allows 100"),
        (
            SearchOptions(max_length=50),
            50,
            "the prompt has 50 tokens and search.max_length allows 50",
        ),
        (
            SearchOptions(max_length=500),
            120,
            "the prompt has 120 tokens and the model's context allows 100",
        ),
    ],
)
def test_a_prompt_without_room_for_an_answer_is_refused_with_both_numbers(
    options: SearchOptions, length: int, said: str
) -> None:
    runtime = FakeRuntime(context_length=100)
    with pytest.raises(PromptError, match=re.escape(said)):
        prepare(runtime, "x" * length, options, rendered=False)


def test_the_last_token_of_the_context_can_be_an_answer() -> None:
    runtime = FakeRuntime(context_length=100)
    prompt = prepare(runtime, "x" * 99, GREEDY, rendered=False)
    assert generate(runtime, [prompt]) == [Answer("x", "length", 99, 1)]


class FakeBeams:
    """onnxruntime-genai's generator after a beam search: sequences without their end tokens."""

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self._answers = answers
        self._done = False

    def append_tokens(self, tokens: "np.ndarray[Any, Any]") -> None:
        self._prompts = np.atleast_2d(tokens).tolist()

    def is_done(self) -> bool:
        return self._done

    def generate_next_token(self) -> None:
        self._done = True

    def get_sequence(self, row: int) -> list[int]:
        return [*self._prompts[row], *self._answers[row]]


@pytest.mark.parametrize("rows", [1, 2])
def test_beams_that_ended_by_themselves_say_stop_and_those_at_the_limit_length(rows: int) -> None:
    answers = [b"Hi", b"Hello"][-rows:]
    genai = SimpleNamespace(
        GeneratorParams=lambda model: SimpleNamespace(set_search_options=lambda **options: None),
        Generator=lambda model, params: FakeBeams(answers),
    )
    tokenizer = SimpleNamespace(
        eos_token_ids=[EOS],
        pad_token_id=0,
        encode=lambda text: list(text.encode()),
        decode=lambda ids: bytes(ids.tolist()).decode(),
    )
    config = {"model": {"context_length": 100}}
    runtime = OnnxRuntime(genai, None, tokenizer, Path("nowhere"), config)

    def reasons(new_tokens: int) -> list[str]:
        options = SearchOptions(num_beams=2, max_new_tokens=new_tokens)
        prompts = [prepare(runtime, text, options, True) for text in ("a", "b")[:rows]]
        return [answer.finish_reason for answer in generate(runtime, prompts)]

    assert reasons(new_tokens=6) == ["stop"] * rows
    assert reasons(new_tokens=5) == ["stop", "length"][-rows:]
