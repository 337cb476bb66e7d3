"""OpenAI's own Python client against the real server."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import httpx
import httpx2
import openai
import psutil
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.conftest import Packaged
from tests.server import Server, start_server

MODEL = "phi3-demo"
KEY = "sesame"
SPAIN: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of Spain?"}
]
PATIENCE = 60  # seconds; a guard against hanging, no promise of speed


@pytest.fixture(scope="module", params=["transformers", "onnx"])
def client(request: pytest.FixtureRequest) -> Iterator[OpenAI]:
    server = request.getfixturevalue(f"{request.param}_server")
    with client_of(server) as made:
        yield made


@pytest.fixture(scope="module")
def onnx_client(onnx_server: Server) -> Iterator[OpenAI]:
    with client_of(onnx_server) as made:
        yield made


def client_of(server: Server, **options: Any) -> OpenAI:
    chosen = {"api_key": "none", "max_retries": 0, "timeout": PATIENCE, **options}
    return OpenAI(base_url=f"{server.address}/v1", **chosen)


# What is answered.


def test_a_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=SPAIN)
    assert answer.choices[0].message.content == "Madrid"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_every_option_at_once(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "developer", "content": "Be brief."}, *SPAIN],
        temperature=0.5,
        top_p=0.9,
        seed=1,
        max_completion_tokens=8,
        frequency_penalty=0.1,
        presence_penalty=0.1,
        stop=["!"],
        n=2,
        user="someone",
        metadata={"purpose": "test"},
        extra_body={"top_k": 10},
    )
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_a_stream(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=SPAIN, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Madrid"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(chunks) - 1  # two tokens, two pieces, the end


def test_the_clients_own_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=SPAIN, n=2) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert sorted("".join(deltas)) == sorted("MadridMadrid")
    assert [choice.message.content for choice in final.choices] == ["Madrid", "Madrid"]


def test_a_stream_that_is_left_early_does_no_harm(client: OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=SPAIN, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model=MODEL, messages=SPAIN).choices


def test_n_and_stop(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=SPAIN, n=3, stop="dri")
    assert [choice.message.content for choice in answer.choices] == ["Ma"] * 3
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 3


def test_a_cut_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=SPAIN, max_tokens=1)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


RENDERED = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"


def test_a_legacy_completion(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=[RENDERED, RENDERED], max_tokens=8)
    assert answer.id.startswith("cmpl-")
    assert [choice.text for choice in answer.choices] == ["Madrid", "Madrid"]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_a_legacy_stream(client: OpenAI) -> None:
    stream = client.completions.create(model=MODEL, prompt=RENDERED, stop="id", stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Madr"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_list_of_models(client: OpenAI) -> None:
    (listed,) = client.models.list()
    assert listed.id == MODEL
    assert client.models.retrieve(MODEL) == listed
    # Its other names ask for it, too.
    version = client.models.list().data[0].model_dump()["version"]
    assert client.models.retrieve(f"models:/{MODEL}/{version}") == listed
    answer = client.chat.completions.create(model=f"{MODEL}/{version}", messages=SPAIN)
    assert answer.model == MODEL


# JSON.


def test_json_that_follows_a_schema(onnx_client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Madrid", "Paris"]}, "sure": {"type": "boolean"}},
        "required": ["city", "sure"],
        "additionalProperties": False,
    }
    answer = onnx_client.chat.completions.create(
        model=MODEL,
        messages=SPAIN,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "place", "strict": True, "schema": schema},
        },
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found.keys() == {"city", "sure"}
    assert found["city"] in ("Madrid", "Paris")
    assert answer.choices[0].finish_reason == "stop"


def test_an_answer_parsed_into_a_class(onnx_client: OpenAI) -> None:
    class Place(BaseModel):
        city: Literal["Madrid", "Paris"]
        sure: bool
        letters: Literal[6] | None

    answer = onnx_client.chat.completions.parse(
        model=MODEL, messages=SPAIN, response_format=Place, max_tokens=100
    )
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Place)
    assert answer.choices[0].message.refusal is None


def test_a_class_of_classes(onnx_client: OpenAI) -> None:
    """Pydantic writes it with $defs and $ref."""

    class River(BaseModel):
        name: Literal["Tagus", "Ebro"]
        long: bool

    class Country(BaseModel):
        first: River
        second: River

    answer = onnx_client.chat.completions.parse(
        model=MODEL, messages=SPAIN, response_format=Country, max_tokens=100
    )
    assert isinstance(answer.choices[0].message.parsed, Country)


# What is not.


def error_of(call: Callable[..., Any], kind: type[openai.APIStatusError], **body: Any) -> Any:
    with pytest.raises(kind) as raised:
        call(**{"model": MODEL, "messages": SPAIN} | body)
    return raised.value


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_names_the_field(client: OpenAI, stream: bool) -> None:
    create = client.chat.completions.create
    error = error_of(create, openai.BadRequestError, logprobs=True, stream=stream)
    assert (error.param, error.type) == ("logprobs", "invalid_request_error")
    assert "logprobs is not supported" in error.message
    error = error_of(create, openai.BadRequestError, temperature=-1, stream=stream)
    assert error.param == "temperature"


def test_a_prompt_over_the_context_has_openais_code(client: OpenAI) -> None:
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "word " * 3000}]
    error = error_of(client.chat.completions.create, openai.BadRequestError, messages=long)
    assert error.code == "context_length_exceeded"


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    error = error_of(client.chat.completions.create, openai.NotFoundError, model="gpt-4o")
    assert (error.code, error.param) == ("model_not_found", "model")
    assert MODEL in error.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


@pytest.fixture(scope="module")
def small(packaged: Packaged) -> Iterator[Server]:
    """A server with a key and with room for one request to wait."""
    model = "model_uri=models:/phi3-demo/2"
    with start_server(packaged.workplace, model, "serve.queue=1", SLMFLOW_API_KEY=KEY) as server:
        yield server


def test_without_the_key_nothing_is_answered(small: Server) -> None:
    with client_of(small, api_key="wrong") as client:
        error = error_of(client.chat.completions.create, openai.AuthenticationError)
        assert error.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with client_of(small, api_key=KEY) as client:
        assert client.chat.completions.create(model=MODEL, messages=SPAIN).choices


def test_a_short_timeout_is_the_clients_own_error(small: Server) -> None:
    with client_of(small, api_key=KEY, timeout=0.5) as client, held(small):
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model=MODEL, messages=SPAIN)
        until(lambda: waiting(small) == 0)


def test_a_full_queue_is_a_rate_limit(small: Server) -> None:
    with held(small), ThreadPoolExecutor(1) as pool, client_of(small, api_key=KEY) as client:
        first = pool.submit(client.chat.completions.create, model=MODEL, messages=SPAIN)
        until(lambda: waiting(small) == 1)
        error = error_of(client.chat.completions.create, openai.RateLimitError)
        assert error.code == "queue_full"
        assert int(error.response.headers["Retry-After"]) >= 1
        worker_of(small).resume()
        assert first.result().choices[0].message.content == "Madrid"


def test_a_client_that_retries_comes_back_when_it_was_told_to(small: Server) -> None:
    seen: list[tuple[float, httpx2.Response]] = []
    asked: list[float] = []

    def responded(response: httpx2.Response) -> None:
        seen.append((time.monotonic(), response))
        worker_of(small).resume()  # while the client waits, there is room again

    transport = httpx2.Client(
        event_hooks={
            "request": [lambda request: asked.append(time.monotonic())],
            "response": [responded],
        }
    )
    with (
        held(small),
        ThreadPoolExecutor(1) as pool,
        client_of(small, api_key=KEY) as other,
        client_of(small, api_key=KEY, max_retries=5, http_client=transport) as client,
    ):
        first = pool.submit(other.chat.completions.create, model=MODEL, messages=SPAIN)
        until(lambda: waiting(small) == 1)
        answer = client.chat.completions.create(model=MODEL, messages=SPAIN)
        assert first.result().choices
    assert answer.choices[0].message.content == "Madrid"
    assert [response.status_code for _, response in (seen[0], seen[-1])] == [429, 200]
    told = float(seen[0][1].headers["Retry-After"])
    assert asked[1] - seen[0][0] >= told  # the client's own first pause is half a second at most


@contextmanager
def held(server: Server) -> Iterator[None]:
    """The worker stopped in the middle of a streamed answer."""
    worker = worker_of(server)
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 800}
    body = {
        "messages": SPAIN,
        "max_tokens": 900,
        "stream": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": numbers}},
    }
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{server.address}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=PATIENCE) as response:
        lines = response.iter_lines()  # kept: without it the connection would be closed
        next(lines)
        worker.suspend()
        try:
            until(lambda: metric(server, "slmflow_running") == 1)
            yield
        finally:
            worker.resume()
    until(lambda: metric(server, "slmflow_running") == 0 == waiting(server))


def worker_of(server: Server) -> psutil.Process:
    """The process that holds the model."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    (worker,) = [
        child for child in children if any(part.endswith("worker.py") for part in child.cmdline())
    ]
    return worker


def waiting(server: Server) -> float:
    return metric(server, "slmflow_queue_length")


def metric(server: Server, name: str) -> float:
    headers = {"Authorization": f"Bearer {KEY}"}
    lines = httpx.get(f"{server.address}/metrics", headers=headers).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
