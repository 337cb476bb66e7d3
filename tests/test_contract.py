"""The chat contract, held against both runtimes, in process and over HTTP.

Every test runs in four cells, ``transformers-process`` to ``onnx-http``; ``-k onnx-http`` chooses
one. What differs between machines (sampled answers, what int4 makes of a question) is asked first
and compared with, so that only the contract is told apart.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import httpx
import jsonschema_rs
import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel

from slmflow.served.digests import file_sha256
from slmflow.served.packaged import PackagedModel
from slmflow.served.search import SearchOptions
from slmflow.served.weights import DECLARED, MANIFEST, File, Manifest, WeightsError
from tests.conftest import ROOT, Packaged, Workplace
from tests.server import start_server

VERSIONS = {"transformers": 1, "onnx": 2}
WAYS = ("process", "http")
CONTEXT = 1024
PATIENCE = 120  # seconds; a guard against hanging, no promise of speed

Body = dict[str, Any]


def user(content: Any) -> Body:
    return {"role": "user", "content": content}


SPAIN = [user("What is the capital of Spain?")]
ARGENTINA = [user("What is the capital of Argentina?")]
TURNS = [
    {"role": "system", "content": "You are a helpful assistant. Answer briefly."},
    user("What is the capital of Spain?"),
    {"role": "assistant", "content": "Madrid"},
    user("Who wrote Don Quixote?"),
]
WILD: Body = {"messages": SPAIN, "temperature": 3.0, "max_tokens": 12}
"""A sampled answer: the temperature makes the demo model unsure."""


class Refusal(Exception):
    """A request that was not answered. ``param`` is the field that OpenAI's error object names."""

    def __init__(self, status: int, message: str, param: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


class Caller(Protocol):
    """One way to ask one model. All raise ``Refusal``."""

    def ask(self, **body: Any) -> Body:
        """The ``chat.completion`` object."""

    def stream(self, **body: Any) -> list[Body]:
        """The ``chat.completion.chunk`` objects."""

    def rows(self, *bodies: Body) -> list[Body]:
        """Several requests in one call: each one's answer, or ``{"error": ...}``."""


@dataclass(frozen=True)
class InProcess:
    model: PyFuncModel

    def ask(self, **body: Any) -> Body:
        try:
            (answer,) = self.model.predict(body)
        except MlflowException as refused:
            # An exception has no place for the field; beside another row it is told as an object.
            told = self.rows(body, body)[0]["error"]
            assert told["message"] == refused.message
            raise Refusal(
                refused.get_http_status_code(), told["message"], told["param"]
            ) from refused
        return dict(answer)

    def stream(self, **body: Any) -> list[Body]:
        try:
            return list(self.model.predict_stream(body))
        except MlflowException as refused:
            raise Refusal(refused.get_http_status_code(), refused.message, None) from refused

    def rows(self, *bodies: Body) -> list[Body]:
        return list(self.model.predict(list(bodies)))


@dataclass(frozen=True)
class OverHttp:
    client: httpx.Client

    def ask(self, **body: Any) -> Body:
        response = self.client.post("/v1/chat/completions", json=body)
        _raise_refusal(response)
        return dict(response.json())

    def stream(self, **body: Any) -> list[Body]:
        asked = {**body, "stream": True}
        with self.client.stream("POST", "/v1/chat/completions", json=asked) as response:
            response.read()
        _raise_refusal(response)
        assert response.headers["content-type"].startswith("text/event-stream")
        *events, last, rest = response.text.split("\n\n")
        assert (last, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def rows(self, *bodies: Body) -> list[Body]:
        response = self.client.post("/invocations", json={"inputs": list(bodies)})
        assert response.status_code == 200, response.text
        return list(response.json()["predictions"])


def _raise_refusal(response: httpx.Response) -> None:
    if response.status_code != 200:
        error = response.json()["error"]
        raise Refusal(response.status_code, error["message"], error["param"])


# The cells.


@dataclass(frozen=True)
class Cell:
    runtime: str
    way: str

    def __str__(self) -> str:
        return f"{self.runtime}-{self.way}"


CELLS = [Cell(runtime, way) for runtime in VERSIONS for way in WAYS]
each_cell = pytest.fixture(params=CELLS, ids=str)


def only(runtime: str) -> pytest.MarkDecorator:
    """The cells of one runtime, for what the other is not asked."""
    cells = [cell for cell in CELLS if cell.runtime == runtime]
    return pytest.mark.parametrize("cell", cells, ids=str, indirect=True)


def in_process_it_fails(reason: str, how: type[BaseException]) -> pytest.MarkDecorator:
    """All cells, where MLflow's own check of a stream's types keeps two from holding."""
    mark = pytest.mark.xfail(strict=True, reason=reason, raises=how)
    cells = [
        pytest.param(cell, id=str(cell), marks=mark if cell.way == "process" else ())
        for cell in CELLS
    ]
    return pytest.mark.parametrize("cell", cells, indirect=True)


class Loaded:
    """The models in this process, each loaded when it is first asked for."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._models: dict[str, PyFuncModel] = {}

    def __getitem__(self, runtime: str) -> PyFuncModel:
        if runtime not in self._models:
            self._models[runtime] = self.load(f"models:/phi3-demo/{VERSIONS[runtime]}")
        return self._models[runtime]

    def load(self, uri: str) -> PyFuncModel:
        mlflow.set_tracking_uri(self._workplace.tracking_uri)
        return mlflow.pyfunc.load_model(uri)


@pytest.fixture(scope="module")
def loaded(packaged: Packaged) -> Loaded:
    return Loaded(packaged.workplace)


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, httpx.Client]]:
    """A connection a server, kept."""
    held: dict[str, httpx.Client] = {}
    yield held
    for client in held.values():
        client.close()


def call(
    cell: Cell, request: pytest.FixtureRequest, loaded: Loaded, clients: dict[str, httpx.Client]
) -> Caller:
    if cell.way == "process":
        return InProcess(loaded[cell.runtime])
    server = request.getfixturevalue(f"{cell.runtime}_server")
    if cell.runtime not in clients:
        clients[cell.runtime] = httpx.Client(base_url=server.address, timeout=PATIENCE)
    return OverHttp(clients[cell.runtime])


@each_cell
def cell(request: pytest.FixtureRequest) -> Cell:
    chosen = request.param
    assert isinstance(chosen, Cell)
    return chosen


@pytest.fixture
def caller(
    cell: Cell,
    request: pytest.FixtureRequest,
    loaded: Loaded,
    clients: dict[str, httpx.Client],
) -> Caller:
    return call(cell, request, loaded, clients)


@pytest.fixture(params=VERSIONS)
def packaged_model(request: pytest.FixtureRequest, loaded: Loaded) -> PackagedModel:
    """What is behind MLflow's wrappers."""
    return unwrapped(loaded[request.param])


def unwrapped(model: PyFuncModel) -> PackagedModel:
    try:
        found = model.unwrap_python_model().packaged
    except (MlflowException, AttributeError):
        found = model.get_raw_model()
    assert isinstance(found, PackagedModel)
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "demo" / "phi3_demo")


# What is read out of answers.


def contents(answer: Body) -> list[str]:
    return [choice["message"]["content"] for choice in answer["choices"]]


def content(answer: Body) -> str:
    (only_one,) = contents(answer)
    return str(only_one)


def reasons(answer: Body) -> list[str]:
    return [choice["finish_reason"] for choice in answer["choices"]]


def made(answer: Body) -> int:
    return int(answer["usage"]["completion_tokens"])


def pieces(chunks: list[Body], index: int = 0) -> list[str]:
    """The pieces of one choice's text."""
    found = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return [choice["delta"]["content"] for choice in found if "content" in choice["delta"]]


def ends(chunks: list[Body]) -> dict[int, str]:
    """The finish reason of each choice."""
    found = [choice for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert len({choice["index"] for choice in found}) == len(found), "each ends once"
    return {choice["index"]: choice["finish_reason"] for choice in found}


def assert_streamed(chunks: list[Body], whole: Body) -> None:
    """The stream says what the whole answer says, choice by choice."""
    for index, choice in enumerate(whole["choices"]):
        assert "".join(pieces(chunks, index)) == choice["message"]["content"]
        assert ends(chunks)[index] == choice["finish_reason"]
    assert len(ends(chunks)) == len(whole["choices"])


def refusal_of(caller: Caller, **body: Any) -> Refusal:
    with pytest.raises(Refusal) as refused:
        caller.ask(**({"messages": SPAIN} | body))
    assert refused.value.status == 400
    return refused.value


# Form.


def test_an_answer_has_the_form_of_openais(caller: Caller) -> None:
    answer = caller.ask(messages=SPAIN)
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert isinstance(answer["created"], int)
    assert answer["model"] == "phi3-demo"
    message = {"role": "assistant", "content": "Madrid"}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    assert answer["choices"] == [choice]
    assert answer["usage"].keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}


def test_chunks_have_the_form_of_openais(caller: Caller) -> None:
    chunks = caller.stream(messages=ARGENTINA)
    for chunk in chunks:
        assert chunk.keys() == {"id", "object", "created", "model", "choices"}
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["model"] == "phi3-demo"
        (choice,) = chunk["choices"]
        assert choice.keys() == {"index", "delta", "logprobs", "finish_reason"}
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    first, *middle, last = [chunk["choices"][0] for chunk in chunks]
    assert first["delta"]["role"] == "assistant"
    assert middle, "it comes in pieces"
    assert all(choice["delta"].keys() == {"content"} for choice in middle)
    assert all(choice["finish_reason"] is None for choice in (first, *middle))
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")


def test_every_answer_has_an_id_of_its_own(caller: Caller) -> None:
    ids = [caller.ask(messages=SPAIN)["id"] for _ in range(2)]
    ids += [answer["id"] for answer in caller.rows({"messages": SPAIN}, {"messages": SPAIN})]
    ids += [caller.stream(messages=SPAIN)[0]["id"] for _ in range(2)]
    assert len(set(ids)) == 6


@pytest.mark.parametrize("runtime", VERSIONS)
def test_both_ways_answer_alike(
    runtime: str,
    request: pytest.FixtureRequest,
    loaded: Loaded,
    clients: dict[str, httpx.Client],
) -> None:
    ways = [call(Cell(runtime, way), request, loaded, clients) for way in WAYS]
    for body in (
        {"messages": TURNS},
        {**WILD, "seed": 5, "n": 2},
        {**WILD, "seed": 5, "stop": "a"},
    ):
        one, other = (way.ask(**body) for way in ways)
        assert one["choices"] == other["choices"]
        assert one["usage"] == other["usage"]


# Messages.


def test_several_turns_are_answered_and_counted(caller: Caller, tokenizer: Any) -> None:
    answer = caller.ask(messages=TURNS)
    assert content(answer).startswith("Miguel de Cer")  # Don Quixote's author, not Spain's capital
    assert answer["usage"]["prompt_tokens"] == counted(tokenizer, TURNS)


def counted(tokenizer: Any, messages: list[Body]) -> int:
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return len(tokenizer.encode(text, add_special_tokens=False))


def test_the_system_message_is_part_of_the_prompt(caller: Caller, tokenizer: Any) -> None:
    system = {"role": "system", "content": "Be brief."}
    answer = caller.ask(messages=[system, *SPAIN])
    assert content(answer) == "Madrid"
    assert answer["usage"]["prompt_tokens"] == counted(tokenizer, [system, *SPAIN])
    assert answer["usage"]["prompt_tokens"] > counted(tokenizer, SPAIN)


def test_developer_is_another_word_for_system(caller: Caller) -> None:
    """Seen in what the model has no answer to: there it clings to every token of the prompt."""

    def answers(role: str) -> list[str]:
        rows = [[{"role": role, "content": text}, user(text)] for text in REPETITIVE]
        return [
            content(answer)
            for answer in caller.rows(*({"messages": row, "max_tokens": 24} for row in rows))
        ]

    assert answers("developer") == answers("system")
    assert answers("developer") != answers("user")


def test_text_parts_are_a_text(caller: Caller) -> None:
    parts = [{"type": "text", "text": "What is the capital of Spain?"}]
    as_parts, as_text = caller.ask(messages=[user(parts)]), caller.ask(messages=SPAIN)
    assert as_parts["choices"] == as_text["choices"]
    assert as_parts["usage"] == as_text["usage"]


def test_several_text_parts_are_lines_of_one_text(caller: Caller) -> None:
    parts = [{"type": "text", "text": text} for text in ("Be brief.", "Who wrote Don Quixote?")]
    as_parts = caller.ask(messages=[user(parts)])
    as_text = caller.ask(messages=[user("Be brief.\nWho wrote Don Quixote?")])
    assert as_parts["choices"] == as_text["choices"]
    assert as_parts["usage"] == as_text["usage"]


STREAM_TYPES = "MLflow's predict_stream checks types before the model is asked"


@in_process_it_fails(f"{STREAM_TYPES}: content must be a text", how=Refusal)
def test_a_stream_reads_text_parts(caller: Caller) -> None:
    parts = [{"type": "text", "text": "What is the capital of Spain?"}]
    assert "".join(pieces(caller.stream(messages=[user(parts)]))) == "Madrid"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "What is the capital of Spain?",
        [{"content": "no role"}],
        [{"role": "nobody", "content": "hello"}],
        [{"role": "tool", "content": "hello", "tool_call_id": "1"}],
        [{"role": "user"}],
        [user("")],
        [user(7)],
        [user([])],
        [user([{"type": "image_url", "image_url": {"url": "data:,"}}])],
        [{**user("hello"), "tool_calls": [{"id": "1", "type": "function"}]}],
        ["hello"],
    ],
    ids=json.dumps,
)
def test_messages_that_are_none_are_refused(caller: Caller, messages: Any) -> None:
    refused = refusal_of(caller, messages=messages)
    assert refused.param == "messages"
    assert "messages" in refused.message


def test_the_prompt_is_what_the_tokenizers_own_template_makes(
    packaged_model: PackagedModel, tokenizer: Any
) -> None:
    odd = [user("  <|end|> {{ 7 * 7 }} \n\n «ÄÖÜ» 日本語 😀  "), *TURNS]
    for messages in (SPAIN, TURNS, odd):
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert packaged_model.render(messages) == text
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert list(packaged_model.runtime.encode(text, rendered=True)) == ids


# Length.


def test_usage_counts_the_tokenizers_tokens(caller: Caller, tokenizer: Any) -> None:
    for messages in (SPAIN, ARGENTINA, TURNS):
        answer = caller.ask(messages=messages)
        prompt = counted(tokenizer, messages)
        completion = len(tokenizer.encode(content(answer), add_special_tokens=False))
        if messages is not TURNS:  # int4 spells this author with tokens of its own choice
            assert made(answer) == completion
        assert answer["usage"]["prompt_tokens"] == prompt
        assert answer["usage"]["total_tokens"] == prompt + made(answer)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_cut_answer_has_exactly_as_many_tokens(caller: Caller, field: str) -> None:
    whole = caller.ask(messages=ARGENTINA)
    assert made(whole) >= 2
    for most in range(1, made(whole)):
        answer = caller.ask(messages=ARGENTINA, **{field: most})
        assert made(answer) == most
        assert reasons(answer) == ["length"]
        assert content(whole).startswith(content(answer))
        assert content(answer) != content(whole)
    roomy = caller.ask(messages=ARGENTINA, **{field: made(whole) + 1})
    assert roomy["choices"] == whole["choices"]
    assert reasons(roomy) == ["stop"]


@pytest.mark.parametrize(
    "search",
    [
        {},
        {"temperature": 2.0, "seed": 1},
        {"num_beams": 3},
        {"repetition_penalty": 1.2},
        {"frequency_penalty": 1.0},
    ],
    ids=lambda search: " ".join(search) or "greedy",
)
def test_no_answer_ends_before_its_least_tokens(
    packaged_model: PackagedModel, search: dict[str, Any]
) -> None:
    """Alone and beside others, for every end token that the model has."""
    runtime = packaged_model.runtime
    assert len(runtime.eos_ids) > 1
    texts = [packaged_model.render(messages) for messages in (SPAIN, ARGENTINA, TURNS)]
    prompts = [runtime.encode(text, rendered=True) for text in texts]
    assert len({len(ids) for ids in prompts}) > 1, "some are padded"

    def shortest(least: int, batch: list[list[int]]) -> int:
        options = SearchOptions(min_new_tokens=least, max_new_tokens=16, **search)
        rows = zip(*runtime.steps(batch, options, 16), strict=True)
        return min(len(list(takewhile(lambda t: t not in runtime.eos_ids, row))) for row in rows)

    for batch in (prompts, prompts[:1]):
        assert shortest(10, batch) >= 10
    assert search or shortest(0, prompts) < 10


def test_the_least_tokens_are_no_field_of_a_request(caller: Caller) -> None:
    assert "min_new_tokens" in refusal_of(caller, min_new_tokens=3).message


def test_both_names_of_the_length_may_be_given_if_they_agree(caller: Caller) -> None:
    assert made(caller.ask(messages=ARGENTINA, max_tokens=1, max_completion_tokens=1)) == 1
    refused = refusal_of(caller, max_tokens=1, max_completion_tokens=2)
    assert refused.param == "max_completion_tokens"
    assert "max_tokens is 1" in refused.message


def test_a_prompt_over_the_context_is_refused_with_both_numbers(
    caller: Caller, tokenizer: Any
) -> None:
    messages = [user("word " * 3000)]
    refused = refusal_of(caller, messages=messages)
    assert f"{counted(tokenizer, messages)} tokens" in refused.message
    assert str(CONTEXT) in refused.message
    assert refused.param == "messages"


def test_an_answer_ends_where_the_context_ends(caller: Caller, tokenizer: Any) -> None:
    messages = [user("word " * 1000)]
    while counted(tokenizer, messages) > CONTEXT - 2:
        messages = [user(messages[0]["content"].removesuffix("word "))]
    room = CONTEXT - counted(tokenizer, messages)
    answer = caller.ask(messages=messages, max_tokens=500, temperature=3.0, seed=1)
    assert 1 <= made(answer) <= room
    if made(answer) == room:
        assert reasons(answer) == ["length"]


# Search.


def test_temperature_0_always_answers_alike(caller: Caller) -> None:
    answers = [caller.ask(messages=TURNS, temperature=0, seed=seed) for seed in (None, 1, 2)]
    assert len({content(answer) for answer in answers}) == 1
    assert content(answers[0]) == content(caller.ask(messages=TURNS))


def test_the_same_seed_gives_the_same_answer_and_others_other_answers(caller: Caller) -> None:
    first = [content(caller.ask(**WILD, seed=seed)) for seed in range(4)]
    again = [content(caller.ask(**WILD, seed=seed)) for seed in range(4)]
    assert first == again
    assert len(set(first)) > 1


def test_without_a_seed_answers_differ(caller: Caller) -> None:
    assert len({content(caller.ask(**WILD)) for _ in range(6)}) > 1


@pytest.mark.parametrize("narrow", [{"top_p": 1e-6}, {"top_k": 1}], ids=["top_p", "top_k"])
def test_top_p_and_top_k_keep_the_most_probable_tokens(caller: Caller, narrow: Body) -> None:
    greedy = content(caller.ask(messages=SPAIN))
    narrowed = [content(caller.ask(**WILD, seed=seed, **narrow)) for seed in range(4)]
    assert set(narrowed) == {greedy}
    wide = {next(iter(narrow)): 1.0 if "top_p" in narrow else 0}
    assert {content(caller.ask(**WILD, seed=seed, **wide)) for seed in range(4)} != {greedy}


REPETITIVE = ["gold " * 13, "ha " * 17, "author " * 30]
"""What the demo model has no answer to: it says the same again and again."""


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_penalties_change_how_often_the_same_is_said(
    caller: Caller, name: str, tokenizer: Any
) -> None:
    def repeats(penalty: float) -> int:
        asked = {"max_tokens": 24, name: penalty}
        answers = caller.rows(*({"messages": [user(text)], **asked} for text in REPETITIVE))
        tokens = [tokenizer.encode(content(answer)) for answer in answers]
        return sum(len(row) - len(set(row)) for row in tokens)

    assert repeats(-2.0) > repeats(0.0) > repeats(2.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 1.5},
        {"n": 0},
        {"n": 1.5},
        {"n": 100_000},
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"max_completion_tokens": -1},
        {"frequency_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"presence_penalty": 2.1},
        {"presence_penalty": -2.1},
        {"presence_penalty": "much"},
        {"stop": ""},
        {"stop": 5},
        {"stop": ["a", ""]},
        {"stop": [5]},
        {"stream": "yes"},
        {"stream_options": {"include_usage": True}},
        {"response_format": "json"},
        {"response_format": {"type": "yaml"}},
        {"response_format": {"type": "json_schema"}},
        {"logprobs": True},
        {"top_logprobs": 2},
        {"logit_bias": {"50": 1}},
        {"tools": [{"type": "function", "function": {"name": "look_up"}}]},
        {"tool_choice": "required"},
        {"functions": [{"name": "look_up"}]},
        {"audio": {"voice": "alloy"}},
        {"modalities": ["audio"]},
        {"store": True},
        {"temprature": 1},
        {"best": "of all"},
    ],
    ids=json.dumps,
)
def test_what_cannot_be_honoured_is_refused_by_its_name(caller: Caller, wrong: Body) -> None:
    (name,) = wrong
    refused = refusal_of(caller, **wrong)
    assert refused.param == name
    assert name in refused.message


@pytest.mark.parametrize(
    "nothing",
    [
        {"user": "someone"},
        {"metadata": {"purpose": "test"}},
        {"model": "phi3-demo"},
        {"tools": []},
        {"tool_choice": "none"},
        {"logprobs": False},
        {"logit_bias": {}},
        {"response_format": {"type": "text"}},
        {"stop": None},
        {"seed": None},
        {"stream": False},
        {"n": 1},
        {"frequency_penalty": 0},
        {"temperature": None, "max_tokens": None},
    ],
    ids=json.dumps,
)
def test_fields_that_ask_for_nothing_pass(caller: Caller, nothing: Body) -> None:
    assert content(caller.ask(messages=SPAIN, **nothing)) == "Madrid"


@in_process_it_fails(
    "MLflow's predict_stream drops what the signature does not name",
    how=pytest.fail.Exception,
)
def test_a_stream_refuses_a_misspelt_field(caller: Caller) -> None:
    with pytest.raises(Refusal, match="temprature"):
        caller.stream(messages=SPAIN, temprature=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"logprobs": True},
        {"logit_bias": {"50": 1}},
        {"seed": -1},
        {"max_completion_tokens": 0},
        {"top_p": 2.0},
        {"frequency_penalty": 3.0},
        {"response_format": {"type": "yaml"}},
    ],
    ids=json.dumps,
)
def test_a_stream_is_refused_as_a_whole_answer_is(caller: Caller, wrong: Body) -> None:
    (name,) = wrong
    with pytest.raises(Refusal, match=name) as refused:
        caller.stream(messages=SPAIN, **wrong)
    assert refused.value.status == 400


# Stop texts.


def test_a_stop_text_is_met_wherever_tokens_and_chunks_begin(caller: Caller) -> None:
    """Every three letters of an answer of several tokens, as one text and as a list."""
    whole = content(caller.ask(messages=ARGENTINA))
    assert len(whole) > 5
    stops = [whole[start : start + 3] for start in range(len(whole) - 2)]
    as_text = [{"messages": ARGENTINA, "stop": stop} for stop in stops]
    as_list = [{"messages": ARGENTINA, "stop": ["%%%", stop]} for stop in stops]
    for stop, *answers in zip(stops, caller.rows(*as_text), caller.rows(*as_list), strict=True):
        for answer in answers:
            assert content(answer) == whole[: whole.find(stop)]
            assert reasons(answer) == ["stop"]


def test_a_streams_stop_text_is_met_wherever_chunks_begin(caller: Caller) -> None:
    whole = content(caller.ask(messages=ARGENTINA))
    for start in range(len(whole) - 2):
        stop = whole[start : start + 3]
        chunks = caller.stream(messages=ARGENTINA, stop=[stop])
        assert "".join(pieces(chunks)) == whole[:start]
        assert ends(chunks) == {0: "stop"}


@in_process_it_fails(f"{STREAM_TYPES}: stop must be a list", how=Refusal)
def test_a_stream_takes_stop_as_one_text(caller: Caller) -> None:
    whole = content(caller.ask(messages=SPAIN))
    assert "".join(pieces(caller.stream(messages=SPAIN, stop=whole[2:4]))) == whole[:2]


def test_of_several_stop_texts_the_first_met_ends_the_answer(caller: Caller) -> None:
    whole = content(caller.ask(messages=SPAIN))
    assert whole == "Madrid"
    assert content(caller.ask(messages=SPAIN, stop=["rid", "dr", "zzz"])) == "Ma"
    assert content(caller.ask(messages=SPAIN, stop="Mad")) == ""


def test_a_stop_text_that_never_comes_changes_nothing(caller: Caller) -> None:
    whole = caller.ask(messages=SPAIN)
    assert caller.ask(messages=SPAIN, stop=["Madrid!", "madrid"])["choices"] == whole["choices"]
    assert_streamed(caller.stream(messages=SPAIN, stop=["Madrid!", "madrid"]), whole)


def test_a_stop_text_in_the_prompt_ends_nothing(caller: Caller) -> None:
    assert content(caller.ask(messages=SPAIN, stop="Spain")) == "Madrid"


def test_tokens_up_to_the_stop_text_are_counted_and_none_after(caller: Caller) -> None:
    whole = caller.ask(messages=ARGENTINA)
    stopped = caller.ask(messages=ARGENTINA, stop=content(whole)[1:3])
    assert 1 <= made(stopped) < made(whole)


# Several choices.


def test_n_gives_as_many_choices(caller: Caller) -> None:
    one = caller.ask(messages=SPAIN)
    answer = caller.ask(messages=SPAIN, n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert contents(answer) == ["Madrid"] * 3
    assert answer["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert made(answer) == 3 * made(one)


def test_seeded_choices_differ_and_repeat(caller: Caller) -> None:
    answer = caller.ask(**WILD, n=4, seed=7)
    assert len(set(contents(answer))) > 1
    assert contents(caller.ask(**WILD, n=4, seed=7)) == contents(answer)
    assert contents(caller.ask(**WILD, seed=7)) == contents(answer)[:1]


def test_each_choice_has_a_reason_of_its_own(caller: Caller) -> None:
    """One choice is stopped by a text of its own, the others go on."""
    plain = caller.ask(**WILD, n=4, seed=7)
    stop = max(contents(plain), key=len)[:4]
    stopped = caller.ask(**WILD, n=4, seed=7, stop=stop)
    assert "stop" in reasons(stopped)
    for before, after in zip(contents(plain), contents(stopped), strict=True):
        assert after == (before[: before.find(stop)] if stop in before else before)


# Streams.


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"messages": TURNS},
        {"max_tokens": 1},
        {**WILD, "seed": 3, "max_tokens": 20},
        {**WILD, "seed": 3, "n": 2},
        {**WILD, "seed": 3, "n": 2, "stop": ["a", "e"]},
        {**WILD, "seed": 3, "frequency_penalty": 1.5, "top_p": 0.9, "top_k": 50},
        {"n": 2, "stop": ["dri"]},
    ],
    ids=lambda more: " ".join(more) or "plain",
)
def test_the_chunks_join_to_the_whole_answer(caller: Caller, more: Body) -> None:
    body = {"messages": SPAIN} | more
    assert_streamed(caller.stream(**body), caller.ask(**body))


def test_usage_comes_in_a_last_chunk_where_it_is_asked_for(caller: Caller) -> None:
    *chunks, last = caller.stream(messages=SPAIN, n=2, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"] == caller.ask(messages=SPAIN, n=2)["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert ends(chunks) == {0: "stop", 1: "stop"}
    assert len({chunk["id"] for chunk in (*chunks, last)}) == 1


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}])
def test_usage_does_not_come_where_it_is_not_asked_for(caller: Caller, options: Body) -> None:
    chunks = caller.stream(messages=SPAIN, **options)
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


BYTES: Body = {"messages": [user("?")], "temperature": 100.0, "max_tokens": 24}
"""Almost any token may come next, so single bytes of UTF-8 do, and sometimes a whole character."""
KNOWN_SEEDS = {"transformers": (75, 175, 313), "onnx": (155, 482, 567)}
"""Where they did, with the versions of today; with others, it takes a search."""


@pytest.fixture(scope="module")
def multi_byte_seeds(loaded: Loaded) -> dict[str, int]:
    found: dict[str, int] = {}
    for runtime, seeds in KNOWN_SEEDS.items():
        asked = InProcess(loaded[runtime])
        for seed in (*seeds, *range(2000)):
            if multi_byte(content(asked.ask(**BYTES, seed=seed))):
                found[runtime] = seed
                break
    return found


def multi_byte(text: str) -> str:
    return "".join(c for c in text if ord(c) > 127 and c != "\N{REPLACEMENT CHARACTER}")


def test_a_character_of_several_tokens_comes_in_one_piece(
    cell: Cell, caller: Caller, multi_byte_seeds: Mapping[str, int]
) -> None:
    body = {**BYTES, "seed": multi_byte_seeds[cell.runtime]}
    whole = caller.ask(**body)
    (character, *_) = multi_byte(content(whole))
    chunks = caller.stream(**body)
    assert_streamed(chunks, whole)
    assert any(character in piece for piece in pieces(chunks))
    before = content(whole)[: content(whole).find(character)]
    assert content(caller.ask(**body, stop=character)) == before
    assert "".join(pieces(caller.stream(**body, stop=[character]))) == before


# JSON.

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colour": {"enum": ["red", "grün", "bleu"]},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "colour"],
    "additionalProperties": False,
}


def schema_format(schema: Any) -> Body:
    held = {"name": "answer", "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": held}}


@only("onnx")
def test_an_answer_follows_the_json_schema(caller: Caller) -> None:
    validator = jsonschema_rs.validator_for(PERSON)
    for more in ({}, {"temperature": 3.0, "seed": 1}, {"temperature": 3.0, "seed": 2}):
        answer = caller.ask(messages=SPAIN, max_tokens=200, **schema_format(PERSON), **more)
        assert reasons(answer) == ["stop"]
        validator.validate(json.loads(content(answer)))


@only("onnx")
def test_a_json_object_is_one(caller: Caller) -> None:
    asked = {"response_format": {"type": "json_object"}, "max_tokens": 300}
    answer = caller.ask(messages=SPAIN, **asked)
    assert reasons(answer) == ["stop"]
    assert isinstance(json.loads(content(answer)), dict)


@only("onnx")
def test_a_schema_that_allows_one_text_gets_it_byte_by_byte(caller: Caller) -> None:
    """Characters of two bytes, none of which the tokenizer knows as one token."""
    text = "Zoë naïve ÄÖÜ"
    asked = {"messages": SPAIN, "max_tokens": 200, **schema_format({"const": text})}
    answer = caller.ask(**asked)
    assert json.loads(content(answer)) == text
    chunks = caller.stream(**asked)
    assert_streamed(chunks, answer)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces(chunks))
    if isinstance(caller, InProcess):  # over HTTP, a chunk holds what came within 20 ms
        assert len(pieces(chunks)) > 5


@only("onnx")
@pytest.mark.parametrize("schema", [{"const": "日本語 😀"}, {"properties": {"😀": {}}}])
def test_a_schema_that_the_runtime_would_fail_at_is_refused(
    caller: Caller, schema: dict[str, Any]
) -> None:
    """It would in mid-answer, at a character of three or four bytes that is no token."""
    with pytest.raises(Refusal) as refused:
        caller.ask(messages=SPAIN, **schema_format(schema))
    assert "which the model's tokenizer splits" in refused.value.message
    told = {"type": "object", "description": "日本語 😀"}
    assert json.loads(content(caller.ask(messages=SPAIN, **schema_format(told)))) == {}


@only("onnx")
def test_json_goes_with_streams_and_choices(caller: Caller) -> None:
    asked = {
        "messages": SPAIN,
        "temperature": 2.0,
        "seed": 1,
        "n": 3,
        "max_tokens": 200,
        **schema_format(PERSON),
    }
    whole = caller.ask(**asked)
    assert len({json.dumps(json.loads(text)) for text in contents(whole)}) > 1
    assert_streamed(caller.stream(**asked), whole)


@only("onnx")
def test_json_cut_by_the_length_says_so(caller: Caller) -> None:
    answer = caller.ask(messages=SPAIN, max_tokens=3, **schema_format(PERSON))
    assert reasons(answer) == ["length"]
    assert made(answer) == 3


@only("onnx")
@pytest.mark.parametrize(
    "schema",
    [{"type": "no such type"}, {"type": "object", "properties": 5}, {"$ref": "#/nowhere"}, "text"],
    ids=json.dumps,
)
def test_a_schema_that_is_none_is_refused(caller: Caller, schema: Any) -> None:
    refused = refusal_of(caller, **schema_format(schema))
    assert refused.param == "response_format"
    assert "schema" in refused.message


@only("transformers")
@pytest.mark.parametrize(
    "asked",
    [{"response_format": {"type": "json_object"}}, schema_format(PERSON)],
    ids=["json_object", "json_schema"],
)
def test_the_runtime_without_guidance_says_which_has_it(caller: Caller, asked: Body) -> None:
    refused = refusal_of(caller, **asked)
    assert refused.param == "response_format"
    assert "custom_onnx" in refused.message


# Rows.


def test_rows_are_answered_in_order_each_under_its_own_parameters(caller: Caller) -> None:
    bodies: list[Body] = [
        {"messages": ARGENTINA},
        {"messages": SPAIN, "max_tokens": 1},
        {"messages": TURNS, "stop": ["de"]},
        {"messages": SPAIN, "n": 2},
        {**WILD, "seed": 11},
        {**WILD, "seed": 12, "n": 2, "frequency_penalty": -1.0},
        {"messages": SPAIN},
    ]
    together = caller.rows(*bodies)
    for body, answer in zip(bodies, together, strict=True):
        alone = caller.ask(**body)
        assert answer["choices"] == alone["choices"]
        assert answer["usage"] == alone["usage"]


def test_a_bad_row_gets_its_error_and_the_others_their_answers(caller: Caller) -> None:
    bodies: list[Body] = [
        {"messages": SPAIN},
        {"messages": SPAIN, "tools": [{"type": "function"}]},
        {"messages": [user("word " * 3000)]},
        {"messages": SPAIN, "max_tokens": 1},
    ]
    first, unsupported, long, last = caller.rows(*bodies)
    assert content(first) == "Madrid"
    assert reasons(last) == ["length"]
    assert unsupported.keys() == long.keys() == {"error"}
    assert unsupported["error"]["param"] == "tools"
    assert unsupported["error"]["type"] == "invalid_request_error"
    assert "tools" in unsupported["error"]["message"]
    assert long["error"]["code"] == "context_length_exceeded"


def test_a_row_cannot_be_streamed(caller: Caller) -> None:
    good, streamed = caller.rows({"messages": SPAIN}, {"messages": SPAIN, "stream": True})
    assert content(good) == "Madrid"
    assert "stream" in streamed["error"]["message"]
    assert streamed["error"]["param"] == "stream"


# Templates.

REFUSING = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system message, please') }}{% endif %}"
)


def state_anew(model: Path) -> None:
    """The contents of its files, for a model that was changed by hand."""
    manifest = Manifest.read(model)
    assert manifest is not None
    places = {name: model / manifest.folder / name for name in manifest.files}
    files = {name: File(path.stat().st_size, file_sha256(path)) for name, path in places.items()}
    anew = replace(manifest, files=files)
    anew.write(model)
    about = Model.load(str(model))
    about.metadata = {**about.metadata, DECLARED: anew.digest}
    about.save(str(model / "MLmodel"))


@pytest.fixture(scope="module")
def refusing(
    packaged: Packaged, loaded: Loaded, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Cell, Caller]]:
    """The models with a template that refuses some messages, as many on the hub do."""
    with ExitStack() as stack:
        callers: dict[Cell, Caller] = {}
        for runtime, version in VERSIONS.items():
            mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
            held = mlflow.artifacts.download_artifacts(f"models:/phi3-demo/{version}")
            folder = tmp_path_factory.mktemp("refusing") / "model"
            shutil.copytree(held, folder)
            for template in folder.rglob("chat_template.jinja"):
                template.write_text(REFUSING + template.read_text("utf-8"), "utf-8")
            state_anew(folder)
            callers[Cell(runtime, "process")] = InProcess(loaded.load(str(folder)))
            server = stack.enter_context(start_server(packaged.workplace, f"model_uri={folder}"))
            client = httpx.Client(base_url=server.address, timeout=PATIENCE)
            callers[Cell(runtime, "http")] = OverHttp(stack.enter_context(client))
        yield callers


def test_messages_that_the_template_refuses_are_a_400_with_its_words(
    cell: Cell, refusing: Mapping[Cell, Caller]
) -> None:
    caller = refusing[cell]
    assert content(caller.ask(messages=SPAIN)) == "Madrid"
    refused = refusal_of(caller, messages=TURNS)
    assert "no system message, please" in refused.message
    assert refused.param == "messages"
    with pytest.raises(Refusal, match="no system message, please"):
        caller.stream(messages=TURNS)


# MLflow's side.


@pytest.mark.parametrize("version", VERSIONS.values())
def test_a_model_that_lost_its_manifest_is_not_loaded(
    packaged: Packaged, tmp_path: Path, version: int
) -> None:
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    held = mlflow.artifacts.download_artifacts(f"models:/phi3-demo/{version}")
    folder = tmp_path / "model"
    shutil.copytree(held, folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(WeightsError, match=r"weights\.json is missing"):
        mlflow.pyfunc.load_model(str(folder))


def test_the_transformers_model_keeps_its_flavour(packaged: Packaged) -> None:
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    info = mlflow.models.get_model_info("models:/phi3-demo/1")
    assert {"transformers", "python_function"} <= info.flavors.keys()
    pipeline = mlflow.transformers.load_model("models:/phi3-demo/1")
    (answer,) = pipeline(SPAIN, max_new_tokens=8, do_sample=False)
    assert answer["generated_text"][-1] == {"role": "assistant", "content": "Madrid"}


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_the_signature_holds_every_column_of_mlflows_chat_task(
    packaged: Packaged, version: int
) -> None:
    from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    info = mlflow.models.get_model_info(f"models:/phi3-demo/{version}")
    assert info.metadata["task"] == "llm/v1/chat"
    ours = info.signature.inputs.input_dict()
    for name, column in CHAT_MODEL_INPUT_SCHEMA.input_dict().items():
        assert ours[name].to_dict() == column.to_dict()
    assert info.signature.outputs == CHAT_MODEL_OUTPUT_SCHEMA


def test_the_prompt_model_maps_a_prompt_to_a_text(with_prompt_model: Workplace) -> None:
    mlflow.set_tracking_uri(with_prompt_model.tracking_uri)
    signature = mlflow.models.get_model_info("models:/phi3-demo/3").signature
    assert signature.inputs.to_dict() == [{"type": "string", "name": "prompt", "required": True}]
    assert [column["type"] for column in signature.outputs.to_dict()] == ["string"]
