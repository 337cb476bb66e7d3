"""Reading a request: what it changes, what is refused by name, and nothing is ignored."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import event, example, given, settings

from slmflow.served import chat, text
from slmflow.served.request import ASKS_NOTHING, HARMLESS, Asked, Fields, RequestError
from slmflow.served.search import SearchOptions
from tests.fakes import MESSAGE, any_requests

DEFAULTS = SearchOptions(max_new_tokens=64, temperature=0.5, stop=["<|end|>"])
BEAMS = SearchOptions(num_beams=4)
NAN = float("nan")


def asked(defaults: SearchOptions = DEFAULTS, /, **fields: Any) -> Asked:
    return Fields(fields).asked(defaults)


def refusal(defaults: SearchOptions = DEFAULTS, /, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as refused:
        asked(defaults, **fields)
    return refused.value


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({}, {}),
        ({"max_tokens": 5}, {"max_new_tokens": 5, "max_length": None}),
        ({"max_tokens": 5.0}, {"max_new_tokens": 5, "max_length": None}),  # a column with nulls
        ({"max_tokens": np.int64(5)}, {"max_new_tokens": 5, "max_length": None}),
        ({"max_completion_tokens": 5}, {"max_new_tokens": 5, "max_length": None}),
        ({"max_tokens": 5, "max_completion_tokens": 5.0}, {"max_new_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": None}, {"max_new_tokens": 5}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1, "top_p": 1}, {"temperature": 1.0, "top_p": 1.0}),
        ({"top_p": np.float32(0.5), "top_k": 7.0}, {"top_p": 0.5, "top_k": 7}),
        ({"seed": 11}, {"seed": 11}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"stop": ["END", "."]}, {"stop": ["END", "."]}),
        ({"stop": np.array(["END", "."], dtype=object)}, {"stop": ["END", "."]}),
        ({"stop": []}, {"stop": []}),
        ({"stop": None, "temperature": NAN}, {}),  # empty cells
        ({"frequency_penalty": 0, "presence_penalty": 0.0}, {}),
        ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.5}),
        (
            {"frequency_penalty": 2, "presence_penalty": -2},
            {"frequency_penalty": 2.0, "presence_penalty": -2.0},
        ),
    ],
)  # fmt: skip
def test_a_request_changes_what_it_names_and_nothing_else(
    fields: dict[str, Any], changes: dict[str, Any]
) -> None:
    read = asked(**fields)
    assert read == Asked(DEFAULTS.changed(changes))
    for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty"):
        assert type(getattr(read.options, name)) is float  # transformers takes no whole number
    assert type(read.options.max_new_tokens) is int


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n": 3}, Asked(DEFAULTS, n=3)),
        ({"n": 1.0, "stream": False}, Asked(DEFAULTS)),
        ({"stream": True}, Asked(DEFAULTS, stream=True)),
        ({"stream": np.bool_(True)}, Asked(DEFAULTS, stream=True)),
        ({"stream": None, "stream_options": None}, Asked(DEFAULTS)),
        ({"stream": True, "stream_options": {}}, Asked(DEFAULTS, stream=True)),
        (
            {"stream": True, "stream_options": {"include_usage": False}},
            Asked(DEFAULTS, stream=True),
        ),
        (
            {"stream": True, "stream_options": {"include_usage": True}},
            Asked(DEFAULTS, stream=True, include_usage=True),
        ),
    ],
)
def test_a_request_asks_for_choices_and_for_a_stream(
    fields: dict[str, Any], expected: Asked
) -> None:
    assert asked(**fields) == expected


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_length_that_a_request_names_replaces_both_bounds_of_the_model(name: str) -> None:
    bounded = SearchOptions(max_new_tokens=None, max_length=20)
    options = asked(bounded, **{name: 50}).options
    assert options.new_tokens(prompt_tokens=10, context_length=100) == 50


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, {}),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "a", "strict": True, "schema": {"type": ["object"]}},
            },
            {"type": ["object"]},
        ),
    ],
)
def test_a_response_format_says_which_schema_the_answer_follows(
    response_format: Any, schema: Any
) -> None:
    read = asked(response_format=response_format).schema
    assert (None if read is None else json.loads(read)) == schema


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_fields_that_say_nothing_about_the_answer_may_hold_anything(name: str) -> None:
    for value in ("me", {"a": "b"}, 5, True, [None]):
        assert asked(**{name: value}) == Asked(DEFAULTS)


@pytest.mark.parametrize("name", sorted(ASKS_NOTHING))
def test_what_no_model_can_do_may_be_given_where_it_asks_for_nothing(name: str) -> None:
    for value in (*ASKS_NOTHING[name], None, NAN):
        assert asked(**{name: value}) == Asked(DEFAULTS)


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": True},
        {"logprobs": 1},
        {"top_logprobs": 5},
        {"top_logprobs": False},  # no number
        {"logit_bias": {"50256": -100}},
        {"logit_bias": []},
        {"tools": [{"type": "function"}]},
        {"tools": {}},
        {"tool_choice": "required"},
        {"functions": [{}]},
        {"parallel_tool_calls": 1},
        {"store": True},
        {"service_tier": "flex"},
        {"modalities": ["text", "audio"]},
        {"modalities": "text"},
        {"echo": True},
        {"echo": 0},  # equal to False for Python
        {"best_of": 2},
        {"best_of": True},
        {"suffix": "."},
        {"temprature": 0.5},
        {"max_new_tokens": 5},
        {"repetition_penalty": 1.0},
        {"": 0},
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any]) -> None:
    (name,) = fields
    refused = refusal(**fields)
    assert str(refused) == f"{name} is not supported by this model; leave it out"
    assert refused.field == name


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stream": 1}, "stream is 1; allowed: true, false"),
        ({"stream": "true"}, "stream is 'true'"),
        ({"stream": []}, "stream is []"),
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
        ({"max_completion_tokens": 0}, "max_completion_tokens is 0"),
        (
            {"max_completion_tokens": 6, "max_tokens": 5},
            "max_tokens is 5 and max_completion_tokens is 6; give one of them",
        ),
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
        ({"stop": "\ud83d"}, "stop holds half of a surrogate pair"),
        ({"stop": ["a", "\ude42"]}, "stop holds half of a surrogate pair"),
        ({"frequency_penalty": 2.1}, "frequency_penalty is 2.1; allowed: -2 to 2"),
        ({"presence_penalty": -3}, "presence_penalty is -3.0; allowed: -2 to 2"),
        ({"presence_penalty": "much"}, "presence_penalty is 'much'"),
        ({"response_format": "json_object"}, "response_format: give {"),
        ({"response_format": {"type": "xml"}}, "response_format: give {"),
        ({"response_format": {"type": ["text"]}}, "response_format: give {"),
        ({"response_format": {}}, "response_format: give {"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema is"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": []}}},
            "response_format.json_schema.schema is",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    refused = refusal(**fields)
    assert said in str(refused)
    assert "search." not in str(refused)
    assert refused.field == next(iter(fields))
    assert refused.as_dict() == {
        "message": str(refused),
        "type": "invalid_request_error",
        "param": refused.field,
        "code": None,
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stream_options": {"include_usage": True}}, "given without stream: true"),
        ({"stream": False, "stream_options": {}}, "given without stream: true"),
        ({"stream": True, "stream_options": True}, 'give {"include_usage": true}'),
        ({"stream": True, "stream_options": {"usage": True}}, 'give {"include_usage": true}'),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage is 1; allowed"),
        ({"stream": True, "stream_options": {"include_usage": None}}, "include_usage is None"),
    ],
)
def test_stream_options_that_cannot_be_honoured_are_refused(
    fields: dict[str, Any], said: str
) -> None:
    refused = refusal(**fields)
    assert said in str(refused)
    assert refused.field == "stream_options"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": 0.5}, "beams do not sample"),
        ({"frequency_penalty": 1}, "need num_beams 1"),
        ({"presence_penalty": 1}, "need num_beams 1"),
    ],
)
def test_what_a_search_with_beams_cannot_do_is_refused_with_the_field_that_asks_for_it(
    fields: dict[str, Any], said: str
) -> None:
    refused = refusal(BEAMS, **fields)
    assert said in str(refused)
    assert refused.field == next(iter(fields))


def test_what_nobody_took_is_refused_and_what_was_taken_is_not() -> None:
    fields = Fields({"prompt": "Hi", "best": 1, "gone": None})
    assert fields.has("prompt")
    assert not fields.has("gone")
    assert fields.take("prompt") == "Hi"
    assert not fields.has("prompt")
    assert fields.take("prompt", "none") == "none"
    with pytest.raises(RequestError, match="best is not supported"):
        fields.asked(DEFAULTS)


CONTRACTS = {"messages": chat.parse_request, "prompt": text.parse_request}


@pytest.mark.parametrize("question", CONTRACTS)
@settings(deadline=None, max_examples=300)
@given(row=any_requests())
def test_any_json_object_is_parsed_or_refused(question: str, row: dict[str, Any]) -> None:
    try:
        CONTRACTS[question](row_for(question, row), DEFAULTS)
    except RequestError as refused:
        event("refused")
        assert str(refused)
    else:
        event("parsed")


@pytest.mark.parametrize("question", CONTRACTS)
@settings(deadline=None)
@given(row=any_requests())
@example(row={"messages": [MESSAGE], "prompt": "Hi", "\ud800": 1})
@example(row={"messages": [{**MESSAGE, "\ud800": 1}], "prompt": "Hi"})
def test_every_refusal_can_be_sent_though_json_can_write_what_utf_8_cannot(
    question: str, row: dict[str, Any]
) -> None:
    try:
        CONTRACTS[question](row_for(question, row), DEFAULTS)
    except RequestError as refused:
        json.dumps(refused.as_dict(), ensure_ascii=False).encode()


def row_for(question: str, row: dict[str, Any]) -> dict[str, Any]:
    """As it comes over the wire, without the other contract's question."""
    other = {name for name in CONTRACTS if name != question}
    return {n: value for n, value in json.loads(json.dumps(row)).items() if n not in other}
