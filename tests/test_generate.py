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
    Batch,
    Event,
    Prompt,
    PromptError,
    generate,
    next_batch,
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
FREQUENCY = replace(GREEDY, frequency_penalty=0.5)
LEAST = replace(GREEDY, min_new_tokens=4)
PLANNED = [*OPTIONS, *PENALISED, FREQUENCY, replace(SEEDED, seed=None), LEAST]
SCHEMA = '{"type": "object"}'


@st.composite
def planned_prompts(draw: st.DrawFn) -> list[Prompt]:
    lengths = st.one_of(st.integers(1, 3), st.integers(1, CONTEXT - 1))
    rows = draw(st.lists(st.tuples(lengths, st.sampled_from(PLANNED)), max_size=60))
    return [
        Prompt(
            (0,) * length,
            options,
            draw(st.integers(1, CONTEXT - length)),
            SCHEMA if options == GREEDY and draw(st.booleans()) else None,
        )
        for length, options in rows
    ]


def width(prompts: Sequence[Prompt]) -> int:
    """Tokens of the longest row, as the runtimes reserve them for every row."""
    return max(len(row.ids) for row in prompts) + max(row.new_tokens for row in prompts)


def check_batch(rows: Sequence[Prompt]) -> None:
    """It fits, and its rows can be generated together."""
    assert width(rows) <= CONTEXT
    assert len(rows) <= BATCH_ROWS
    assert len(rows) == 1 or len(rows) * width(rows) <= BATCH_TOKENS
    searches = [replace(row.options, max_new_tokens=None, max_length=2, stop=[]) for row in rows]
    assert all(search == searches[0] for search in searches)
    if rows[0].options == SEEDED or any(row.schema is not None for row in rows):
        assert len(rows) == 1
    if rows[0].options in PENALISED:  # padding would be penalised as a part of the prompt
        assert len({len(row.ids) for row in rows}) == 1
    if rows[0].options == BEAMS:  # the best short answer is no piece of the best long one
        assert len({row.new_tokens for row in rows}) == 1


@settings(deadline=None)
@given(planned_prompts())
def test_every_prompt_is_in_exactly_one_batch_that_can_be_generated(prompts: list[Prompt]) -> None:
    batches = plan_batches(prompts, CONTEXT)
    assert sorted(index for batch in batches for index in batch) == list(range(len(prompts)))
    for batch in batches:
        check_batch([prompts[index] for index in batch])


@settings(deadline=None)
@given(planned_prompts())
def test_the_next_batch_is_the_first_prompt_and_what_can_be_generated_with_it(
    prompts: list[Prompt],
) -> None:
    while prompts:
        batch = next_batch(prompts, CONTEXT)
        assert batch[0] == 0
        assert batch == sorted(set(batch))
        check_batch([prompts[index] for index in batch])
        prompts = [prompt for index, prompt in enumerate(prompts) if index not in batch]


def test_the_next_batch_takes_what_came_first_and_is_as_full_as_the_bounds_allow() -> None:
    greedy, sampled = Prompt((0,), GREEDY, 20), Prompt((0,), replace(SEEDED, seed=None), 20)
    alone = [replace(greedy, schema=SCHEMA), Prompt((0,), SEEDED, 20)]
    mixed = [sampled, greedy, sampled, *alone, greedy, sampled, *alone]
    assert next_batch(mixed, CONTEXT) == [0, 2, 6]
    assert next_batch(mixed[1:], CONTEXT) == [0, 4]
    assert next_batch(mixed[3:], CONTEXT) == [0]
    assert next_batch(mixed[4:], CONTEXT) == [0]
    assert next_batch([greedy] * (BATCH_ROWS + 3), CONTEXT) == list(range(BATCH_ROWS))
    # What does not fit is passed over for what does.
    long = replace(greedy, ids=(0,) * 2_000)
    assert next_batch([greedy, greedy, long, greedy], CONTEXT) == [0, 1, 3]


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
    runtime = FakeRuntime(lambda text, options: text + ". And so on and on and on")
    options = SearchOptions(max_new_tokens=500, stop=["."])
    prompts = [prepare(runtime, text, options, True) for text in ("One", "Three")]
    assert [answer.text for answer in generate(runtime, prompts)] == ["One", "Three"]
    assert runtime.batches == [["One", "Three"]]
    assert runtime.made == [len("Three.")]
    assert runtime.closed == 1


def joined(events: Sequence[Event], row: int) -> str:
    return "".join(event for index, event in events if index == row and isinstance(event, str))


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, st.sampled_from(OPTIONS)), max_size=20))
def test_streamed_pieces_join_to_the_generated_answers(
    rows: list[tuple[str, SearchOptions]],
) -> None:
    runtime = FakeRuntime(context_length=120)
    prompts = [prepare(runtime, text, options, rendered=True) for text, options in rows]
    events = list(stream(runtime, prompts))
    assert all(event for _, event in events)
    for row, answer in enumerate(generate(runtime, prompts)):
        own = [event for index, event in events if index == row]
        assert own[-1] == answer
        assert joined(events, row) == answer.text
        assert all(isinstance(event, str) for event in own[:-1])
    assert {index for index, _ in events} == set(range(len(prompts)))


def test_rows_of_a_stream_come_token_by_token_side_by_side() -> None:
    runtime = FakeRuntime()
    prompts = [prepare(runtime, text, GREEDY, True) for text in ("abc", "d")]
    assert list(stream(runtime, prompts)) == [
        (1, "d"),
        (0, "c"),
        (1, Answer("d", "stop", 1, 1)),
        (0, "b"),
        (0, "a"),
        (0, Answer("cba", "stop", 3, 3)),
    ]


def test_nothing_is_asked_and_nothing_is_generated() -> None:
    runtime = FakeRuntime()
    assert generate(runtime, []) == []
    assert list(stream(runtime, [])) == []
    assert runtime.batches == []


def test_what_was_held_back_is_streamed_when_the_runtime_ends_by_itself() -> None:
    class Short(FakeRuntime):
        def steps(self, *arguments: Any) -> Generator[Sequence[int], None, None]:
            yield from islice(super().steps(*arguments), 4)

    runtime = Short(lambda text, options: "1 <|end|>")
    prompt = prepare(runtime, "x", replace(GREEDY, stop=["<|end|>"]), True)
    pieces = [event for _, event in stream(runtime, [prompt])]
    assert pieces == ["1", " ", "<|", Answer("1 <|", "length", 1, 4)]


def test_closing_a_stream_stops_the_runtime() -> None:
    runtime = FakeRuntime()
    events = stream(runtime, [prepare(runtime, text, GREEDY, True) for text in ("hello", "you")])
    assert isinstance(events, Generator)
    next(events)
    assert runtime.closed == 0
    events.close()
    assert runtime.closed == 1
    assert runtime.made == [1]


@settings(deadline=None)
@given(
    st.lists(st.tuples(TEXTS, st.integers(1, 20)), min_size=1, max_size=5),
    st.dictionaries(st.integers(0, 4), st.integers(0, 20), max_size=5),
)
def test_a_dropped_row_falls_silent_and_changes_nothing_for_the_others(
    rows: list[tuple[str, int]], drops: dict[int, int]
) -> None:
    def run(drops: dict[int, int]) -> tuple[list[list[Event]], int]:
        runtime = FakeRuntime()
        prompts = [
            prepare(runtime, text, replace(GREEDY, max_new_tokens=most), True)
            for text, most in rows
        ]
        batch = Batch(runtime, prompts)
        steps: list[list[Event]] = []
        for events in batch.steps():
            for row, step in drops.items():
                if step == len(steps) and row < len(rows):
                    batch.drop(row)
            steps.append(events)
        assert runtime.closed == 1
        return steps, runtime.made[0]

    whole, _ = run({})
    steps, made = run(drops)
    forever = len(whole) + 1
    expected = [
        [event for event in events if step <= drops.get(event[0], forever)]
        for step, events in enumerate(whole)
    ]
    while expected and not expected[-1]:
        expected.pop()
    assert steps[: len(expected)] == expected
    assert not any(steps[len(expected) :])
    ends = [  # the step after which nobody waits for the row: it has answered, or was dropped
        min(
            drops.get(row, forever),
            next(i for i, step in enumerate(whole) if (row, answer(step, row)) in step),
        )
        for row in range(len(rows))
    ]
    assert made == max(ends) + 1


def answer(events: Sequence[Event], row: int) -> Answer | None:
    return next((e for index, e in events if index == row and isinstance(e, Answer)), None)


def test_a_schema_reaches_the_runtime_and_its_prompt_is_generated_alone() -> None:
    runtime = FakeRuntime()
    schemas = [None, SCHEMA, None, SCHEMA]
    prompts = [prepare(runtime, "abc", GREEDY, True, schema) for schema in schemas]
    assert [answer.text for answer in generate(runtime, prompts)] == ["cba"] * 4
    assert [len(batch) for batch in runtime.batches] == [2, 1, 1]
    assert runtime.schemas == [None, SCHEMA, SCHEMA]


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_an_empty_prompt_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="empty") as refusal:
        prepare(FakeRuntime(), text, GREEDY, rendered=False)
    assert refusal.value.code is None


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
    with pytest.raises(PromptError, match=re.escape(said)) as refusal:
        prepare(runtime, "x" * length, options, rendered=False)
    assert refusal.value.code == "context_length_exceeded"


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
        decode=lambda ids, skip_special_tokens: bytes(ids).decode(),
    )
    config = {"model": {"context_length": 100, "vocab_size": 1_000}}
    runtime = OnnxRuntime(genai, None, tokenizer, tokenizer, Path("nowhere"), config)

    def reasons(new_tokens: int) -> list[str]:
        options = SearchOptions(num_beams=2, max_new_tokens=new_tokens)
        prompts = [prepare(runtime, text, options, True) for text in ("a", "b")[:rows]]
        return [answer.finish_reason for answer in generate(runtime, prompts)]

    assert reasons(new_tokens=6) == ["stop"] * rows
    assert reasons(new_tokens=5) == ["stop", "length"][-rows:]


class FakeLogits:
    """onnxruntime-genai's generator for greedy search: every step's logits are known."""

    def __init__(self, logits: "np.ndarray[Any, Any]") -> None:
        self._logits = logits  # steps, rows, vocabulary
        self._step = 0

    def append_tokens(self, tokens: "np.ndarray[Any, Any]") -> None:
        self._now = self._logits[0]

    def is_done(self) -> bool:
        return self._step == len(self._logits)

    def get_logits(self) -> "np.ndarray[Any, Any]":
        return self._now[:, None, :].copy()

    def set_logits(self, logits: "np.ndarray[Any, Any]") -> None:
        self._now = logits[:, -1, :]

    def generate_next_token(self) -> None:
        self._tokens = self._now.argmax(axis=-1)
        self._step += 1
        self._now = self._logits[min(self._step, len(self._logits) - 1)]

    def get_next_tokens(self) -> "np.ndarray[Any, Any]":
        return self._tokens


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.floats(-2, 2, width=16),
    st.floats(-2, 2, width=16),
)
def test_penalties_count_what_each_row_has_generated(
    noise: int, rows: int, frequency: float, presence: float
) -> None:
    steps, vocabulary = 12, 5
    logits = np.random.default_rng(noise).normal(size=(steps, rows, vocabulary))
    genai = SimpleNamespace(
        GeneratorParams=lambda model: SimpleNamespace(set_search_options=lambda **options: None),
        Generator=lambda model, params: FakeLogits(logits),
    )
    tokenizer = SimpleNamespace(eos_token_ids=[EOS], pad_token_id=0)
    runtime = OnnxRuntime(
        genai,
        None,
        tokenizer,
        tokenizer,
        Path("nowhere"),
        {"model": {"context_length": 9, "vocab_size": 1_000}},
    )
    options = SearchOptions(frequency_penalty=frequency, presence_penalty=presence)
    made = list(runtime.steps([[1]] * rows, options, steps))

    for row in range(rows):
        counts = np.zeros(vocabulary)
        for step in range(steps):
            expected = logits[step, row] - counts * frequency - (counts > 0) * presence
            token = int(expected.argmax())
            assert made[step][row] == token
            counts[token] += 1


def test_a_prompt_that_ends_in_padding_shares_no_batch() -> None:
    """There the ONNX runtime would take the prompt's own token for padding."""
    runtime = FakeRuntime()
    runtime.pad_id = ord("!")
    prompts = [prepare(runtime, text, GREEDY, rendered=False) for text in ("ab", "a!", "cd")]
    assert plan_batches(prompts, CONTEXT) == [[0, 2], [1]]
