"""The chat contract: what a conversation may hold, and what the responses look like."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from slmflow.served.answer import Answer
from slmflow.served.chat import ChatReply, parse_request
from slmflow.served.request import Asked, RequestError
from slmflow.served.search import SearchOptions

DEFAULTS = SearchOptions(max_new_tokens=64, temperature=0.5, stop=["<|end|>"])
USER = {"role": "user", "content": "Hi"}
TEXT = {"type": "text", "text": "Hi"}


def messages_of(*messages: Any) -> tuple[dict[str, str], ...]:
    return parse_request({"messages": list(messages)}, DEFAULTS).messages


def test_a_request_is_its_messages_and_what_its_fields_ask_for() -> None:
    row = {"messages": [USER], "n": 2, "temperature": 0, "stop": None, "user": "me"}
    request = parse_request(row, DEFAULTS)
    assert request.messages == (USER,)
    assert request.asked == Asked(DEFAULTS.changed({"temperature": 0.0}), n=2)


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
        ([[USER]], "messages[0] is not {"),
        ([{"content": "Hi"}], "messages[0].role is None; allowed: system, user, assistant"),
        ([USER, {"role": "tool", "content": "Hi"}], "messages[1].role is 'tool'; allowed: system"),
        ([{"role": ["user"], "content": "Hi"}], "messages[0].role is ['user']"),
        ([{"role": "user"}], "messages[0].content is None"),
        ([{"role": "user", "content": 5}], "messages[0].content is 5"),
        ([{"role": "user", "content": []}], "messages[0].content is []"),
        ([{"role": "user", "content": TEXT}], "messages[0].content is {'type'"),
        ([{"role": "user", "content": ["Hi"]}], "messages[0].content[0] is not {"),
        (
            [USER, {"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {}}]}],
            'messages[1].content[1] is not {"type": "text", "text": "..."}',
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0] is not {"),
        ([{"role": "user", "content": [{"text": "Hi"}]}], "messages[0].content[0] is not {"),
        ([{"role": "user", "content": [{**TEXT, "text": 5}]}], "messages[0].content[0] is not {"),
        ([{**USER, "tool_calls": [1]}], "messages[0].tool_calls is not supported"),
        ([{**USER, "tool_calls": {}}], "messages[0].tool_calls is not supported"),
        ([USER, {**USER, "audio": {"id": "a"}}], "messages[1].audio is not supported"),
        ([{**USER, "refusal": ""}], "messages[0].refusal is not supported"),
        ([{"role": "user", "content": " \n"}], "messages hold no text"),
        ([{"role": "user", "content": [{**TEXT, "text": " "}]}], "messages hold no text"),
        ([{"role": "user", "content": "\ud83d"}], "messages holds half of a surrogate pair"),
        (
            [USER, {"role": "user", "content": [{**TEXT, "text": "a\ude42"}]}],
            "messages holds half of a surrogate pair",
        ),
    ],
)
def test_bad_messages_are_refused_with_their_place(messages: Any, said: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_request({"messages": messages}, DEFAULTS)
    assert said in str(refusal.value)
    assert refusal.value.field == "messages"


def test_messages_are_missing() -> None:
    with pytest.raises(RequestError, match=r'give \[{"role": "user", "content": "..."}\]'):
        parse_request({}, DEFAULTS)


def test_the_messages_are_read_before_the_other_fields() -> None:
    with pytest.raises(RequestError, match="messages is missing"):
        parse_request({"prompt": "Hi", "temperature": "hot"}, DEFAULTS)
    with pytest.raises(RequestError, match="prompt is not supported"):
        parse_request({"messages": [USER], "prompt": "Hi"}, DEFAULTS)


@pytest.mark.parametrize("kind", [list, tuple, lambda items: np.array(items, dtype=object)])
def test_messages_may_come_in_any_kind_of_list(kind: Any) -> None:
    given = kind([{**USER, "name": "Ann", "tool_calls": None}, {"role": "system", "content": ""}])
    messages = parse_request({"messages": given}, DEFAULTS).messages
    assert messages == (USER, {"role": "system", "content": ""})


def test_what_a_message_says_about_nothing_may_be_given() -> None:
    reply = {"role": "assistant", "content": "Hi", "refusal": None, "tool_calls": [], "name": "A"}
    assert messages_of(reply) == ({"role": "assistant", "content": "Hi"},)


def test_developer_is_another_word_for_system() -> None:
    assert messages_of({"role": "developer", "content": "Be brief."}, USER) == (
        {"role": "system", "content": "Be brief."},
        USER,
    )


@pytest.mark.parametrize(
    ("parts", "content"),
    [
        ([TEXT], "Hi"),
        ([TEXT, {"type": "text", "text": "Ho"}], "Hi\nHo"),
        ([{"type": "text", "text": ""}, TEXT], "\nHi"),
        (np.array([TEXT, TEXT], dtype=object), "Hi\nHi"),
    ],
)
def test_the_texts_of_content_parts_are_a_line_each(parts: Any, content: str) -> None:
    assert messages_of({"role": "user", "content": parts}) == (
        {"role": "user", "content": content},
    )


ANSWERS = [Answer("Madrid", "stop", 10, 2), Answer("Mad", "length", 10, 1)]
USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}


def reply(include_usage: bool = False) -> ChatReply:
    return ChatReply("phi", Asked(DEFAULTS, n=2, stream=True, include_usage=include_usage))


def test_a_completion_has_the_shape_of_the_protocol() -> None:
    before = int(time.time())
    made = reply().whole(ANSWERS)
    assert made.pop("id").startswith("chatcmpl-")
    assert before <= made.pop("created") <= time.time()
    assert made == {
        "object": "chat.completion",
        "model": "phi",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Madrid"},
                "logprobs": None,
                "finish_reason": "stop",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "Mad"},
                "logprobs": None,
                "finish_reason": "length",
            },
        ],
        "usage": USAGE,
    }


def deltas(chunks: Sequence[dict[str, Any]]) -> list[tuple[int, dict[str, str], str | None]]:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert all(choice["logprobs"] is None for choice in choices)
    return [(choice["index"], choice["delta"], choice["finish_reason"]) for choice in choices]


def test_chunks_carry_the_role_first_and_the_reason_last() -> None:
    streamed = reply()
    made = [streamed.piece(0, "Mad"), streamed.piece(0, "rid"), streamed.end(0, ANSWERS[0])]
    assert deltas(made) == [
        (0, {"role": "assistant", "content": "Mad"}, None),
        (0, {"content": "rid"}, None),
        (0, {}, "stop"),
    ]
    assert {chunk["object"] for chunk in made} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in made)
    assert streamed.total(ANSWERS) is None


def test_every_choice_of_a_stream_begins_with_the_role() -> None:
    streamed = reply()
    made = [streamed.piece(1, "a"), streamed.piece(0, "b"), streamed.end(1, ANSWERS[1])]
    assert deltas(made) == [
        (1, {"role": "assistant", "content": "a"}, None),
        (0, {"role": "assistant", "content": "b"}, None),
        (1, {}, "length"),
    ]


def test_the_usage_comes_in_a_chunk_of_its_own_where_it_was_asked_for() -> None:
    streamed = reply(include_usage=True)
    made = [streamed.piece(0, "Madrid"), streamed.end(0, ANSWERS[0])]
    assert [chunk["usage"] for chunk in made] == [None, None]
    total = streamed.total(ANSWERS)
    assert total is not None
    assert total["object"] == "chat.completion.chunk"
    assert total["choices"] == []
    assert total["usage"] == USAGE


def test_an_answer_without_text_is_one_chunk() -> None:
    made = reply().end(0, Answer("", "stop", 10, 0))
    assert deltas([made]) == [(0, {"role": "assistant"}, "stop")]


def test_all_of_one_reply_shares_its_id_and_no_two_replies_do() -> None:
    streamed = reply(include_usage=True)
    made = [streamed.piece(0, "a"), streamed.end(1, ANSWERS[1]), streamed.total(ANSWERS)]
    made.append(streamed.whole(ANSWERS))
    heads = [chunk and (chunk["id"], chunk["created"], chunk["model"]) for chunk in made]
    assert len(set(heads)) == 1
    assert len({reply().whole(ANSWERS)["id"] for _ in range(100)}) == 100
