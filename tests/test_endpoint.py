"""An OpenAI-compatible server as a candidate: the real one, and one that fails on purpose."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import mlflow
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from slmflow.answering import endpoint_patience
from slmflow.answering.ask import AskError
from slmflow.answering.endpoint import Endpoint
from slmflow.answering.endpoint_address import Address, parse_address
from slmflow.answering.endpoint_form import sent_options
from slmflow.answering.endpoint_http import KEYS, Failed
from slmflow.answering.endpoint_patience import LONGEST_WAIT, TRIES, patiently
from slmflow.answering.endpoint_speed import Streamed, fresh_prompt
from slmflow.answering.reply import Measurement, Reply, Setting
from slmflow.config.arguments import to_overrides
from slmflow.errors import ConfigError
from slmflow.served.search import SearchOptions
from tests.conftest import Packaged, Workplace
from tests.fake_openai import end, event, piece
from tests.server import Server, start_server

PATIENCE = 60  # seconds; a guard against hanging, no promise of speed
KEY = 'sk-"so&secret"-4711'
ROWS = [{"messages": [{"role": "user", "content": f"question {n}"}]} for n in range(6)]


@dataclass(frozen=True)
class Request:
    path: str
    key: str | None
    body: dict[str, Any]

    @property
    def question(self) -> str:
        asked = self.body["messages"][-1]["content"] if "messages" in self.body else None
        return str(asked or self.body["prompt"])


@dataclass(frozen=True)
class Response:
    """``body``: an object, a page, or the pieces of a stream. ``None`` for a whole response: the
    connection is dropped."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Callable[[Request], Response | None]


@dataclass
class Loopback:
    """A real server on this machine that answers as a test says."""

    address: str
    asked: list[Request] = field(default_factory=list)

    @property
    def uri(self) -> str:
        return f"openai:/{self.address}/v1"

    def asked_at(self, path: str) -> list[Request]:
        return [request for request in self.asked if request.path == path]


@contextmanager
def loopback(answer: Answer, models: Sequence[str] | None = ("m",)) -> Iterator[Loopback]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # a response in one packet

        def do_GET(self) -> None:
            self.reply(Request(self.path, self.headers["Authorization"], {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(Request(self.path, self.headers["Authorization"], body))

        def reply(self, request: Request) -> None:
            running.asked.append(request)
            listing = request.path == "/v1/models" and models is not None
            response = listed(models or ()) if listing else answer(request)
            if response is None:
                self.close_connection = True
            else:
                send(self, response)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        running = Loopback(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield running
        finally:
            server.shutdown()
            thread.join()


def send(handler: BaseHTTPRequestHandler, response: Response) -> None:
    handler.send_response(response.status)
    for name, value in response.headers.items():
        handler.send_header(name, value)
    if isinstance(response.body, list):
        handler.send_header("Transfer-Encoding", "chunked")
        written = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in response.body)
        written += b"0\r\n\r\n"
    else:
        said = response.body if isinstance(response.body, str) else json.dumps(response.body)
        written = said.encode()
        if "Content-Length" not in response.headers:
            handler.send_header("Content-Length", str(len(written)))
    handler.end_headers()
    handler.wfile.write(written)


def listed(names: Sequence[str]) -> Response:
    return Response({"object": "list", "data": [{"id": name} for name in names]})


def error(status: int, message: str, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response({"error": {"message": message}}, status, named)


def echo(request: Request) -> Response:
    """What it was asked, and as many tokens as that has words."""
    words = len(request.question.split())
    content = {"message": {"content": request.question}}
    choice = content if "messages" in request.body else {"text": request.question}
    usage = {"prompt_tokens": words, "completion_tokens": words}
    return Response({"choices": [{**choice, "finish_reason": "stop"}], "usage": usage})


def in_turn(*responses: Response | None) -> Answer:
    """These, each once, then echoes."""
    waiting = list(responses)
    return lambda request: waiting.pop(0) if waiting else echo(request)


@pytest.fixture(autouse=True)
def no_key_and_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(endpoint_patience, "FIRST_WAIT", 0)


@contextmanager
def connected(uri: str) -> Iterator[Endpoint]:
    with Endpoint.parse(uri) as endpoint:
        endpoint.connect()
        yield endpoint


def ask(
    uri: str, rows: Sequence[Mapping[str, Any]] = ROWS, concurrency: int = 1, **options: Any
) -> dict[int, Reply]:
    with connected(uri) as endpoint:
        return dict(endpoint.answers(rows, options, concurrency))


def refusal(uri: str, rows: Sequence[Mapping[str, Any]] = ROWS) -> str:
    with pytest.raises(AskError) as raised:
        ask(uri, rows)
    return str(raised.value)


def texts(replies: Mapping[int, Reply]) -> list[str]:
    return [replies[index].text for index in sorted(replies)]


QUESTIONS = [row["messages"][0]["content"] for row in ROWS]


# The address.


@pytest.mark.parametrize(
    ("uri", "base", "model"),
    [
        ("openai:/http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1", None),
        ("openai:/http://127.0.0.1:8000", "http://127.0.0.1:8000/v1", None),
        ("openai:/https://api.openai.com/", "https://api.openai.com/v1", None),
        ("openai:/https://h/openai/v1/#gpt-4o", "https://h/openai/v1", "gpt-4o"),
        ("openai:/https://h/api#@cf/meta/llama:8b", "https://h/api", "@cf/meta/llama:8b"),
        ("openai:/http://[::1]:8000#a", "http://[::1]:8000/v1", "a"),
    ],
)
def test_an_address_is_a_url_and_perhaps_a_model(uri: str, base: str, model: str | None) -> None:
    assert parse_address(uri) == Address(base, model)
    assert parse_address(parse_address(uri).uri) == Address(base, model)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("openai:/gpt-4o", "no address"),
        ("openai:http://h/v1", "no address"),
        ("openai:/ftp://h/v1", "no address"),
        ("openai:/http:///v1", "no address"),
        ("openai:/http://h:port/v1", "no address"),
        ("openai:/http://h:99999/v1", "no address"),
        ("openai:/http://[::1/v1", "no address"),
        ("openai:/http://h/v1#", "no model after the #"),
        ("openai:/http://h/v1#a b", "a space"),
        ("openai:/http://h/v1?version=1", "has a query"),
        ("openai:/http://user:password@h/v1", "OPENAI_API_KEY"),
        ("openai:/http://password@h/v1", "OPENAI_API_KEY"),
    ],
)
def test_another_form_is_refused_with_those_that_are_allowed(uri: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Endpoint.parse(uri)
    assert said in str(raised.value)
    assert "openai:/http://127.0.0.1:8000/v1" in str(raised.value)
    assert "password" not in str(raised.value).replace("user or a password in it", "")
    assert "version=1" not in str(raised.value)


@given(st.text("ab12:/?#%@[]. \n"), st.sampled_from(["", "openai:/"]))
def test_no_piece_of_a_password_is_repeated(text: str, prefix: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_address(f"{prefix}http://me:Zq9{text}Zq9@h/v1")
    assert "Zq9" not in str(raised.value)


@pytest.mark.parametrize(
    "uris",
    [
        ["openai:/http://127.0.0.1:8000/v1", "models:/x/1"],
        ["openai:/http://h/v1#org/name:tag@4", "models:/x@champion"],
        ["models:/x/1", "openai:/http://[::1]:8000/v1"],
        ["openai:/http://h/v1#it's", "openai:/http://h/v1?a=b"],
        ["openai:/http://user:password@h/v1"],
    ],
)
def test_a_list_of_uris_reaches_the_config_as_it_was_typed(uris: list[str]) -> None:
    for separator in (",", ", "):
        (override,) = to_overrides([f"models=[{separator.join(uris)}]"])
        assert OverridesParser.create().parse_override(override).value() == uris


def test_a_list_of_uris_survives_mlflow_run(workplace: Workplace) -> None:
    uris = ["openai:/http://127.0.0.1:8000/v1#org/name", "models:/x/1", "openai:/http://[::1]/v1"]
    result = workplace.mlflow_run("evaluate", f"models={','.join(uris)}", "cfg=job")
    assert result.returncode == 0, result.stderr
    assert "\n- ".join(["models:", *uris]) in result.stdout


# Connecting.


def test_without_a_name_the_only_model_is_asked() -> None:
    with loopback(echo, ["only"]) as server:
        assert texts(ask(server.uri)) == QUESTIONS
    assert {request.body["model"] for request in server.asked[1:]} == {"only"}


def test_several_models_are_listed_and_one_can_be_named() -> None:
    with loopback(echo, ["b", "a"]) as server:
        message = refusal(server.uri)
        assert "2 models" in message
        assert "a, b" in message
        with connected(f"{server.uri}#b") as endpoint:
            assert endpoint.model == "b"


def test_no_model_at_all_is_told() -> None:
    with loopback(echo, []) as server:
        assert f"{server.uri}#NAME" in refusal(server.uri)


def test_a_server_without_a_list_must_be_told_the_name() -> None:
    def answer(request: Request) -> Response:
        if request.path != "/v1/chat/completions":
            return error(404, "Not Found")
        return echo(request) if request.body["messages"] else error(400, "no messages")

    with loopback(answer, models=None) as server:
        assert f"name a model: {server.uri}#NAME" in refusal(server.uri)
        assert texts(ask(f"{server.uri}#m")) == QUESTIONS


def test_a_wrong_path_is_told_before_anything_is_asked() -> None:
    with loopback(lambda _: Response({"detail": "Not Found"}, 404)) as server:
        for uri in (f"openai:/{server.address}/v2", f"openai:/{server.address}/v2#m"):
            assert "404 Not Found" in refusal(uri)
            assert "is the path right?" in refusal(uri)


def test_a_name_that_nobody_listed_is_tried_and_refused_with_the_list() -> None:
    with loopback(lambda _: error(404, "no model x"), ["a", "b"]) as server:
        message = refusal(f"{server.uri}#x")
    assert "no model x; it lists a, b" in message


def test_nothing_that_listens_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert "is the server running there?" in refusal(f"openai:/http://127.0.0.1:{port}")


@pytest.mark.parametrize("body", ["<html>hello</html>", ["x"], {"models": []}, {"data": [1]}])
def test_what_is_no_openai_server_is_told(body: Any) -> None:
    body = json.dumps(body) if isinstance(body, list) else body
    with loopback(lambda _: Response(body), models=None) as server:
        assert "not in OpenAI's" in refusal(server.uri)


# The key.


def guarded(request: Request) -> Response:
    """It repeats the key, as some servers do."""
    if request.key != f"Bearer {KEY}":
        return error(401, f"Incorrect API key: {request.key}")
    return listed(["m"]) if request.path == "/v1/models" else echo(request)


@pytest.mark.parametrize("name", KEYS)
def test_the_key_comes_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with loopback(guarded, models=None) as server:
        assert " or ".join(KEYS) in refusal(server.uri)
        monkeypatch.setenv(name, f"{KEY}\n")
        assert texts(ask(server.uri)) == QUESTIONS


def test_a_key_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}-wrong")
    monkeypatch.setenv("SLMFLOW_API_KEY", KEY)
    shown: list[str] = []
    with loopback(guarded, models=None) as server:
        shown += [refusal(server.uri), refusal(f"{server.uri}#m")]
        with Endpoint.parse(server.uri) as endpoint:
            shown += [repr(endpoint), str(vars(endpoint)), endpoint.uri]
    with loopback(lambda request: error(400, f"{request.key}")) as server:
        shown += [str(ask(server.uri)[0].error)]
        shown += [refusal_to_measure(server)]
    with loopback(lambda request: Response(f"<p>{request.key}", 403)) as server:
        shown += [refusal(server.uri)]
    with loopback(lambda request: Response([event({"error": str(request.key)})])) as server:
        shown += [refusal_to_measure(server)]
    assert [message for message in shown if KEY in message] == []
    assert "it was sent the key in OPENAI_API_KEY" in shown[0]
    assert "Bearer ***" in shown[0]


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError) as raised, Endpoint.parse("openai:/http://127.0.0.1:1"):
        pass
    assert "OPENAI_API_KEY" in str(raised.value)
    assert "sk-" not in str(raised.value)


# Answers.


def test_every_reply_has_the_index_of_its_row_whatever_comes_first() -> None:
    first = threading.Event()

    def answer(request: Request) -> Response:
        if request.question == QUESTIONS[0]:
            assert first.wait(PATIENCE)
        return echo(request)

    with loopback(answer) as server, connected(server.uri) as endpoint:
        order: list[int] = []
        for index, reply in endpoint.answers(ROWS, {}, 2):
            order.append(index)
            assert reply == Reply(QUESTIONS[index], "stop", 2, 2)
            if len(order) == len(ROWS) - 1:
                first.set()
    assert order == [1, 2, 3, 4, 5, 0]


def test_as_many_requests_as_asked_for_are_in_flight_and_no_more() -> None:
    together = threading.Barrier(3, timeout=PATIENCE)
    lock = threading.Lock()
    in_flight: list[int] = [0]

    def answer(request: Request) -> Response:
        with lock:
            in_flight.append(in_flight[-1] + 1)
        together.wait()  # broken, and a row failed, unless three are here
        with lock:
            in_flight.append(in_flight[-1] - 1)
        return echo(request)

    with loopback(answer) as server:
        assert texts(ask(server.uri, concurrency=3)) == QUESTIONS
    assert max(in_flight) == 3


def test_nothing_more_is_asked_once_nobody_listens() -> None:
    with loopback(echo) as server, connected(server.uri) as endpoint:
        answers = endpoint.answers(ROWS * 100, {}, 1)
        next(answers)
        answers.close()
    assert len(server.asked) < 600


def test_options_are_sent_under_openais_names_and_nothing_else() -> None:
    options = SearchOptions(
        max_new_tokens=7,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop=["\n", "END"],
        frequency_penalty=0.1,
        presence_penalty=-1,
    )
    with loopback(echo) as server:
        ask(server.uri, ROWS[:1], **vars(options))
        ask(server.uri, ROWS[:1], max_new_tokens=None, seed=None, stop=[])
    assert server.asked_at("/v1/chat/completions")[0].body == {
        **{"model": "m", "messages": ROWS[0]["messages"], "max_tokens": 7, "temperature": 0.5},
        **{"top_p": 0.9, "seed": 3, "stop": ["\n", "END"]},
        **{"frequency_penalty": 0.1, "presence_penalty": -1},
    }
    assert set(server.asked_at("/v1/chat/completions")[1].body) == {"model", "messages"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("top_k", 50), ("repetition_penalty", 1.1), ("num_beams", 4), ("max_length", 300)),
        *(("no_repeat_ngram_size", 3), ("length_penalty", 0.5), ("colour", None)),
    ],
)
def test_an_option_that_cannot_be_sent_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        sent_options({"temperature": 0.5, name: value})
    assert f"search.{name}={value} cannot be sent" in str(raised.value)
    assert "max_new_tokens, temperature" in str(raised.value)


def test_zero_is_sent_because_a_server_may_have_other_defaults() -> None:
    sent = sent_options({"temperature": 0.0, "seed": 0, "frequency_penalty": 0.0})
    assert sent == {"temperature": 0.0, "seed": 0, "frequency_penalty": 0.0}


def test_one_refused_row_has_an_error_and_the_others_their_answers() -> None:
    def answer(request: Request) -> Response:
        long = request.question == QUESTIONS[2]
        return error(400, "the prompt is too long") if long else echo(request)

    with loopback(answer) as server:
        replies = ask(server.uri, concurrency=2)
    assert replies[2].text == ""
    assert replies[2].error == "it answers 400 Bad Request: the prompt is too long"
    assert [replies[n].error for n in (0, 1, 3, 4, 5)] == [None] * 5


def test_an_answer_without_text_or_usage_is_an_empty_one() -> None:
    choice = {"message": {"content": None}, "finish_reason": "length"}
    with loopback(lambda _: Response({"choices": [choice]})) as server:
        assert ask(server.uri, ROWS[:1])[0] == Reply("", "length")


PROMPTS = [{"prompt": "Once"}, {"prompt": "upon a time"}]


def test_prompts_are_completed() -> None:
    with loopback(echo) as server:
        assert texts(ask(server.uri, PROMPTS)) == ["Once", "upon a time"]
    assert server.asked_at("/v1/chat/completions") == []


@pytest.mark.parametrize("status", [400, 404, 405])
def test_prompts_go_to_a_chat_only_server_as_a_users_messages(status: int) -> None:
    def answer(request: Request) -> Response:
        return error(status, "chat") if request.path == "/v1/completions" else echo(request)

    with loopback(answer) as server, connected(server.uri) as endpoint:
        for _ in range(2):
            assert texts(dict(endpoint.answers(PROMPTS, {}, 2))) == ["Once", "upon a time"]
    assert len(server.asked_at("/v1/completions")) == 1  # decided once
    message = [{"role": "user", "content": "Once"}]
    assert message in [asked.body["messages"] for asked in server.asked_at("/v1/chat/completions")]


# What passes, and what does not.


@pytest.mark.parametrize(
    "failure",
    [
        error(429, "slow down", Retry_After="0"),
        error(503, "loading", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        error(503, "loading", Retry_After="soon"),
        error(500, "oops"),
        None,
        Response("{", headers={"Content-Length": "99", "Connection": "close"}),
    ],
)
def test_what_passes_is_tried_again(failure: Response | None) -> None:
    with loopback(in_turn(*[failure] * (TRIES - 1))) as server:
        assert texts(ask(server.uri)) == QUESTIONS
    assert len(server.asked_at("/v1/chat/completions")) == TRIES - 1 + len(ROWS)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (error(429, "no quota", Retry_After="0"), "429 Too Many Requests: no quota"),
        (error(503, "overloaded"), "503 Service Unavailable: overloaded"),
        (None, "the connection broke"),
        (error(401, "expired"), "401 Unauthorized: expired; give its key in the environment"),
        (error(404, "model m was unloaded"), "404 Not Found: model m was unloaded"),
        (Response("", 301, {"Location": "https://there"}), "Moved Permanently: https://there"),
        (Response({"choices": []}), "not in OpenAI's form"),
    ],
)
def test_what_does_not_pass_ends_it_and_says_how_far_it_came(
    failure: Response | None, said: str
) -> None:
    def answer(request: Request) -> Response | None:
        return failure if request.question == QUESTIONS[4] else echo(request)

    with loopback(answer) as server:
        message = refusal(server.uri)
    assert message.startswith(f"{server.uri}: after 4 of 6 rows were answered, ")
    assert said in message
    again = failure is None or failure.status in (429, 503)
    tried = [asked for asked in server.asked[1:] if asked.question == QUESTIONS[4]]
    assert len(tried) == (TRIES if again else 1)


def test_a_row_that_breaks_the_server_each_time_is_one_refused_row() -> None:
    def answer(request: Request) -> Response:
        return error(500, "oops") if request.question == QUESTIONS[1] else echo(request)

    with loopback(answer) as server:
        replies = ask(server.uri)
    assert [index for index, reply in replies.items() if reply.error] == [1]


@pytest.mark.parametrize(
    ("told", "waits"),
    [
        (None, [0.5, 1.0, 2.0, 4.0]),
        ("7", [7.0] * 4),
        ("100000", [LONGEST_WAIT] * 4),
        (format_datetime(datetime.now(UTC) + timedelta(days=1)), [LONGEST_WAIT] * 4),
    ],
    ids=["no word", "seconds", "too many", "a date"],  # workers must collect the same names
)
def test_the_server_says_how_long_to_wait_up_to_a_minute(
    told: str | None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_patience, "FIRST_WAIT", 0.5)
    waited: list[float] = []

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            return False

    headers = {} if told is None else {"Retry_After": told}
    with (
        loopback(lambda _: error(429, "slow down", **headers)) as server,
        connected(server.uri) as endpoint,
        pytest.raises(Failed, match="slow down"),
    ):
        patiently(lambda: endpoint._server.post("/chat/completions", {}), Clock())
    assert waited == waits


# Speed.


def streams(text: Sequence[bytes], tokens: int = 3) -> Answer:
    """A token a word and three of a template; ``text`` where it is to be streamed."""

    def answer(request: Request) -> Response:
        if request.body.get("stream"):
            return Response([*text, end("length", tokens)])
        counted = echo(request).body
        counted["usage"]["prompt_tokens"] += 3
        return Response(counted)

    return answer


def measure(server: Loopback, setting: Setting, text: str = "ab " * 1000) -> Measurement:
    with connected(server.uri) as endpoint:
        return endpoint.measure(text, setting)


def refusal_to_measure(server: Loopback) -> str:
    with pytest.raises(AskError) as raised:
        measure(server, Setting(8, 3, 1))
    return str(raised.value)


def test_a_measurement_counts_what_the_server_counts() -> None:
    setting = Setting(prompt_tokens=100, new_tokens=3, batch_size=2)
    with loopback(streams([piece("a"), piece("b"), piece("c")])) as server:
        measured = measure(server, setting)
    assert (measured.setting, measured.prompt_tokens) == (setting, 12)  # 12: see fake_openai.end
    assert measured.completion_tokens == 6
    assert measured.first_token_seconds is not None
    assert 0 < measured.first_token_seconds <= measured.seconds
    streamed = [asked.body for asked in server.asked if asked.body.get("stream")]
    assert [body["max_tokens"] for body in streamed] == [1, 1, 3, 3]  # warmed up
    for body in streamed:
        assert body["temperature"] == 0
        assert body["stream_options"] == {"include_usage": True}
        assert body["ignore_eos"] is True
        words = len(body["messages"][0]["content"].split())
        assert abs(words + 3 - setting.prompt_tokens) <= 1


def test_a_server_that_refuses_to_ignore_ends_is_not_asked_to() -> None:
    answer = streams([piece("a")], 1)

    def strict(request: Request) -> Response | None:
        refused = "ignore_eos" in request.body
        return error(400, "ignore_eos is not supported") if refused else answer(request)

    with loopback(strict) as server:
        assert measure(server, Setting(50, 3, 2)).completion_tokens == 2
    assert ["ignore_eos" in asked.body for asked in server.asked[1:]] == [True] + [False] * 6


def test_a_server_without_chats_is_measured_with_prompts() -> None:
    answer = streams([event({"choices": [{"text": "a"}]})], 1)

    def prompts_only(request: Request) -> Response | None:
        return error(404, "no chat") if "messages" in request.body else answer(request)

    with loopback(prompts_only) as server:
        measured = measure(server, Setting(50, 3, 2))
    assert measured.completion_tokens == 2
    assert measured.first_token_seconds is not None


def test_a_batch_is_in_flight_at_once() -> None:
    together = threading.Barrier(4, timeout=PATIENCE)
    answer = streams([piece("a")], tokens=1)

    def waiting(request: Request) -> Response | None:
        if request.body.get("stream"):
            together.wait()  # broken unless all four are here
        return answer(request)

    with loopback(waiting) as server:
        assert measure(server, Setting(50, 1, 4)).completion_tokens == 4


@pytest.mark.parametrize(
    ("times", "tokens", "alone"),
    [
        ((1.0, 1.5, 2.5), 3, True),
        ((1.0, 1.5), 3, False),  # two tokens in one piece
        ((1.0, 1.5, 1.5), 3, False),  # two pieces read at once
        ((1.0,), 1, True),
        ((), 0, True),
    ],
)
def test_steps_are_those_of_tokens_where_each_came_alone(
    times: tuple[float, ...], tokens: int, alone: bool
) -> None:
    assert Streamed(times, 9.0, 1, tokens).alone is alone


@pytest.mark.parametrize(
    "text",
    [[piece("a"), piece("bc")], [piece("a") + piece("b") + piece("c")]],
)
def test_tokens_that_come_together_have_no_steps(text: list[bytes]) -> None:
    with loopback(streams(text, 3)) as server:
        assert measure(server, Setting(50, 3, 1)).step_seconds == ()


def test_an_answer_without_text_has_no_first_token() -> None:
    with loopback(streams([piece("")], 0)) as server:
        assert measure(server, Setting(50, 3, 1)).first_token_seconds is None


def test_no_two_prompts_begin_alike_whatever_is_measured_again() -> None:
    with loopback(streams([piece("a")])) as server:
        for _ in range(3):
            measure(server, Setting(50, 1, 4))
    asked = [request.question for request in server.asked_at("/v1/chat/completions")]
    assert len({question[:8] for question in asked}) == len(asked) == 3 * (2 + 4 + 4)


@given(st.text(), st.integers(1, 5000))
def test_a_prompt_is_as_long_as_wanted_however_short_the_text(text: str, length: int) -> None:
    prompt = fresh_prompt(text, length)
    assert len(prompt) == max(length, len("12345678. "))
    assert (f"{text} " * 5000)[: len(prompt) - 10] == prompt[10:]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: Response({"choices": []}), "usage.prompt_tokens"),
        (lambda _: error(400, "at most 10 tokens"), "at most 10 tokens"),
        (streams([event({"error": {"message": "out of memory"}})]), "out of memory"),
        (streams([b"data: {\n\n"]), "not in OpenAI's JSON"),
    ],
)
def test_what_cannot_be_measured_is_told(answer: Answer, said: str) -> None:
    with loopback(answer) as server:
        assert said in refusal_to_measure(server)


def test_a_stream_that_breaks_is_measured_again_as_a_whole() -> None:
    answer, broken = streams([piece("a")], 1), iter([True])

    def breaking(request: Request) -> Response | None:
        drops = request.body.get("stream") and next(broken, False)
        return None if drops else answer(request)

    with loopback(breaking) as server:
        assert measure(server, Setting(50, 1, 2)).completion_tokens == 2
    assert len([asked for asked in server.asked if asked.body.get("stream")]) >= 3


# The real server.


CITIES = ["Spain", "France", "Italy", "Japan"]
REAL_ROWS = [
    {"messages": [{"role": "user", "content": f"What is the capital of {country}?"}]}
    for country in CITIES
]


def test_answers_of_the_real_server_are_the_packaged_models_own(
    onnx_server: Server, packaged: Packaged
) -> None:
    replies = ask(f"openai:/{onnx_server.address}", REAL_ROWS, 3, temperature=0.0)
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/phi3-demo/2")
    for index, row in enumerate(REAL_ROWS):
        own = model.predict(row)  # a list of one
        choice, usage = own[0]["choices"][0], own[0]["usage"]
        assert replies[index] == Reply(
            choice["message"]["content"],
            choice["finish_reason"],
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )


def test_the_real_server_refuses_one_long_row_only(onnx_server: Server) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 3000}]}
    replies = ask(f"openai:/{onnx_server.address}", [REAL_ROWS[0], long])
    assert replies[0].text == "Madrid"
    assert "400 Bad Request" in str(replies[1].error)


def test_the_real_server_knows_a_model_by_its_other_names(onnx_server: Server) -> None:
    assert ask(f"openai:/{onnx_server.address}#phi3-demo/2", REAL_ROWS[:1])[0].text == "Madrid"
    message = refusal(f"openai:/{onnx_server.address}#gpt-4o")
    assert "'gpt-4o' is not served here" in message
    assert "is the path right?" not in message


def test_the_real_server_wants_its_key(packaged: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    model = "model_uri=models:/phi3-demo/2"
    with start_server(packaged.workplace, model, SLMFLOW_API_KEY=KEY) as server:
        uri = f"openai:/{server.address}"
        assert "401 Unauthorized" in refusal(uri)
        monkeypatch.setenv("SLMFLOW_API_KEY", KEY)
        assert ask(uri, REAL_ROWS[:1])[0].text == "Madrid"


def test_the_real_server_is_measured(onnx_server: Server) -> None:
    with connected(f"openai:/{onnx_server.address}") as endpoint:
        for setting in (Setting(32, 8, 1), Setting(64, 8, 3)):
            measured = endpoint.measure("What is the capital of Spain? " * 50, setting)
            assert abs(measured.prompt_tokens - setting.prompt_tokens) <= 8
            assert 0 < measured.completion_tokens <= setting.new_tokens * setting.batch_size
            assert measured.first_token_seconds is not None
            assert 0 < measured.first_token_seconds <= measured.seconds
            assert all(step > 0 for step in measured.step_seconds)
