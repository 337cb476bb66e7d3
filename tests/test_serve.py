"""The server when things go wrong, or many at once. The model is real; so are the processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import mlflow
import psutil
import pytest

from tests.conftest import Packaged, Workplace, copy_store
from tests.server import Server, start_server

ONNX = "model_uri=models:/phi3-demo/2"
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 800}
LONG = {
    **QUESTION,
    "max_tokens": 900,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": NUMBERS}},
}
"""An answer of 900 tokens: the schema does not let it end."""
PATIENCE = 60  # seconds; a guard against hanging, no promise of speed


@pytest.fixture(scope="module")
def server(packaged: Packaged) -> Iterator[Server]:
    with start_server(packaged.workplace, ONNX, "serve.queue=10") as started:
        yield started


def post(
    server: Server, body: Any = QUESTION, path: str = "/v1/chat/completions"
) -> httpx.Response:
    return httpx.post(server.address + path, json=body, timeout=PATIENCE)


def metric(server: Server, name: str) -> float:
    lines = httpx.get(server.address + "/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def worker_of(server: Server) -> psutil.Process:
    """The process that holds the model."""
    found = [
        child
        for child in psutil.Process(server.process.pid).children(recursive=True)
        if any(part.endswith("worker.py") for part in child.cmdline())
    ]
    assert len(found) == 1
    return found[0]


def is_idle(server: Server) -> bool:
    return metric(server, "slmflow_running") == 0 == metric(server, "slmflow_queue_length")


class Held:
    """A streamed request whose answer has begun, and a worker stopped in the middle of it."""

    def __init__(self, server: Server) -> None:
        self.worker = worker_of(server)
        self._client = httpx.Client(timeout=PATIENCE)
        self._stream = self._client.stream(
            "POST", server.address + "/v1/chat/completions", json={**LONG, "stream": True}
        )
        self.lines = self._stream.__enter__().iter_lines()
        next(self.lines)
        self.worker.suspend()

    def close(self) -> None:
        self._stream.__exit__(None, None, None)
        self._client.close()


@pytest.fixture
def held(server: Server) -> Iterator[Held]:
    holding = Held(server)
    yield holding
    if holding.worker.is_running():
        holding.worker.resume()
    holding.close()
    until(lambda: is_idle(server))


def test_the_front_answers_at_once_while_the_model_is_busy(server: Server, held: Held) -> None:
    for path in ("/health", "/ping", "/version", "/v1/models", "/metrics", "/"):
        assert httpx.get(server.address + path, timeout=5).status_code == 200
    assert metric(server, "slmflow_running") == 1


def test_a_client_that_goes_away_frees_its_place(server: Server, held: Held) -> None:
    assert metric(server, "slmflow_running") == 1
    held.close()
    until(lambda: is_idle(server))


def test_a_client_that_goes_away_before_its_whole_answer_frees_its_place(
    server: Server, held: Held
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.address + "/v1/chat/completions", json=LONG, timeout=0.5)
    until(lambda: metric(server, "slmflow_queue_length") == 0)


def test_a_full_queue_is_told_with_when_to_come_again(server: Server, held: Held) -> None:
    """50 clients at once against a queue of 10, while an answer is being made."""
    statuses: list[int] = []
    with ThreadPoolExecutor(50) as pool:
        answers = [pool.submit(post, server) for _ in range(50)]
        until(lambda: sum(answer.done() for answer in answers) >= 40)
        refused = [answer.result() for answer in answers if answer.done()]
        held.worker.resume()
        statuses = [answer.result().status_code for answer in answers]
    assert Counter(statuses) == {429: 40, 200: 10}
    for answer in refused:
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"
        assert "10 requests are waiting" in answer.json()["error"]["message"]


def test_a_worker_that_dies_loses_only_what_it_was_answering(server: Server, held: Held) -> None:
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(post, server) for _ in range(4)]
        until(lambda: metric(server, "slmflow_queue_length") == 4)
        held.worker.kill()
        answers = [answer.result() for answer in waiting]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {a.json()["choices"][0]["message"]["content"] for a in answers} == {"Madrid"}
    told = json.loads([line for line in held.lines if line][-1].removeprefix("data: "))
    assert "died" in told["error"]["message"]
    assert worker_of(server).pid != held.worker.pid
    assert metric(server, "slmflow_worker_restarts") >= 1


def test_a_whole_answer_that_its_worker_dies_of_is_a_503(packaged: Packaged) -> None:
    """Alone on a server, so that the request is the one that is being answered."""
    with (
        start_server(packaged.workplace, ONNX) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        worker = worker_of(server)
        answer = pool.submit(post, server, LONG)
        until(lambda: metric(server, "slmflow_running") == 1 or answer.done())
        worker.kill()
        assert answer.result().status_code == 503
        assert "ask again" in answer.result().json()["error"]["message"]
        until(lambda: httpx.get(server.address + "/health").status_code == 200)
        assert post(server).status_code == 200


def test_while_the_model_is_loaded_again_health_says_so_and_requests_wait(
    server: Server,
) -> None:
    worker_of(server).kill()
    until(lambda: httpx.get(server.address + "/health").status_code == 503)
    assert post(server).status_code == 200
    assert httpx.get(server.address + "/health").status_code == 200


def test_a_request_over_its_time_is_refused_and_taken_back(packaged: Packaged) -> None:
    with start_server(packaged.workplace, ONNX, "serve.timeout=1") as server:
        held = Held(server)
        late = post(server)
        assert late.status_code == 504
        assert "serve.timeout" in late.json()["error"]["message"]
        last = [line for line in held.lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
        until(lambda: is_idle(server))
        held.worker.resume()
        assert post(server).status_code == 200


def state_of_the_last_server(workplace: Workplace) -> str:
    (run,) = workplace.client.search_runs(
        [e.experiment_id for e in workplace.client.search_experiments()],
        "tags.slmflow.entry_point = 'serve'",
    )[:1]
    return str(run.info.status)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_stopped_finishes_what_runs(
    packaged: Packaged, how: int, tmp_path: Path
) -> None:
    workplace = copy_store(packaged.workplace, tmp_path)
    with start_server(workplace, ONNX) as server:
        held = Held(server)
        os.kill(server.process.pid, how)
        held.worker.resume()
        lines = [line for line in held.lines if line]
        assert lines[-1] == "data: [DONE]"
        assert server.process.wait(PATIENCE) == 0
        assert not held.worker.is_running()
    assert state_of_the_last_server(workplace) == "FINISHED"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_what_is_sent_while_a_server_ends_does_not_make_it_fail(
    packaged: Packaged, how: int, tmp_path: Path
) -> None:
    """``mlflow run`` hands its own Ctrl-C on as SIGTERM, at any moment of the end."""
    workplace = copy_store(packaged.workplace, tmp_path)
    with start_server(workplace, ONNX) as server:
        server.process.send_signal(how)
        while server.process.poll() is None:
            server.process.terminate()
            time.sleep(0.005)
        assert server.process.returncode == 0, server.output()
    assert state_of_the_last_server(workplace) == "FINISHED"


def test_the_model_dies_with_its_server(packaged: Packaged) -> None:
    with start_server(packaged.workplace, ONNX) as server:
        worker = worker_of(server)
        server.process.kill()
        worker.wait(PATIENCE)


def test_greedy_answers_do_not_depend_on_who_else_asks(server: Server) -> None:
    countries = ("Spain", "France", "Italy", "Japan", "Peru", "Norway", "Egypt", "Kenya")
    questions = [f"What is the capital of {country}?" for country in countries]

    def answer(question: str) -> str:
        body = {"messages": [{"role": "user", "content": question}]}
        return str(post(server, body).json()["choices"][0]["message"]["content"])

    alone = [answer(question) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(answer, questions))
    assert together == alone


def test_a_call_of_many_rows_is_let_in_or_refused_as_a_whole(server: Server, held: Held) -> None:
    rows = {"inputs": [QUESTION, QUESTION, {**QUESTION, "tools": [1]}]}
    with ThreadPoolExecutor(11) as pool:
        first = pool.submit(post, server, rows, "/invocations")
        waiting = [pool.submit(post, server) for _ in range(10)]
        until(lambda: metric(server, "slmflow_queue_length") == 10)
        refused = post(server, rows, "/invocations")
        held.worker.resume()
        assert first.result().status_code == 200
        assert [answer.result().status_code for answer in waiting] == [200] * 10
    assert refused.status_code == 429
    one, two, three = first.result().json()["predictions"]
    assert one["choices"] == two["choices"]
    assert three["error"]["param"] == "tools"


def test_what_is_nested_too_deeply_keeps_no_place(server: Server) -> None:
    for depth in (100, 945):
        body = b'{"messages": [], "metadata": ' + b"[" * depth + b"]" * depth + b"}"
        answer = httpx.post(server.address + "/v1/chat/completions", content=body)
        assert answer.status_code == 400
    assert is_idle(server)


def test_what_would_break_a_batch_breaks_none(server: Server) -> None:
    """A prompt of nothing but padding, and more tokens to choose from than there are."""
    padding = {"prompt": ["What is", "<|endoftext|>", "What"], "max_tokens": 3}
    assert post(server, padding, "/v1/completions").status_code == 200
    many = {**QUESTION, "top_k": 2_000_000_000, "temperature": 0.5, "seed": 1}
    assert post(server, many).status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 400, "no JSON"),
        (b"{", 400, "no JSON"),
        (b"[1]", 400, "no JSON object"),
        (b'{"messages": NaN}', 400, "NaN"),
        (b"[" * 100_000, 400, "no JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "surrogate"),
        (b'{"messages": [{"role": "user", "content": "a\\u0000b"}]}', 400, "NUL"),
        (b'{"seed": ' + b"1" * 5_000 + b"}", 400, "no JSON"),
        (b'{"model": "gpt-4", "messages": []}', 404, "phi3-demo"),
        (b" " * 2_000_000, 413, "serve.max_body_bytes"),
    ],
)
def test_what_is_no_request_is_told_so(
    server: Server, content: bytes, status: int, said: str
) -> None:
    answer = httpx.post(server.address + "/v1/chat/completions", content=content)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_a_body_without_a_length_is_cut_off_too(server: Server) -> None:
    pieces = (b" " * 100_000 for _ in range(20))
    answer = httpx.post(server.address + "/v1/chat/completions", content=pieces)
    assert answer.status_code == 413


def test_unknown_paths_and_methods_are_told_in_openais_form(server: Server) -> None:
    missing = httpx.get(server.address + "/v1/embeddings")
    assert missing.status_code == 404
    assert "/v1/embeddings" in missing.json()["error"]["message"]
    wrong = httpx.get(server.address + "/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["Allow"] == "POST"


def test_a_page_of_another_origin_cannot_reach_it_by_a_name_of_its_own(server: Server) -> None:
    answer = httpx.get(server.address + "/v1/models", headers={"Host": "evil.example"})
    assert answer.status_code == 400


def test_with_a_key_only_health_and_the_page_are_open(packaged: Packaged) -> None:
    with start_server(packaged.workplace, ONNX, SLMFLOW_API_KEY="sesame") as server:
        for path in ("/health", "/ping", "/version", "/", "/page/chat.js"):
            assert httpx.get(server.address + path).status_code == 200
        for path in ("/v1/models", "/metrics"):
            assert httpx.get(server.address + path).status_code == 401
        for path in ("/v1/chat/completions", "/v1/completions", "/invocations"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame"}):
                answer = httpx.post(server.address + path, json=QUESTION, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
        right = {"Authorization": "Bearer sesame"}
        answer = httpx.post(server.address + "/v1/chat/completions", json=QUESTION, headers=right)
        assert answer.status_code == 200
        assert "sesame" not in server.output()
        parent = "".join(worker_of(server).environ().values())
        assert "sesame" not in parent


def test_limits_of_one_request_are_told_with_both_numbers(packaged: Packaged) -> None:
    with start_server(
        packaged.workplace, ONNX, "serve.max_new_tokens=5", "serve.max_choices=2"
    ) as server:
        many = post(server, {**QUESTION, "max_tokens": 6})
        assert many.status_code == 400
        assert many.json()["error"]["message"] == "max_tokens is 6 and this server allows 5"
        assert post(server, {**QUESTION, "n": 3}).status_code == 400
        assert post(server, {**QUESTION, "n": 2, "max_tokens": 5}).status_code == 200
        silent = post(server, {"prompt": "The capital of"}, "/v1/completions").json()
        assert silent["usage"]["completion_tokens"] <= 5


def test_metrics_count_requests_tokens_and_times(packaged: Packaged) -> None:
    with start_server(packaged.workplace, ONNX) as server:
        answer = post(server).json()
        post(server, {**QUESTION, "tools": [1]})
        usage = answer["usage"]
        path = 'path="/v1/chat/completions"'
        assert metric(server, f'slmflow_requests_total{{{path},status="200"}}') == 1
        assert metric(server, f'slmflow_requests_total{{{path},status="400"}}') == 1
        for kind in ("prompt", "completion"):
            counted = metric(server, f'slmflow_tokens_total{{kind="{kind}"}}')
            assert counted == usage[f"{kind}_tokens"]
        assert metric(server, "slmflow_time_to_first_token_seconds_count") == 1
        assert metric(server, "slmflow_tokens_per_second_count") == 1


def traces_of(workplace: Workplace) -> list[Any]:
    mlflow.set_tracking_uri(workplace.tracking_uri)
    ids = [e.experiment_id for e in workplace.client.search_experiments()]
    return list(workplace.client.search_traces(locations=ids))


def test_served_requests_become_traces(packaged: Packaged, tmp_path: Path) -> None:
    workplace = copy_store(packaged.workplace, tmp_path)
    before = len(traces_of(workplace))
    with start_server(workplace, ONNX, "trace=true") as server:
        whole = post(server).json()
        post(server, {**QUESTION, "stream": True})
        post(server, {**QUESTION, "tools": [1]})
        until(lambda: len(traces_of(workplace)) == before + 3)
    refused, _, first = traces_of(workplace)[:3]
    assert first.info.state == "OK"
    assert first.info.token_usage["total_tokens"] == whole["usage"]["total_tokens"]
    assert first.info.trace_metadata["slmflow.served_model"] == "models:/phi3-demo/2"
    (span,) = first.data.spans
    assert span.inputs == QUESTION
    assert span.outputs["choices"] == whole["choices"]
    assert refused.info.state == "ERROR"


def test_a_tracking_server_that_hangs_slows_no_answer(packaged: Packaged, tmp_path: Path) -> None:
    """It is stopped once the model is loaded: it takes connections and never answers."""
    with (
        tracking_server(packaged.workplace, tmp_path) as (tracking, workplace),
        start_server(workplace, ONNX, "trace=true") as server,
    ):
        before = len(traces_of(workplace))
        post(server)
        until(lambda: len(traces_of(workplace)) == before + 1)
        tracking.suspend()
        started = time.monotonic()
        answers = [post(server) for _ in range(20)]
        assert [answer.status_code for answer in answers] == [200] * 20
        # Its HTTP client would wait for 10 s at least for the first of these traces.
        assert time.monotonic() - started < 5
        tracking.resume()
        until(lambda: len(traces_of(workplace)) == before + 21)


@contextmanager
def tracking_server(
    workplace: Workplace, folder: Path
) -> Iterator[tuple[psutil.Process, Workplace]]:
    """A real ``mlflow server`` over a copy of the store, and the workplace that uses it."""
    copied = copy_store(workplace, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    process = psutil.Popen(
        [*command, "--backend-store-uri", copied.tracking_uri],
        env=dict(copied.environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        until(lambda: is_up(f"{uri}/health"))
        worker = next(child for child in process.children(recursive=True) if not child.children())
        yield worker, Workplace(folder, {**copied.environment, "MLFLOW_TRACKING_URI": uri})
    finally:
        for child in process.children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def is_up(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("model_uri=models:/nobody/1",), "nobody"),
        (("serve.port=70000",), "serve.port is 70000; allowed: 0"),
        (("serve.queue=0",), "serve.queue is 0; allowed: 1 or more"),
        (("trace_rate=2",), "trace_rate is 2.0; allowed: 0 to 1"),
        (("serve.host=256.1.1.1",), "256.1.1.1:8000 cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_message(
    packaged: Packaged, arguments: tuple[str, ...], said: str
) -> None:
    result = packaged.workplace.script("serve", *arguments)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken_is_told(packaged: Packaged, server: Server) -> None:
    port = server.address.rpartition(":")[2]
    result = packaged.workplace.script("serve", ONNX, f"serve.port={port}")
    assert result.returncode == 1
    assert f"127.0.0.1:{port} cannot be listened on" in result.stderr


def test_requests_of_one_connection_are_answered_in_turn(server: Server) -> None:
    with httpx.Client(base_url=server.address, timeout=PATIENCE) as client:
        for _ in range(5):
            assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200


def test_many_streams_at_once_are_each_their_own(server: Server) -> None:
    started = threading.Barrier(8)

    def stream(seed: int) -> str:
        body = {**QUESTION, "temperature": 3.0, "seed": seed, "max_tokens": 40, "stream": True}
        started.wait()
        text = ""
        with httpx.stream(
            "POST", server.address + "/v1/chat/completions", json=body, timeout=PATIENCE
        ) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    text += chunk["choices"][0]["delta"].get("content", "")
        return text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(stream, range(8)))
    for seed, text in enumerate(texts):
        body = {**QUESTION, "temperature": 3.0, "seed": seed, "max_tokens": 40}
        assert post(server, body).json()["choices"][0]["message"]["content"] == text
