"""The text contract: what prompts may be, and what the responses look like."""

import time
from typing import Any

import numpy as np
import pytest

from slmflow.served.answer import Answer
from slmflow.served.request import Asked, RequestError
from slmflow.served.search import SearchOptions
from slmflow.served.text import TextReply, parse_request

DEFAULTS = SearchOptions(max_new_tokens=16, temperature=0.5)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("Hi", ("Hi",)),
        (["Hi"], ("Hi",)),
        (["Hi", "Ho", "Hi"], ("Hi", "Ho", "Hi")),
        (("Hi", "Ho"), ("Hi", "Ho")),
        (np.array(["Hi", "Ho"]), ("Hi", "Ho")),
        (" Hi\n", (" Hi\n",)),  # as it stands
        ("", ("",)),  # whether it can be answered is not a matter of form
    ],
)
def test_prompts_are_a_text_or_a_list_of_texts(given: Any, prompts: tuple[str, ...]) -> None:
    request = parse_request({"prompt": given, "n": 2, "max_tokens": 3, "echo": False}, DEFAULTS)
    assert request.prompts == prompts
    assert request.asked == Asked(DEFAULTS.changed({"max_new_tokens": 3}), n=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "prompt is missing or empty; give a text, or a list of texts"),
        (float("nan"), "prompt is missing or empty"),
        ([], "prompt is missing or empty"),
        (5, "prompt is missing or empty"),
        (True, "prompt is missing or empty"),
        ({"text": "Hi"}, "prompt is missing or empty"),
        ([1, 2], "prompt holds 1; give a text, or a list of texts"),  # tokens
        ([[1, 2]], "prompt holds [1, 2]"),
        (["Hi", None], "prompt holds None"),
        (["Hi", ["Ho"]], "prompt holds ['Ho']"),
        ("\ud83d", "prompt holds half of a surrogate pair"),
        (["Hi", "\ude42"], "prompt holds half of a surrogate pair"),
    ],
)
def test_prompts_that_are_no_texts_are_refused(given: Any, said: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_request({"prompt": given}, DEFAULTS)
    assert said in str(refusal.value)
    assert refusal.value.field == "prompt"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"response_format": {"type": "text"}}, "response_format belongs to /v1/chat/completions"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages is not supported"),
        ({"echo": True}, "echo is not supported"),
        ({"suffix": "."}, "suffix is not supported"),
        ({"best_of": 2}, "best_of is not supported"),
        ({"logprobs": 5}, "logprobs is not supported"),
        ({"temperature": -1}, "temperature is -1"),
    ],
)
def test_what_a_completion_cannot_do_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_request({"prompt": "Hi", **fields}, DEFAULTS)
    assert said in str(refusal.value)
    assert refusal.value.field == next(iter(fields))


ANSWERS = [  # of two prompts, two choices each
    Answer("Madrid", "stop", 10, 2),
    Answer("Mad", "length", 10, 1),
    Answer("Rome", "stop", 7, 3),
    Answer("", "stop", 7, 0),
]
USAGE = {"prompt_tokens": 17, "completion_tokens": 6, "total_tokens": 23}


def reply(n: int = 2, include_usage: bool = False) -> TextReply:
    return TextReply("phi", Asked(DEFAULTS, n=n, stream=True, include_usage=include_usage))


def choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def test_a_completion_has_the_shape_of_the_protocol() -> None:
    before = int(time.time())
    made = reply().whole(ANSWERS)
    assert made.pop("id").startswith("cmpl-")
    assert before <= made.pop("created") <= time.time()
    assert made == {
        "object": "text_completion",
        "model": "phi",
        "choices": [
            choice(0, "Madrid", "stop"),
            choice(1, "Mad", "length"),
            choice(2, "Rome", "stop"),
            choice(3, "", "stop"),
        ],
        "usage": USAGE,
    }


@pytest.mark.parametrize(("n", "prompt_tokens"), [(1, 34), (2, 17), (4, 10)])
def test_choices_of_one_prompt_count_its_tokens_once(n: int, prompt_tokens: int) -> None:
    made = reply(n).whole(ANSWERS)["usage"]
    assert made == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 6,
        "total_tokens": prompt_tokens + 6,
    }


def test_chunks_carry_the_text_and_the_reason_last() -> None:
    streamed = reply()
    made = [streamed.piece(2, "Ro"), streamed.piece(2, "me"), streamed.end(2, ANSWERS[2])]
    assert [chunk["choices"] for chunk in made] == [
        [choice(2, "Ro", None)],
        [choice(2, "me", None)],
        [choice(2, "", "stop")],
    ]
    assert {chunk["object"] for chunk in made} == {"text_completion"}
    assert not any("usage" in chunk for chunk in made)
    assert streamed.total(ANSWERS) is None


def test_the_usage_comes_in_a_chunk_of_its_own_where_it_was_asked_for() -> None:
    streamed = reply(include_usage=True)
    made = [streamed.piece(0, "Madrid"), streamed.end(0, ANSWERS[0])]
    assert [chunk["usage"] for chunk in made] == [None, None]
    total = streamed.total(ANSWERS)
    assert total is not None
    assert total["object"] == "text_completion"
    assert total["choices"] == []
    assert total["usage"] == USAGE


def test_all_of_one_reply_shares_its_id_and_no_two_replies_do() -> None:
    streamed = reply(include_usage=True)
    made = [streamed.piece(0, "a"), streamed.end(1, ANSWERS[1]), streamed.total(ANSWERS)]
    made.append(streamed.whole(ANSWERS))
    heads = [chunk and (chunk["id"], chunk["created"], chunk["model"]) for chunk in made]
    assert len(set(heads)) == 1
    assert len({reply().whole(ANSWERS)["id"] for _ in range(100)}) == 100
