"""Many callers at once, over a runtime without a model and without a clock."""

import json
import queue
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from slmflow.served.generate import BATCH_ROWS, generate
from slmflow.served.packaged import PackagedModel
from slmflow.served.session import Limits, Session
from tests.fakes import FakeRuntime, any_requests, backwards, last_user_text

Message = dict[str, Any] | None
NO_LIMITS = Limits(gather_seconds=0, chunk_seconds=0)


class Callers(queue.Queue[Message]):
    """An inbox whose messages come when a test says so, never by the clock.

    ``now`` is there when the session begins. Of ``later``, (step, message), each comes while that
    step is made, counted over all batches, or at once when the session would have nothing to do;
    an exception is raised by the step. ``gathered`` comes while the session waits for more callers.
    After all of it comes None, and nobody may ask any more.
    """

    def __init__(
        self,
        now: Sequence[Message],
        later: Sequence[tuple[int, Message | Exception]],
        gathered: Sequence[Message],
        seen: Callable[[Message], None],
    ) -> None:
        super().__init__()
        for message in now:
            self.put(message)
        self._later = sorted(later, key=lambda entry: entry[0])
        self._gathered = list(gathered)
        self._seen = seen
        self._steps = 0
        self._ended = False
        self.waits: list[float] = []

    def step(self) -> None:
        self._steps += 1
        while self._later and self._later[0][0] <= self._steps:
            _, message = self._later.pop(0)
            if isinstance(message, Exception):
                raise message
            self.put(message)

    def get(self, block: bool = True, timeout: float | None = None) -> Message:
        if timeout is not None and self.empty():
            self.waits.append(timeout)
            if not self._gathered:
                raise queue.Empty
            self.put(self._gathered.pop(0))
        elif self.empty():
            assert not self._ended, "the session waits for messages though the last one came"
            message = self._later.pop(0)[1] if self._later else None
            assert not isinstance(message, Exception), "no step was left to fail"
            self.put(message)
        message = super().get()
        self._ended = self._ended or message is None
        self._seen(message)
        return message


@dataclass(frozen=True)
class Talk:
    """``said``: what the session said, and ``{"event": "cancel", "id": ...}`` where it read one."""

    said: list[dict[str, Any]]
    runtime: FakeRuntime
    waits: list[float]

    def events(self, id: str | None = None) -> list[str]:
        """The events of one request, or every event with its request."""
        if id is None:
            return [f"{message['id']} {message['event']}" for message in self.said]
        return [message["event"] for message in self.said if message["id"] == id]

    def order(self, event: str) -> list[str]:
        return [message["id"] for message in self.said if message["event"] == event]

    def only(self, id: str, event: str) -> dict[str, Any]:
        (message,) = [m for m in self.said if m["id"] == id and m["event"] == event]
        return message

    def response(self, id: str) -> dict[str, Any]:
        return self.only(id, "done")["response"]

    def texts(self, id: str) -> list[str]:
        return [text for text, _ in choices_of(self.response(id))]

    def chunks(self, id: str) -> list[dict[str, Any]]:
        return [m["chunk"] for m in self.said if m["id"] == id and m["event"] == "chunk"]


def reply(prompt: str, options: Any) -> str:
    """A chat's last question as it is, a text backwards."""
    return (last_user_text if prompt.endswith("assistant: ") else backwards)(prompt, options)


def model_over(runtime: FakeRuntime, **search: Any) -> PackagedModel:
    settings = {"task": "chat", "model": "fake", "max_new_tokens": 60, **search}
    return PackagedModel(runtime, settings)


def talk(
    *now: Message,
    later: Sequence[tuple[int, Message | Exception]] = (),
    gathered: Sequence[Message] = (),
    limits: Limits = NO_LIMITS,
    runtime: FakeRuntime | None = None,
    **search: Any,
) -> Talk:
    runtime = runtime or FakeRuntime(reply)
    said: list[dict[str, Any]] = []

    def seen(message: Message) -> None:
        if message and "cancel" in message:
            said.append({"event": "cancel", "id": message["cancel"]})

    callers = Callers(now, later, gathered, seen)
    runtime.on_step = callers.step
    Session(model_over(runtime, **search), limits, said.append).run(callers)
    assert runtime.closed == len(runtime.batches)
    for id in {message["id"] for message in said}:
        check_order(said, id)
    return Talk(said, runtime, callers.waits)


def check_order(said: Sequence[dict[str, Any]], id: str) -> None:
    events = " ".join(message["event"] for message in said if message["id"] == id)
    began = r"accepted( started( chunk)*( done| error)?)?|error"
    assert re.fullmatch(rf"({began})?( ?cancel)*", events), events


def chat(id: str, text: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    return {"ask": id, "kind": "chat", "body": body}


def text(id: str, prompt: str | list[str], **fields: Any) -> dict[str, Any]:
    return {"ask": id, "kind": "text", "body": {"prompt": prompt, **fields}}


def cancel(id: str) -> dict[str, Any]:
    return {"cancel": id}


def choices_of(response: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Text and finish reason of every choice."""
    assert [choice["index"] for choice in response["choices"]] == [*range(len(response["choices"]))]
    return [
        (
            choice["message"]["content"] if "message" in choice else choice["text"],
            choice["finish_reason"],
        )
        for choice in response["choices"]
    ]


def joined(chunks: Sequence[Mapping[str, Any]]) -> list[tuple[str, str | None]]:
    """The same of a stream, which may not be over yet; ("", None) for a choice not begun."""
    texts: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            index = choice["index"]
            assert reasons.get(index) is None, "a piece after the end of its choice"
            piece = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            texts[index] = texts.get(index, "") + piece
            reasons[index] = choice["finish_reason"]
    begun = range(max(texts, default=-1) + 1)
    return [(texts.get(index, ""), reasons.get(index)) for index in begun]


def alone(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the model answers to this request, every choice generated on its own."""
    model = model_over(FakeRuntime(reply))
    job = (model.chat_job if request["kind"] == "chat" else model.text_job)(request["body"])
    return job.reply.whole([generate(model.runtime, [prompt])[0] for prompt in job.prompts])


def same(response: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    own = ("id", "created")
    return {k: v for k, v in response.items() if k not in own} == {
        k: v for k, v in expected.items() if k not in own
    }


# What waits together


def test_what_waits_together_is_generated_together_whatever_its_kind() -> None:
    told = talk(chat("a", "one"), text("b", "two"), text("c", ["x", "yz"]), chat("d", "three"))
    assert [len(batch) for batch in told.runtime.batches] == [5]
    assert [told.texts(id) for id in "abcd"] == [["one"], ["owt"], ["x", "zy"], ["three"]]


def test_a_plain_queue_is_read_to_its_end() -> None:
    inbox: queue.Queue[Message] = queue.Queue()
    for message in (chat("a", "one"), chat("b", "two"), None):
        inbox.put(message)
    runtime = FakeRuntime(reply)
    said: list[dict[str, Any]] = []
    Session(
        model_over(runtime),
        Limits(gather_seconds=3600, settle_seconds=0, chunk_seconds=0),
        said.append,
    ).run(inbox)
    assert [message["id"] for message in said if message["event"] == "done"] == ["a", "b"]
    assert [len(batch) for batch in runtime.batches] == [2]


def test_who_came_first_is_answered_first() -> None:
    many = [chat(f"{index}", "hello") for index in range(2 * BATCH_ROWS + 3)]
    told = talk(*many)
    assert [len(batch) for batch in told.runtime.batches] == [BATCH_ROWS, BATCH_ROWS, 3]
    assert told.order("started") == told.order("done") == [message["ask"] for message in many]


def test_the_next_batch_is_what_can_be_generated_with_the_first_who_waits() -> None:
    told = talk(
        chat("a", "one"),
        chat("b", "two", temperature=0.5),
        chat("c", "three", max_tokens=3, stop=["z"]),
        chat("d", "four", temperature=0.5, seed=1),
        chat("e", "five", response_format={"type": "json_object"}),
        chat("f", "six", temperature=0.5),
        chat("g", "seven", presence_penalty=1),
    )
    assert told.order("started") == ["a", "c", "b", "f", "d", "e", "g"]
    assert [len(batch) for batch in told.runtime.batches] == [2, 2, 1, 1, 1]
    assert told.runtime.schemas == [None, None, None, '{"type": "object"}', None]
    assert told.texts("f") == ["six beside 1"]
    assert told.texts("d") == ["four beside 0"]


def test_who_comes_while_others_are_answered_is_next() -> None:
    told = talk(
        chat("a", "something long"),
        later=[(2, chat("b", "two")), (3, chat("c", "three")), (5, text("d", "four"))],
    )
    assert [len(batch) for batch in told.runtime.batches] == [1, 3]
    assert told.order("accepted") == told.order("started") == ["a", "b", "c", "d"]
    events = told.events()
    assert events.index("d accepted") < events.index("a done") < events.index("b started")


def test_a_request_is_started_once_though_its_choices_need_several_batches() -> None:
    told = talk(chat("a", "abc", n=BATCH_ROWS + 4, stream=True), chat("b", "two"))
    assert [len(batch) for batch in told.runtime.batches] == [BATCH_ROWS, 5]
    assert told.order("started") == ["a", "b"]
    assert told.texts("a") == ["abc"] * (BATCH_ROWS + 4)
    assert joined(told.chunks("a")) == [("abc", "stop")] * (BATCH_ROWS + 4)


def test_a_short_answer_is_told_while_its_neighbours_are_still_made() -> None:
    told = talk(chat("a", "a long answer"), chat("b", "b", stream=True))
    assert told.order("done") == ["b", "a"]
    assert told.runtime.made == [len("a long answer") + 1]


def test_the_times_of_an_answer_are_those_of_its_life() -> None:
    done = talk(chat("a", "one")).only("a", "done")
    assert 0 <= done["waited_seconds"] <= done["first_token_seconds"] <= done["seconds"]


# Streams


def test_a_stream_is_said_in_chunks_and_then_whole() -> None:
    told = talk(chat("a", "abc", stream=True), chat("b", "abc"))
    assert told.events("a") == ["accepted", "started", *["chunk"] * 4, "done"]
    assert told.events("b") == ["accepted", "started", "done"]
    assert told.only("a", "accepted")["stream"] is True
    assert told.only("b", "accepted")["stream"] is False
    assert [chunk["choices"][0]["delta"] for chunk in told.chunks("a")] == [
        {"role": "assistant", "content": "a"},
        {"content": "b"},
        {"content": "c"},
        {},
    ]
    assert {chunk["id"] for chunk in told.chunks("a")} == {told.response("a")["id"]}


@pytest.mark.parametrize("ask", [chat, text])
def test_the_usage_is_the_last_chunk_where_it_was_asked_for(ask: Any) -> None:
    options = {"include_usage": True}
    told = talk(ask("a", "abc", n=2, stream=True, stream_options=options))
    *chunks, total = told.chunks("a")
    assert [chunk["usage"] for chunk in chunks] == [None] * 8
    assert total["choices"] == []
    assert total["usage"] == told.response("a")["usage"]


# The same answers as alone, whatever else happens

TEXTS = st.text("ab \N{EURO SIGN}", min_size=1, max_size=12).filter(str.strip)
FIELDS: list[dict[str, Any]] = [
    {},
    {"max_tokens": 5},
    {"stop": ["b", "a "]},
    {"max_tokens": 3, "stop": "ab"},
    {"n": 3},
    {"frequency_penalty": 0.5},
    {"temperature": 0.5, "seed": 3, "n": 2},
]
UNSEEDED = {"temperature": 0.5}  # its answer depends on its neighbours, theirs not on it
STREAMS: list[dict[str, Any]] = [
    {},
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True}},
]


@st.composite
def asked(draw: st.DrawFn, id: str) -> dict[str, Any]:
    fields = draw(st.sampled_from([*FIELDS, UNSEEDED])) | draw(st.sampled_from(STREAMS))
    if draw(st.booleans()):
        schema: dict[str, Any] = draw(
            st.sampled_from([{}, {}, {"response_format": {"type": "json_object"}}])
        )
        return chat(id, draw(TEXTS), **fields, **schema)
    return text(id, draw(TEXTS | st.lists(TEXTS, min_size=1, max_size=3)), **fields)


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[int, dict[str, Any]]]:
    """Requests and the steps at which they come, cancelled or not at a later one."""
    schedule: list[tuple[int, dict[str, Any]]] = []
    for index in range(draw(st.integers(1, 8))):
        step = draw(st.just(0) | st.integers(0, 30))
        schedule.append((step, draw(asked(f"{index}"))))
        if draw(st.sampled_from([False, False, True])):
            schedule.append((step + draw(st.integers(0, 15)), cancel(f"{index}")))
    return sorted(schedule, key=lambda entry: entry[0])


@settings(deadline=None)
@given(schedules())
def test_every_answer_is_the_one_given_alone_whoever_comes_and_goes(
    schedule: list[tuple[int, dict[str, Any]]],
) -> None:
    told = talk(
        *[message for step, message in schedule if step == 0],
        later=[entry for entry in schedule if entry[0] > 0],
    )
    requests = {m["ask"]: m for _, m in schedule if "ask" in m}
    cancelled = {m["cancel"] for _, m in schedule if "cancel" in m}
    for id, request in requests.items():
        events = told.events(id)
        assert "error" not in events
        if id not in cancelled:
            assert events[-1] == "done"
        elif "done" not in events:
            event("cancelled in mid-answer" if "started" in events else "cancelled while waiting")
        expected = alone(request)
        deterministic = "temperature" not in request["body"] or "seed" in request["body"]
        if deterministic:
            whole = choices_of(expected)
            for (piece, reason), (text, end) in zip(joined(told.chunks(id)), whole, strict=False):
                assert text.startswith(piece)
                assert reason in (None, end)
        if "done" in events:
            response = told.response(id)
            assert same(response, expected) or not deterministic
            if request["body"].get("stream"):
                assert joined(told.chunks(id)) == choices_of(response)
                usage = [chunk["usage"] for chunk in told.chunks(id) if chunk.get("usage")]
                counted = "stream_options" in request["body"]
                assert usage == [response["usage"]] * counted
            else:
                assert told.chunks(id) == []


# Callers who go


def test_who_goes_while_waiting_is_never_answered() -> None:
    told = talk(
        chat("a", "one"),
        chat("b", "two", temperature=0.5),
        chat("c", "three", temperature=0.5),
        later=[(2, cancel("b"))],
    )
    assert told.events("b") == ["accepted", "cancel"]
    assert [len(batch) for batch in told.runtime.batches] == [1, 1]
    assert told.texts("c") == ["three beside 0"]


def test_who_goes_before_anything_is_generated_costs_nothing() -> None:
    told = talk(chat("a", "one"), cancel("a"))
    assert told.events() == ["a accepted", "a cancel"]
    assert told.runtime.batches == []


def test_who_goes_in_mid_answer_hears_no_more_and_the_others_all() -> None:
    long = "a long answer"
    told = talk(
        chat("a", long, stream=True), chat("b", long + long, stream=True), later=[(3, cancel("b"))]
    )
    assert told.events("b") == ["accepted", "started", *["chunk"] * 3, "cancel"]
    assert joined(told.chunks("a")) == choices_of(told.response("a")) == [(long, "stop")]
    assert told.runtime.made == [len(long) + 1]  # nobody waits for the longer one


def test_a_batch_for_which_nobody_waits_any_more_ends() -> None:
    told = talk(
        chat("a", "a long answer"),
        chat("b", "another one"),
        later=[(2, cancel("b")), (4, cancel("a")), (4, chat("c", "three"))],
    )
    assert told.runtime.made == [4, len("three") + 1]
    assert told.order("done") == ["c"]
    assert told.texts("c") == ["three"]


def test_a_request_goes_with_all_of_its_choices() -> None:
    told = talk(chat("a", "a long answer", n=BATCH_ROWS + 4), later=[(3, cancel("a"))])
    assert told.runtime.made == [3]
    assert told.events("a") == ["accepted", "started", "cancel"]


def test_to_cancel_what_nobody_knows_or_what_is_answered_changes_nothing() -> None:
    told = talk(
        cancel("x"), chat("a", "one"), later=[(1, cancel("y")), (9, cancel("a")), (9, cancel("a"))]
    )
    assert told.events("a") == ["accepted", "started", "done", "cancel", "cancel"]
    assert told.texts("a") == ["one"]


# Requests that cannot be answered


def test_a_bad_request_is_told_at_once_and_the_others_are_answered() -> None:
    told = talk(
        chat("a", "one"),
        chat("b", "two", temperature=-1),
        text("c", ["three", ""]),
        later=[(1, chat("d", "four", logprobs=True))],
    )
    assert told.events()[:3] == ["a accepted", "b error", "c error"]
    assert told.only("b", "error") == {
        "event": "error",
        "id": "b",
        "status": 400,
        "error": {
            "message": "temperature is -1.0; allowed: 0 (greedy) to 100",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": None,
        },
    }
    assert told.only("c", "error")["error"]["param"] == "prompt"
    assert told.events().index("d error") < told.events().index("a done")
    assert told.texts("a") == ["one"]
    assert told.runtime.batches == [["user: one\nassistant: "]]


def test_a_text_that_the_tokenizer_fails_on_fails_alone() -> None:
    class Fragile(FakeRuntime):
        def encode(self, text: str, rendered: bool) -> list[int]:
            if "boom" in text:
                raise OverflowError("no such token")
            return super().encode(text, rendered)

    told = talk(chat("a", "one"), chat("b", "boom"), text("c", "boom"), runtime=Fragile(reply))
    for id in "bc":
        failed = told.only(id, "error")
        assert failed["status"] == 500
        assert failed["error"]["type"] == "server_error"
        assert "OverflowError: no such token" in failed["error"]["message"]
    assert told.texts("a") == ["one"]


@pytest.mark.parametrize("ask", [chat, text])
def test_half_of_a_character_is_a_bad_request(ask: Any) -> None:
    told = talk(ask("a", "a\ud83d"), ask("b", "b"))
    assert told.only("a", "error")["status"] == 400
    assert told.texts("b") == ["b"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["chat", "text"]), any_requests()), max_size=4))
def test_whatever_is_asked_is_answered_or_refused(
    requests: list[tuple[str, dict[str, Any]]],
) -> None:
    messages = []
    for index, (kind, body) in enumerate(requests):
        body.pop("prompt" if kind == "chat" else "messages", None)
        messages.append({"ask": f"{index}", "kind": kind, "body": body})
    limits = Limits(new_tokens=20, choices=4, gather_seconds=0, chunk_seconds=0)
    told = talk(*messages, limits=limits, runtime=FakeRuntime(reply, refused_schemas=["{}"]))
    for index in range(len(messages)):
        last = told.events(f"{index}")[-1]
        assert last in ("done", "error")
        if last == "error":
            assert told.only(f"{index}", "error")["status"] == 400
    assert json.loads(json.dumps(told.said)) == told.said


# A model that fails


def test_a_failure_is_told_to_the_callers_of_its_batch_and_the_next_goes_on() -> None:
    def fragile(prompt: str, options: Any) -> str:
        if "boom" in prompt:
            raise MemoryError("no room")
        return reply(prompt, options)

    told = talk(
        chat("a", "boom"),
        chat("b", "two", temperature=0.5),
        chat("c", "three", stream=True),
        later=[(1, chat("d", "four"))],
        runtime=FakeRuntime(fragile),
    )
    for id in "ac":
        assert told.events(id) == ["accepted", "started", "error"]
        assert told.only(id, "error") == {
            "event": "error",
            "id": id,
            "status": 500,
            "error": {
                "message": "the model failed: MemoryError: no room",
                "type": "server_error",
                "param": None,
                "code": None,
            },
        }
    assert told.texts("b") == ["two beside 0"]
    assert told.texts("d") == ["four"]


def test_a_failure_in_mid_answer_is_told_to_those_who_are_not_answered_yet() -> None:
    told = talk(
        chat("a", "a"),
        chat("b", "a long answer", stream=True),
        later=[(4, RuntimeError("lost")), (5, chat("c", "three"))],
    )
    assert told.events("a") == ["accepted", "started", "done"]
    assert told.events("b") == ["accepted", "started", "chunk", "chunk", "chunk", "error"]
    assert told.only("b", "error")["status"] == 500
    assert told.texts("c") == ["three"]


def test_a_request_fails_once_and_with_all_of_its_choices() -> None:
    told = talk(
        chat("a", "abc", n=BATCH_ROWS + 4),
        chat("b", "two"),
        later=[(2, RuntimeError("lost"))],
    )
    assert told.events("a") == ["accepted", "started", "error"]
    assert [len(batch) for batch in told.runtime.batches] == [BATCH_ROWS, 1]
    assert told.texts("b") == ["two"]


def test_who_went_before_the_failure_does_not_hear_of_it() -> None:
    told = talk(
        chat("a", "a long answer"),
        chat("b", "a long answer"),
        later=[(2, cancel("a")), (3, RuntimeError("lost"))],
    )
    assert told.events("a") == ["accepted", "started", "cancel"]
    assert told.events("b")[-1] == "error"


# Limits


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_who_asks_for_more_tokens_than_allowed_is_refused(name: str) -> None:
    limits = Limits(new_tokens=5, gather_seconds=0, chunk_seconds=0)
    told = talk(
        chat("a", "a long answer", **{name: 6}),
        chat("b", "a long answer", **{name: 5}),
        text("c", "a long answer", **{name: 6}),
        limits=limits,
    )
    for id in "ac":
        failed = told.only(id, "error")
        assert failed["status"] == 400
        assert failed["error"]["message"] == f"{name} is 6 and this server allows 5"
        assert failed["error"]["param"] == name
    assert choices_of(told.response("b")) == [("a lon", "length")]


def test_who_says_no_length_gets_the_most_that_is_allowed_or_the_models_own() -> None:
    def most(new_tokens: int | None) -> list[tuple[str, str]]:
        limits = Limits(new_tokens=new_tokens, gather_seconds=0, chunk_seconds=0)
        told = talk(chat("a", "a long answer"), limits=limits, max_new_tokens=8)
        return choices_of(told.response("a"))

    assert most(5) == [("a lon", "length")]
    assert most(8) == most(50) == most(None) == [("a long a", "length")]


def test_who_asks_for_more_choices_than_allowed_is_refused() -> None:
    limits = Limits(choices=3, gather_seconds=0, chunk_seconds=0)
    told = talk(
        chat("a", "one", n=4),
        chat("b", "two", n=3),
        text("c", ["x", "y"], n=2),
        text("d", ["x", "y", "z"]),
        text("e", ["x"] * 4),
        limits=limits,
    )
    for id in "ace":
        failed = told.only(id, "error")
        assert failed["status"] == 400
        assert "4 answers are asked for" in failed["error"]["message"]
        assert "this server allows 3" in failed["error"]["message"]
    assert told.texts("b") == ["two"] * 3
    assert told.texts("d") == ["x", "y", "z"]


# The end


def test_nothing_is_asked() -> None:
    assert talk(None).said == []


def test_the_end_comes_when_all_that_was_asked_is_answered() -> None:
    told = talk(chat("a", "one"), chat("b", "two", temperature=0.5), None)
    assert told.order("done") == ["a", "b"]


def test_the_end_in_mid_answer_lets_everybody_finish() -> None:
    told = talk(
        chat("a", "one"),
        chat("b", "two", temperature=0.5),
        later=[(1, chat("c", "three")), (2, None)],
    )
    assert told.order("done") == ["a", "b", "c"]


def test_the_end_comes_though_everybody_has_gone() -> None:
    told = talk(chat("a", "a long answer"), later=[(1, cancel("a")), (1, None)])
    assert told.runtime.made == [1]


# Waiting for callers who come again

PATIENT = Limits(gather_seconds=3600, settle_seconds=0, chunk_seconds=0)


def test_one_caller_alone_is_never_kept_waiting() -> None:
    told = talk(chat("a", "one"), later=[(99, chat("b", "two"))], limits=PATIENT)
    assert told.order("done") == ["a", "b"]
    assert told.waits == []


def test_callers_who_were_answered_together_are_answered_together_again() -> None:
    told = talk(
        *[chat(id, "one") for id in "abc"],
        later=[(99, chat("a2", "two"))],
        gathered=[chat("b2", "two"), chat("c2", "two"), chat("d2", "two")],
        limits=PATIENT,
    )
    assert [len(batch) for batch in told.runtime.batches] == [3, 3]
    assert told.order("done") == ["a", "b", "c", "a2", "b2", "c2"]
    assert len(told.waits) == 2  # enough with the third, so that d2 is not waited for
    assert all(0 < wait <= 3600 for wait in told.waits)


def test_who_waits_already_is_answered_with_those_who_come_again() -> None:
    told = talk(
        chat("a", "one"),
        chat("b", "one"),
        later=[(1, chat("c", "two")), (2, chat("d", "two"))],
        gathered=[chat("a2", "two"), chat("b2", "two")],
        limits=PATIENT,
    )
    assert [len(batch) for batch in told.runtime.batches] == [2, 4]
    assert len(told.waits) == 2


def test_a_batch_that_is_full_waits_for_nobody() -> None:
    told = talk(
        *[chat(f"a{index}", "one") for index in range(BATCH_ROWS)],
        later=[(1, chat(f"b{index}", "two")) for index in range(BATCH_ROWS)],
        limits=PATIENT,
    )
    assert [len(batch) for batch in told.runtime.batches] == [BATCH_ROWS, BATCH_ROWS]
    assert told.waits == []


def test_the_wait_is_over_when_nobody_comes() -> None:
    told = talk(chat("a", "one"), chat("b", "one"), later=[(99, chat("a2", "two"))], limits=PATIENT)
    assert [len(batch) for batch in told.runtime.batches] == [2, 1]
    assert len(told.waits) == 1
    assert told.order("done") == ["a", "b", "a2"]


def test_without_patience_only_what_is_already_there_is_taken() -> None:
    told = talk(
        chat("a", "one"),
        chat("b", "one"),
        chat("c", "one"),
        later=[(2, chat("a2", "two")), (3, chat("b2", "two"))],
    )
    assert [len(batch) for batch in told.runtime.batches] == [3, 2]
    assert told.waits == []


def test_a_bad_request_does_not_end_the_wait() -> None:
    told = talk(
        chat("a", "one"),
        chat("b", "one"),
        later=[(99, chat("a2", "two"))],
        gathered=[chat("x", "two", n=0), chat("b2", "two")],
        limits=PATIENT,
    )
    assert [len(batch) for batch in told.runtime.batches] == [2, 2]


def test_the_wait_ends_with_the_inbox_and_who_waits_is_answered() -> None:
    told = talk(
        chat("a", "one"),
        chat("b", "one"),
        later=[(99, chat("a2", "two"))],
        gathered=[None],
        limits=PATIENT,
    )
    assert told.order("done") == ["a", "b", "a2"]
    assert len(told.waits) == 1


def test_the_wait_is_over_when_who_waited_has_gone() -> None:
    told = talk(
        chat("a", "one"),
        chat("b", "one"),
        later=[(99, chat("a2", "two")), (99, chat("c", "three"))],
        gathered=[cancel("a2")],
        limits=PATIENT,
    )
    assert told.events("a2") == ["accepted", "cancel"]
    assert told.texts("c") == ["three"]


def test_a_session_that_was_idle_waits_a_moment_for_others() -> None:
    settling = Limits(gather_seconds=3600, settle_seconds=3, chunk_seconds=0)
    told = talk(chat("a", "one"), gathered=[chat("b", "one")], limits=settling)
    assert [len(batch) for batch in told.runtime.batches] == [2]
    assert told.waits
    assert all(0 < wait <= 3 for wait in told.waits)


def test_after_the_first_piece_a_chunk_holds_what_came_meanwhile() -> None:
    slow_reader = Limits(gather_seconds=0, chunk_seconds=3600)
    told = talk(chat("a", "an answer", stream=True), limits=slow_reader)
    deltas = [
        message["chunk"]["choices"][0]["delta"].get("content", "")
        for message in told.said
        if message["event"] == "chunk"
    ]
    assert deltas == ["a", "n answer", ""]
