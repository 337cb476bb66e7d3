"""The chat contract: what a request may hold, and what the responses look like."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmflow.served.answer import Answer
from slmflow.served.chat import RequestError, choices_of, chunks, completion, parse_request
from slmflow.served.search import SearchOptions

DEFAULTS = SearchOptions(max_new_tokens=64, temperature=0.5, stop=["<|end|>"])
BEAMS = SearchOptions(num_beams=4)
USER = {"role": "user", "content": "Hi"}


def options_of(**fields: Any) -> SearchOptions:
    return parse_request({"messages": [USER], **fields}, DEFAULTS).options


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({}, {}),
        ({"max_tokens": 5}, {"max_new_tokens": 5, "max_length": None}),
        ({"max_tokens": 5.0}, {"max_new_tokens": 5, "max_length": None}),  # a column with nulls
        ({"max_tokens": np.int64(5)}, {"max_new_tokens": 5, "max_length": None}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1, "top_p": 1}, {"temperature": 1.0, "top_p": 1.0}),
        ({"top_p": np.float32(0.5), "top_k": 7.0}, {"top_p": 0.5, "top_k": 7}),
        ({"seed": 11}, {"seed": 11}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"stop": ["END", "."]}, {"stop": ["END", "."]}),
        ({"stop": np.array(["END", "."], dtype=object)}, {"stop": ["END", "."]}),
        ({"stop": []}, {"stop": []}),
        ({"stop": None, "temperature": float("nan")}, {}),  # empty cells
        ({"stream": False, "n": 1}, {}),
        ({"frequency_penalty": 0, "presence_penalty": 0.0}, {}),
        ({"user": "me", "metadata": {"a": "b"}, "custom_inputs": {}, "model": "any"}, {}),
    ],
)  # fmt: skip
def test_a_request_changes_what_it_names_and_nothing_else(
    fields: dict[str, Any], changes: dict[str, Any]
) -> None:
    options = options_of(**fields)
    assert options == DEFAULTS.changed(changes)
    assert isinstance(options.temperature, float)  # transformers takes no whole number for it
    assert type(options.max_new_tokens) is int


def test_max_tokens_of_a_request_replaces_both_bounds_of_the_model() -> None:
    bounded = SearchOptions(max_new_tokens=None, max_length=20)
    asked = parse_request({"messages": [USER], "max_tokens": 50}, bounded).options
    assert asked.new_tokens(prompt_tokens=10, context_length=100) == 50


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stream": True}, "predict_stream"),
        ({"n": 0}, "n is 0; allowed: whole numbers 1 to 128"),
        ({"n": 129}, "n is 129"),
        ({"n": 1.5}, "n is 1.5"),
        ({"n": True}, "n is True"),
        ({"n": "two"}, "n is 'two'"),
        ({"n": "2"}, "n is '2'"),
        ({"n": [2]}, "n is [2]"),
        ({"n": float("inf")}, "n is inf"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"max_tokens": "many"}, "max_tokens is 'many'"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": [0.5]}, "temperature is [0.5]"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"top_p": 2}, "top_p is 2"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**31}, f"seed is {2**31}"),
        ({"stop": ""}, "stop: give a text, or a list of texts"),
        ({"stop": ["a", ""]}, "stop: give a text"),
        ({"stop": ["a", 5]}, "stop: give a text"),
        ({"stop": 5}, "stop: give a text"),
        ({"stop": {"a": "b"}}, "stop: give a text"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"presence_penalty": -1}, "presence_penalty is not supported"),
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"logit_bias": {}}, "logit_bias is not supported"),
        ({"temprature": 0.5}, "temprature is not supported"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refusal:
        options_of(**fields)
    assert said in str(refusal.value)
    assert "search." not in str(refusal.value) or "package the model" in str(refusal.value)


def test_a_request_cannot_make_a_model_that_searches_with_beams_sample() -> None:
    with pytest.raises(RequestError, match="beams do not sample"):
        parse_request({"messages": [USER], "temperature": 0.5}, BEAMS)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "messages is missing or empty"),
        ([], "messages is missing or empty"),
        ("Hi", "messages is missing or empty"),
        (USER, "messages is missing or empty"),
        (float("nan"), "messages is missing or empty"),
        (5, "messages is missing or empty"),
        (True, "messages is missing or empty"),
        (["Hi"], "messages[0] is not {"),
        ([USER, None], "messages[1] is not {"),
        ([{"content": "Hi"}], "messages[0].role is None; allowed: system, user, assistant"),
        ([USER, {"role": "tool", "content": "Hi"}], "messages[1].role is 'tool'; allowed: system"),
        ([{"role": ["user"], "content": "Hi"}], "messages[0].role is ['user']"),
        ([{"role": "user"}], "messages[0].content is None"),
        ([{"role": "user", "content": 5}], "messages[0].content is 5"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "messages[0].content"),
        ([{**USER, "tool_calls": [1]}], "messages[0].tool_calls is not supported"),
        ([{"role": "user", "content": " \n"}], "messages hold no text"),
    ],
)
def test_bad_messages_are_refused_with_their_place(messages: Any, said: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_request({"messages": messages}, DEFAULTS)
    assert said in str(refusal.value)


def test_messages_are_missing() -> None:
    with pytest.raises(RequestError, match=r'give \[{"role": "user", "content": "..."}\]'):
        parse_request({}, DEFAULTS)


@pytest.mark.parametrize("kind", [list, tuple, lambda items: np.array(items, dtype=object)])
def test_messages_may_come_in_any_kind_of_list(kind: Any) -> None:
    given = kind([{**USER, "name": "Ann", "tool_calls": None}, {"role": "system", "content": ""}])
    messages = parse_request({"messages": given}, DEFAULTS).messages
    assert messages == (USER, {"role": "system", "content": ""})


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
LISTS = st.lists(SCALARS | st.dictionaries(st.text(max_size=2), SCALARS, max_size=2), max_size=2)
JUNK = SCALARS | LISTS | st.dictionaries(st.text(max_size=2), SCALARS, max_size=2)
FIELDS = ("messages", "n", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream")


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JUNK))
def test_whatever_comes_is_parsed_or_refused(row: dict[str, Any]) -> None:
    try:
        parse_request({"messages": [USER], **row}, DEFAULTS)
    except RequestError as refusal:
        assert str(refusal)


def test_the_seeds_of_several_choices_count_up_so_that_they_differ() -> None:
    def seeds(**fields: Any) -> list[int | None]:
        request = parse_request({"messages": [USER], **fields}, DEFAULTS)
        return [options.seed for options in choices_of(request)]

    assert seeds(n=3, seed=5) == [5, 6, 7]
    assert seeds(n=2, seed=2**31 - 1) == [2**31 - 1, 0]
    assert seeds(n=2) == [None, None]


ANSWERS = [Answer("Madrid", "stop", 10, 2), Answer("Mad", "length", 10, 1)]


def test_a_completion_has_the_shape_of_the_protocol() -> None:
    before = int(time.time())
    made = completion(ANSWERS, "phi")
    assert made.pop("id").startswith("chatcmpl-")
    assert before <= made.pop("created") <= time.time()
    assert made == {
        "object": "chat.completion",
        "model": "phi",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Madrid"},
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "Mad"},
                "finish_reason": "length",
            },
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    }


def test_chunks_carry_the_role_first_and_the_reason_and_usage_last() -> None:
    made = list(chunks(["Mad", "rid", ANSWERS[0]], "phi"))
    assert [chunk["choices"] for chunk in made] == [
        [{"index": 0, "delta": delta, "finish_reason": reason}]
        for delta, reason in (
            ({"role": "assistant", "content": "Mad"}, None),
            ({"content": "rid"}, None),
            ({}, "stop"),
        )
    ]
    assert [chunk.get("usage") for chunk in made] == [
        None,
        None,
        {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    ]
    assert {chunk["object"] for chunk in made} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in made}) == 1


def test_an_answer_without_text_is_one_chunk() -> None:
    (made,) = chunks([Answer("", "stop", 10, 0)], "phi")
    assert made["choices"] == [
        {"index": 0, "delta": {"role": "assistant"}, "finish_reason": "stop"}
    ]


def test_no_two_responses_share_an_id() -> None:
    made = [completion(ANSWERS, "phi")["id"] for _ in range(50)]
    made += [next(iter(chunks(ANSWERS[:1], "phi")))["id"] for _ in range(50)]
    assert len(set(made)) == 100
