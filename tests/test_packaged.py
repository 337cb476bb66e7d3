"""A packaged model as MLflow calls it, over a runtime without a model."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from slmflow.served.packaged import PackagedModel
from slmflow.served.search import SearchOptions
from slmflow.served.template import ChatTemplate, TemplateError
from tests.fakes import FakeRuntime


def packaged(task: str, runtime: FakeRuntime | None = None, **search: Any) -> PackagedModel:
    options = {"max_new_tokens": 60, **search}
    return PackagedModel(
        runtime or FakeRuntime(), {"task": task, "model": "fake", "threads": 1, **options}
    )


def last_user_text(prompt: str, options: SearchOptions) -> str:
    """Answers a chat with its last question, so that rows can be told apart."""
    return prompt.removesuffix("\nassistant: ").rpartition(": ")[2]


def chat_model(**search: Any) -> PackagedModel:
    return packaged("chat", FakeRuntime(last_user_text), **search)


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def texts_of(completions: list[Any]) -> list[list[str]]:
    return [
        [choice["message"]["content"] for choice in completion["choices"]]
        for completion in completions
    ]


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
        (["abc", ""], "row 1: the prompt is empty"),
        (["abc", None], "row 1: prompt is None; give a text"),
        (["abc", 5], "row 1: prompt is 5; give a text"),
        ([{"prompt": "abc"}, {"text": "de"}], "row 1: prompt is None; give a text"),
        ({"prompt": {"a": "b"}}, "row 0: prompt is {'a': 'b'}; give a text"),
        (pd.DataFrame({"prompt": ["abc", None]}), "row 1: prompt is"),
        (pd.DataFrame({"prompt": ["abc", None]}, dtype="string"), "row 1: prompt is"),
        (["abc", "x" * 2000], "row 1: the prompt has 2000 tokens and the model's context allows"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused_before_anything_is_generated(
    data: Any, said: str
) -> None:
    runtime = FakeRuntime()
    with pytest.raises(MlflowException) as refusal:
        packaged("prompt", runtime).predict(data)
    assert said in str(refusal.value)
    assert refusal.value.get_http_status_code() == 400
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


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "no rows; give at least one messages"),
        ({"prompt": "abc"}, "no column 'messages'; got ['prompt']"),
        ("abc", "row 0: messages is missing or empty"),
        ([ask("a"), {"temperature": 1}], "row 1: messages is missing or empty"),
        ([ask("a"), ask("b", temperature=-1)], "row 1: temperature is -1"),
        ([ask("a"), ask("b", temperature="hot")], "row 1: temperature is 'hot'"),
        (
            [ask("a"), {"messages": [ask("b")["messages"][0], {"role": "system", "content": "c"}]}],
            "row 1: the model's chat template refuses the messages: system must come first",
        ),
        ([ask("a"), ask("b" * 2000)], "row 1: the prompt has 2018 tokens"),
        ([ask("a"), ask("b", stream=True)], "row 1: stream"),
    ],
)
def test_chats_that_cannot_be_answered_are_refused_before_anything_is_generated(
    data: Any, said: str
) -> None:
    runtime = FakeRuntime()
    with pytest.raises(MlflowException) as refusal:
        packaged("chat", runtime).predict(data)
    assert said in str(refusal.value)
    assert refusal.value.get_http_status_code() == 400
    assert runtime.batches == []


TEXTS = st.text("ab \N{EURO SIGN}", min_size=1, max_size=30).filter(str.strip)


@settings(deadline=None)
@given(TEXTS, st.integers(1, 40), st.lists(st.text("ab", min_size=1), max_size=2))
def test_a_streamed_answer_is_the_predicted_one(
    text: str, max_tokens: int, stop: list[str]
) -> None:
    prompts = packaged("prompt", max_new_tokens=max_tokens, stop=stop)
    assert ["".join(prompts.predict_stream({"prompt": text}))] == prompts.predict([text])

    request = ask(text, max_tokens=max_tokens, stop=stop)
    chunks = list(chat_model().predict_stream({**request, "stream": True}))
    (completion,) = chat_model().predict([request])
    (choice,) = completion["choices"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == choice["message"]["content"]
    assert deltas[0]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"] == completion["usage"]


@pytest.mark.parametrize(
    ("task", "data", "said"),
    [
        ("prompt", ["a", "b"], "predict_stream answers one row at a time and got 2"),
        ("prompt", "", "row 0: the prompt is empty"),
        ("chat", [ask("a"), ask("b")], "predict_stream answers one row at a time and got 2"),
        ("chat", ask("a", n=2), "n: a streamed answer has one choice"),
        ("chat", ask("a", temperature=-1), "row 0: temperature is -1"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(task: str, data: Any, said: str) -> None:
    pieces: Iterator[Any] = packaged(task).predict_stream(data)
    with pytest.raises(MlflowException) as refusal:
        list(pieces)
    assert said in str(refusal.value)
    assert refusal.value.get_http_status_code() == 400


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
