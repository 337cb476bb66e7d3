"""A packaged model as MLflow calls it, over a runtime without a model."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from slmflow.served.packaged import Job, PackagedModel, options_of_choices
from slmflow.served.request import Asked, RequestError
from slmflow.served.search import SearchOptions
from slmflow.served.template import ChatTemplate, TemplateError
from tests.fakes import FakeRuntime, any_requests, last_user_text


def packaged(task: str, runtime: FakeRuntime | None = None, **search: Any) -> PackagedModel:
    options = {"max_new_tokens": 60, **search}
    return PackagedModel(
        runtime or FakeRuntime(), {"task": task, "model": "fake", "threads": 1, **options}
    )


def chat_model(**search: Any) -> PackagedModel:
    return packaged("chat", FakeRuntime(last_user_text), **search)


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def texts_of(completions: list[Any]) -> list[list[str]]:
    return [
        [choice["message"]["content"] for choice in completion["choices"]]
        for completion in completions
    ]


def told(row: Any) -> tuple[str, str | None, str | None]:
    """Message, field and code of a row that has OpenAI's error object in the place of an answer."""
    assert row["error"].pop("type") == "invalid_request_error"
    return row["error"]["message"], row["error"]["param"], row["error"]["code"]


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        ("abc", ["cba"]),
        (["abc", "de"], ["cba", "ed"]),
        (("abc", "de"), ["cba", "ed"]),
        (np.array(["abc", "de"], dtype=object), ["cba", "ed"]),
        (pd.Series(["abc", "de"]), ["cba", "ed"]),
        ({"prompt": "abc"}, ["cba"]),
        ({"prompt": ["abc", "de"]}, ["cba", "ed"]),
        ([{"prompt": "abc"}, {"prompt": "de"}], ["cba", "ed"]),
        (pd.DataFrame({"prompt": ["abc", "de"]}), ["cba", "ed"]),
        (pd.DataFrame({"prompt": ["abc", "de"]}, index=[7, 7]), ["cba", "ed"]),
        (pd.DataFrame({"prompt": [["abc", "de"]]}), ["cba", "ed"]),  # MLflow makes that of a list
        (pd.DataFrame({"prompt": [np.array(["abc", "de"])]}), ["cba", "ed"]),
        (pd.DataFrame({"prompt": ["abc"], "note": [None]}), ["cba"]),
    ],
)
def test_prompts_come_in_many_shapes(data: Any, answers: list[str]) -> None:
    assert packaged("prompt").predict(data) == answers


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "no rows; give at least one prompt"),
        ({"prompt": []}, "no rows"),
        (pd.DataFrame({"prompt": []}), "no rows"),
        ({"text": "abc"}, "no column 'prompt'; got ['text']"),
        (pd.DataFrame({"text": ["abc"]}), "no column 'prompt'; got ['text']"),
        ("", "the prompt is empty"),
        ([None], "prompt holds None; give a text"),
        ({"prompt": {"a": "b"}}, "prompt holds {'a': 'b'}; give a text"),
        ("x" * 2000, "the prompt has 2000 tokens and the model's context allows"),
    ],
)
def test_a_call_that_asks_nothing_answerable_is_refused_before_anything_is_generated(
    data: Any, said: str
) -> None:
    runtime = FakeRuntime()
    with pytest.raises(MlflowException) as refusal:
        packaged("prompt", runtime).predict(data)
    assert said in str(refusal.value)
    assert refusal.value.get_http_status_code() == 400
    assert runtime.batches == []


LONG = "tokens and the model's context allows 1000 for prompt and answer together"


@pytest.mark.parametrize(
    ("data", "said", "code"),
    [
        (["abc", ""], "the prompt is empty", None),
        (["abc", None], "prompt holds None; give a text", None),
        (["abc", 5], "prompt holds 5; give a text", None),
        (["abc", "\ud83d"], "prompt holds half of a surrogate pair", None),
        ([{"prompt": "abc"}, {"text": "de"}], "prompt holds None", None),
        (pd.DataFrame({"prompt": ["abc", None]}), "prompt holds None", None),
        (pd.DataFrame({"prompt": ["abc", None]}, dtype="string"), "prompt holds None", None),
        (["abc", "x" * 2000], f"the prompt has 2000 {LONG}", "context_length_exceeded"),
    ],
)
def test_a_prompt_that_cannot_be_answered_gets_its_error_in_its_place(
    data: Any, said: str, code: str | None
) -> None:
    runtime = FakeRuntime()
    answered, refused = packaged("prompt", runtime).predict(data)
    assert answered == "cba"
    message, *rest = told(refused)
    assert said in message
    assert rest == ["prompt", code]
    assert runtime.batches == [["abc"]]


def test_where_no_row_can_be_answered_every_row_gets_its_error() -> None:
    runtime = FakeRuntime()
    refused = packaged("prompt", runtime).predict(["", " "])
    assert ["the prompt is empty" in told(row)[0] for row in refused] == [True, True]
    assert runtime.batches == []


def test_ten_thousand_rows_are_answered_in_order() -> None:
    runtime = FakeRuntime()
    rows = [f"{index}".zfill(1 + index % 9) for index in range(10_000)]
    answers = packaged("prompt", runtime).predict(pd.DataFrame({"prompt": rows}))
    assert answers == [row[::-1] for row in rows]
    assert len(runtime.batches) == 10_000 / 16


@pytest.mark.parametrize(
    "data",
    [
        ask("abc"),
        [ask("abc")],
        pd.DataFrame([ask("abc")]),
        pd.DataFrame([ask("abc", temperature=None, stop=None, max_tokens=float("nan"))]),
        pd.DataFrame({"messages": [np.array(ask("abc")["messages"])]}),
    ],
)
def test_a_chat_request_comes_in_many_shapes(data: Any) -> None:
    (completion,) = chat_model().predict(data)
    assert completion["object"] == "chat.completion"
    assert completion["model"] == "fake"
    assert completion["choices"][0]["message"] == {"role": "assistant", "content": "abc"}
    assert completion["usage"]["completion_tokens"] == 3
    assert completion["usage"]["prompt_tokens"] == len("user: abc\nassistant: ")
    assert json.loads(json.dumps(completion)) == completion


def test_every_row_of_a_batch_has_its_own_parameters() -> None:
    rows = [
        ask("one two three"),
        ask("one two three", max_tokens=3),
        ask("one two three", stop=[" three"]),
        ask("one two three", n=2, stop="two"),
        ask("one two three", temperature=0.5),
        ask("one two three", temperature=0.5, seed=3, n=2),
    ]
    expected = [
        ["one two three"],
        ["one"],
        ["one two"],
        ["one ", "one "],
        ["one two three beside 0"],
        ["one two three beside 0"] * 2,
    ]
    assert texts_of(chat_model().predict(rows)) == expected
    assert texts_of(chat_model().predict(pd.DataFrame(rows))) == expected
    reasons = [row["choices"][0]["finish_reason"] for row in chat_model().predict(rows)]
    assert reasons == ["stop", "length", "stop", "stop", "stop", "stop"]


def test_empty_cells_of_nullable_columns_count_as_absent() -> None:
    frame = pd.DataFrame([ask("one two", max_tokens=3), ask("one two")])
    frame["max_tokens"] = frame["max_tokens"].astype("Int64")
    frame["temperature"] = pd.array([0.0, None], dtype="Float64")
    assert texts_of(chat_model().predict(frame)) == [["one"], ["one two"]]


def test_the_options_that_a_model_was_packaged_with_hold_where_a_row_says_nothing() -> None:
    model = chat_model(max_new_tokens=3, stop=["t"])
    rows = [ask("one two"), ask("xtx"), ask("one two", max_tokens=50), ask("xtx", stop=["z"])]
    assert texts_of(model.predict(rows)) == [["one"], ["x"], ["one "], ["xtx"]]


def continued(row: dict[str, Any], **message: Any) -> dict[str, Any]:
    return {"messages": [*row["messages"], message]}


UNANSWERABLE = [
    ({"messages": None}, "messages is missing or empty", "messages", None),
    (ask("b", temperature=-1), "temperature is -1", "temperature", None),
    (ask("b", temperature="hot"), "temperature is 'hot'", "temperature", None),
    (ask("b", logit_bias={"5": 1}), "logit_bias is not supported", "logit_bias", None),
    (ask("b", stream=True), "stream: predict answers in one piece", "stream", None),
    (
        continued(ask("b"), role="system", content="c"),
        "the model's chat template refuses the messages: system must come first",
        "messages",
        None,
    ),
    (ask("b" * 2000), f"the prompt has 2018 {LONG}", "messages", "context_length_exceeded"),
]


@pytest.mark.parametrize(("row", "said", "field", "code"), UNANSWERABLE)
def test_a_chat_that_cannot_be_answered_gets_its_error_in_its_place(
    row: dict[str, Any], said: str, field: str, code: str | None
) -> None:
    runtime = FakeRuntime(last_user_text)
    rows = [ask("a"), row, ask("cc", n=2)]
    first, second, third = packaged("chat", runtime).predict(rows)
    assert texts_of([first, third]) == [["a"], ["cc", "cc"]]
    message, *rest = told(second)
    assert said in message
    assert rest == [field, code]
    assert [len(batch) for batch in runtime.batches] == [3]


@pytest.mark.parametrize(("row", "said", "field", "code"), UNANSWERABLE)
def test_a_chat_that_cannot_be_answered_is_refused_where_it_is_alone(
    row: dict[str, Any], said: str, field: str, code: str | None
) -> None:
    runtime = FakeRuntime()
    with pytest.raises(MlflowException) as refusal:
        packaged("chat", runtime).predict(row)
    assert said in str(refusal.value)
    assert refusal.value.get_http_status_code() == 400
    assert runtime.batches == []


def test_errors_of_a_frame_of_chats_stand_between_the_answers() -> None:
    frame = pd.DataFrame([ask("a"), ask("b", top_p=2.0), ask("c")])
    first, second, third = chat_model().predict(frame)
    assert texts_of([first, third]) == [["a"], ["c"]]
    assert told(second) == ("top_p is 2.0; allowed: above 0, up to 1 (every token)", "top_p", None)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "no rows; give at least one messages"),
        ({"prompt": "abc"}, "no column 'messages'; got ['prompt']"),
        ("abc", "messages is missing or empty"),
        (["abc"], "messages is missing or empty"),
    ],
)
def test_what_is_no_chat_is_refused(data: Any, said: str) -> None:
    with pytest.raises(MlflowException) as refusal:
        chat_model().predict(data)
    assert said in str(refusal.value)
    assert refusal.value.get_http_status_code() == 400


TEXTS = st.text("ab \N{EURO SIGN}", min_size=1, max_size=30).filter(str.strip)


def text_of(chunks: Sequence[dict[str, Any]], index: int) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    own = [choice["delta"] for choice in choices if choice["index"] == index]
    assert [position for position, delta in enumerate(own) if "role" in delta] == [0]
    return "".join(delta.get("content", "") for delta in own)


def reason_of(chunks: Sequence[dict[str, Any]], index: int) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    *before, last = [choice["finish_reason"] for choice in choices if choice["index"] == index]
    assert before == [None] * len(before)
    return str(last)


@settings(deadline=None)
@given(
    TEXTS,
    st.integers(1, 40),
    st.lists(st.text("ab", min_size=1), max_size=2),
    st.integers(1, 20),
    st.sampled_from([{}, {"temperature": 0.5, "seed": 3}, {"presence_penalty": 1}]),
)
def test_a_streamed_answer_is_the_predicted_one(
    text: str, max_tokens: int, stop: list[str], n: int, fields: dict[str, Any]
) -> None:
    prompts = packaged("prompt", max_new_tokens=max_tokens, stop=stop)
    assert ["".join(prompts.predict_stream({"prompt": text}))] == prompts.predict([text])

    request = ask(text, max_tokens=max_tokens, stop=stop, n=n, **fields)
    counted = {**request, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, total = chat_model().predict_stream(counted)
    (completion,) = chat_model().predict([request])
    for choice in completion["choices"]:
        assert text_of(chunks, choice["index"]) == choice["message"]["content"]
        assert reason_of(chunks, choice["index"]) == choice["finish_reason"]
    assert len(completion["choices"]) == n
    assert total["choices"] == []
    assert total["usage"] == completion["usage"]


@pytest.mark.parametrize("fields", [{}, {"stream": None}, {"stream": False}, {"stream": True}])
def test_predict_stream_streams_whatever_the_request_says_and_counts_only_where_asked(
    fields: dict[str, Any],
) -> None:
    chunks = list(chat_model().predict_stream(ask("abc", **fields)))
    assert text_of(chunks, 0) == "abc"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize(
    ("task", "data", "said"),
    [
        ("prompt", ["a", "b"], "predict_stream answers one row at a time and got 2"),
        ("prompt", "", "the prompt is empty"),
        ("chat", [ask("a"), ask("b")], "predict_stream answers one row at a time and got 2"),
        ("chat", ask("a", n=0), "n is 0"),
        ("chat", ask("a", temperature=-1), "temperature is -1"),
        ("chat", ask("a", stream_options={"usage": True}), "stream_options: give"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(task: str, data: Any, said: str) -> None:
    pieces: Iterator[Any] = packaged(task).predict_stream(data)
    with pytest.raises(MlflowException) as refusal:
        list(pieces)
    assert said in str(refusal.value)
    assert refusal.value.get_http_status_code() == 400


def test_the_seeds_of_several_choices_count_up_so_that_they_differ() -> None:
    def seeds(n: int, seed: int | None) -> list[int | None]:
        options = SearchOptions(seed=seed, temperature=0.5)
        return [choice.seed for choice in options_of_choices(Asked(options, n=n))]

    assert seeds(n=3, seed=5) == [5, 6, 7]
    assert seeds(n=2, seed=2**31 - 1) == [2**31 - 1, 0]
    assert seeds(n=2, seed=None) == [None, None]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


def test_every_choice_is_held_to_the_schema_that_its_request_asks_for() -> None:
    runtime = FakeRuntime(last_user_text)
    rows = [ask("a", response_format=FORMAT, n=2), ask("b"), ask("c", response_format=FORMAT)]
    answers = packaged("chat", runtime).predict(rows)
    assert texts_of(answers) == [["a", "a"], ["b"], ["c"]]
    held = [schema and json.loads(schema) for schema in runtime.schemas]
    assert sorted(held, key=str) == [None, SCHEMA, SCHEMA, SCHEMA]


def test_a_schema_that_the_runtime_refuses_is_refused_before_anything_is_generated() -> None:
    runtime = FakeRuntime(last_user_text, refused_schemas=[json.dumps(SCHEMA)])
    rows = [ask("a", response_format=FORMAT), ask("b", response_format={"type": "json_object"})]
    refused, answered = packaged("chat", runtime).predict(rows)
    said = "the JSON schema cannot be followed: the fake refuses it"
    assert told(refused) == (said, "response_format", None)
    assert texts_of([answered]) == [["b"]]
    assert len(runtime.batches) == 1


def test_a_schema_needs_a_search_without_beams() -> None:
    with pytest.raises(MlflowException, match=r"response_format needs .*num_beams 1"):
        chat_model(num_beams=2).predict(ask("a", response_format=FORMAT))


def test_texts_are_asked_as_they_stand_and_chats_through_the_template() -> None:
    model = packaged("prompt", FakeRuntime())
    job = model.text_job({"prompt": ["ab", "c"], "n": 2, "stream": True})
    assert [bytes(prompt.ids).decode() for prompt in job.prompts] == ["ab", "ab", "c", "c"]
    assert job.stream
    job = model.chat_job(ask("ab"))  # also where the model was packaged for prompts
    assert [bytes(prompt.ids).decode() for prompt in job.prompts] == ["user: ab\nassistant: "]
    assert not job.stream


@pytest.mark.parametrize(
    ("prompt", "field", "code"),
    [
        ("", "prompt", None),
        (["a", " "], "prompt", None),
        (["a", "b" * 1_000], "prompt", "context_length_exceeded"),
    ],
)
def test_a_text_that_cannot_be_answered_is_refused_with_all_of_its_request(
    prompt: Any, field: str, code: str | None
) -> None:
    with pytest.raises(RequestError) as refusal:
        packaged("prompt").text_job({"prompt": prompt})
    assert (refusal.value.field, refusal.value.code) == (field, code)


@settings(deadline=None)
@given(any_requests(), st.booleans())
def test_any_json_object_becomes_a_job_or_is_refused(row: dict[str, Any], is_chat: bool) -> None:
    model = packaged("chat", FakeRuntime(refused_schemas=["{}"]))
    row.pop("prompt" if is_chat else "messages", None)
    try:
        job = model.chat_job(row) if is_chat else model.text_job(row)
    except RequestError as refusal:
        assert str(refusal)
    else:
        assert isinstance(job, Job)
        assert len(job.prompts) >= 1


def test_a_model_without_a_chat_template_says_so_when_it_is_loaded_to_chat() -> None:
    class Bare(FakeRuntime):
        def template(self) -> ChatTemplate:
            raise TemplateError("no chat template")

    with pytest.raises(TemplateError):
        packaged("chat", Bare())
    assert packaged("prompt", Bare()).predict("abc") == ["cba"]


def test_the_prompt_of_a_chat_can_be_seen_and_counted() -> None:
    model = chat_model()
    text = model.render(ask("\N{EURO SIGN}")["messages"])
    assert text == "user: \N{EURO SIGN}\nassistant: "
    assert model.count_tokens(text) == len(text) + 2


def test_a_prompt_row_may_carry_parameters_and_no_misspelt_ones() -> None:
    rows = [{"prompt": "abc", "max_tokens": 2}, {"prompt": "abc", "foo": 3}, {"text": "abc"}]
    cut, misspelt, missing = packaged("prompt").predict(rows)
    assert cut == "cb"
    assert misspelt["error"]["param"] == "foo"
    assert missing["error"]["message"]
