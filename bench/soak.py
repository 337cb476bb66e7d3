"""Soak: thousands of mixed requests to one server, and what it holds on to.

The demo model, packaged and served as it is typed. Eight threads over http.client send a seeded
mix, in rounds; after each, with nothing asked, memory, threads and open files of the server's
two processes are read. Each answer is held against what its request must get. ``--kind`` sends
requests of that kind alone, to find out which of them keeps memory.
"""

import argparse
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil

from bench import work
from bench.figures import Figure, show, write
from slmflow import console
from slmflow.checkout import PROJECT_ROOT
from slmflow.evaluation.data.dataset import open_dataset

CLIENTS = 8
QUESTIONS = PROJECT_ROOT / "demo" / "heldout.jsonl"
CHAT, TEXT, ROWS = "/v1/chat/completions", "/v1/completions", "/invocations"
GROWTH_TARGET = 1.05
IDLE_SECONDS = 30.0  # that the server may take to be idle after a lap
WRONG_SHOWN = 20
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Madrid", "Rome", "Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}


class Wrong(Exception):
    """An answer that its request should not have got."""


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Request:
    """``check`` raises ``Wrong``, or anything else, of a reply that is not as it must be;
    ``cut``: the connection is closed after the first chunk."""

    path: str
    body: bytes | None
    check: Callable[[Reply], None]
    cut: bool = False


Draw = Callable[[random.Random], Request]


def main() -> None:
    options = parsed()
    place = work.prepare(options.work)
    with work.run_store(place):
        with console.step("package the demo model"):
            work.check(run(["-m", "entrypoints.custom_onnx"]))
        with work.served(place) as server:
            soak = Soak(server, options.kind or list(KINDS), options.seed)
            before = soak.greedy()
            laps = [soak.held()]
            with console.progress("laps", options.rounds) as bar:
                for _ in range(options.rounds):
                    soak.lap(options.requests // options.rounds)
                    laps.append(soak.held())
                    bar.advance()
            same = soak.greedy() == before
            cut = soak.closed_by_client()
    show_laps(laps)
    show_outcomes(soak.outcomes)
    figures = compare(laps, soak, same)
    show(f"{options.requests} requests, {CLIENTS} clients", figures)
    for line in soak.wrong[:WRONG_SHOWN]:
        console.note(line)
    outcomes = {f"{kind}: {outcome}": n for (kind, outcome), n in sorted(soak.outcomes.items())}
    about = {"laps": laps, "outcomes": outcomes, "wrong": soak.wrong, "closed_by_client": cut}
    write(options.json, "soak", figures, **about, seed=options.seed)


def parsed() -> argparse.Namespace:
    parser = work.parser("soak", __doc__, rounds=10)
    parser.add_argument("--requests", type=int, default=2000, help="of all rounds (%(default)s)")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.requests < options.rounds:
        parser.error("--requests: at least one a round")
    return options


def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *command], cwd=PROJECT_ROOT, capture_output=True, text=True
    )


class Soak:
    """Sends the mix to one server and keeps count."""

    def __init__(self, server: work.Served, kinds: Sequence[str], seed: int) -> None:
        self._server = server
        self._kinds = kinds
        self._drawn = random.Random(seed)
        self._lock = threading.Lock()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self.restarts = 0.0

    def lap(self, count: int) -> None:
        weights = [KINDS[kind].weight for kind in self._kinds]
        kinds = self._drawn.choices(self._kinds, weights, k=count)
        asked = iter([(kind, KINDS[kind].draw(self._drawn)) for kind in kinds])
        with ThreadPoolExecutor(CLIENTS) as pool:
            for each in [pool.submit(self._client, asked) for _ in range(CLIENTS)]:
                each.result()

    def greedy(self) -> str:
        """What one question gets, with nothing else asked."""
        reply = Caller(self._server).send(chat([QUESTION_LIST[0]], right_chat(1)))
        return str(reply.json()["choices"][0]["message"]["content"])

    def held(self) -> dict[str, float]:
        """What the server's processes hold when it is idle."""
        until = time.monotonic() + IDLE_SECONDS
        while any(self._gauges().values()):
            if time.monotonic() > until:
                self.wrong.append(f"not idle after {IDLE_SECONDS:g} s: {self._gauges()}")
                break
            time.sleep(0.2)
        time.sleep(0.5)  # connections that were cut are told of
        held: dict[str, float] = {}
        for name, process in (("front", self._server.front), ("worker", self._server.worker)):
            held |= {f"{name} {what}": value for what, value in of_process(process).items()}
        return {"requests": self.outcomes.total()} | held

    def closed_by_client(self) -> float:
        """Requests that the server counted as closed by their clients."""
        counted = self._metrics().items()
        return sum(
            value
            for name, value in counted
            if name.startswith("slmflow_requests_total") and 'status="499"' in name
        )

    def _client(self, asked: Iterator[tuple[str, Request]]) -> None:
        caller = Caller(self._server)
        while True:
            with self._lock:
                kind, request = next(asked, ("", None))
            if request is None:
                caller.close()
                return
            outcome, reason = tried(caller, request)
            with self._lock:
                self.outcomes[kind, outcome] += 1
                if reason:
                    self.wrong.append(f"{kind}, {outcome}: {reason}")

    def _metrics(self) -> dict[str, float]:
        text = Caller(self._server).send(Request("/metrics", None, right_status(200))).body.decode()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def _gauges(self) -> dict[str, float]:
        metrics = self._metrics()
        self.restarts = metrics["slmflow_worker_restarts"]
        return {name: metrics[name] for name in ("slmflow_queue_length", "slmflow_running")}


def tried(caller: "Caller", request: Request) -> tuple[str, str]:
    """The status, and what is wrong with the reply."""
    try:
        reply = caller.send(request)
    except (OSError, http.client.HTTPException) as error:
        caller.close()
        return type(error).__name__, str(error) or "no reply"
    try:
        request.check(reply)
    except Exception as error:  # a body of another shape fails in its own way
        shown = reply.body[:200].decode("utf-8", "replace")
        return str(reply.status), f"{type(error).__name__} {error} in {shown}"
    return f"{reply.status} cut" if request.cut else str(reply.status), ""


class Caller:
    """One connection, kept open between requests."""

    def __init__(self, server: work.Served) -> None:
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=120)

    def send(self, request: Request) -> Reply:
        headers = {"Content-Type": "application/json"}
        method = "GET" if request.body is None else "POST"
        self._connection.request(method, request.path, request.body, headers)
        response = self._connection.getresponse()
        body = response.readline() if request.cut else response.read()
        if request.cut:
            response.close()
            self.close()
        return Reply(response.status, body)

    def close(self) -> None:
        self._connection.close()  # it opens again by itself


def of_process(process: psutil.Process) -> dict[str, float]:
    with process.oneshot():
        return {
            "MB": process.memory_info().rss / 1e6,
            "threads": process.num_threads(),
            "files": process.num_fds(),
        }


# What is asked, and what it must get.


def require(holds: bool, told: str) -> None:
    if not holds:
        raise Wrong(told)


def right_status(status: int) -> Callable[[Reply], None]:
    def check(reply: Reply) -> None:
        require(reply.status == status, f"status {reply.status} and not {status}")

    return check


def right_chat(
    choices: int, prompt_tokens: int = 1, json_of: Any = None
) -> Callable[[Reply], None]:
    def check(reply: Reply) -> None:
        right_status(200)(reply)
        whole = reply.json()
        right_choices(whole, choices, prompt_tokens)
        for choice in whole["choices"]:
            content = choice["message"]["content"]
            require(isinstance(content, str), "the content is no text")
            if json_of is not None and choice["finish_reason"] == "stop":
                require(json.loads(content)["city"] in json_of, "the answer is not as its schema")

    return check


def right_choices(whole: Mapping[str, Any], choices: int, prompt_tokens: int = 1) -> None:
    indices = [choice["index"] for choice in whole["choices"]]
    require(indices == list(range(choices)), f"choices {indices} and not {choices}")
    reasons = {choice["finish_reason"] for choice in whole["choices"]}
    require(reasons <= {"stop", "length"}, f"finish_reason {reasons}")
    usage = whole["usage"]
    require(usage["prompt_tokens"] >= prompt_tokens, f"prompt_tokens {usage['prompt_tokens']}")
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    require(usage["total_tokens"] == total, f"usage {usage}")


def right_text(choices: int) -> Callable[[Reply], None]:
    def check(reply: Reply) -> None:
        right_status(200)(reply)
        whole = reply.json()
        right_choices(whole, choices)
        require(all(isinstance(one["text"], str) for one in whole["choices"]), "no text")

    return check


def right_stream(reply: Reply) -> None:
    right_status(200)(reply)
    events = [line.removeprefix("data: ") for line in reply.body.decode().split("\n\n") if line]
    require(events[-1] == "[DONE]", "the stream does not end with [DONE]")
    *chunks, total = map(json.loads, events[:-1])
    reasons = [one["choices"][0]["finish_reason"] for one in chunks]
    require(reasons[-1] in ("stop", "length"), f"the stream ends with {reasons[-1]}")
    require(not any(reasons[:-1]), "the stream goes on after its end")
    require(len({one["id"] for one in (*chunks, total)}) == 1, "the ids differ")
    require(total["usage"]["completion_tokens"] >= 0, "no usage")


def right_first_chunk(reply: Reply) -> None:
    right_status(200)(reply)
    require(b"chat.completion.chunk" in reply.body, "the first line is no chunk")


def right_error(status: int, code: str | None = None, param: str | None = None) -> Any:
    def check(reply: Reply) -> None:
        right_status(status)(reply)
        error = reply.json()["error"]
        require(bool(error["message"]), "no message")
        require(error["code"] == code, f"code {error['code']} and not {code}")
        require(error["param"] == param, f"param {error['param']} and not {param}")

    return check


def right_rows(count: int) -> Callable[[Reply], None]:
    def check(reply: Reply) -> None:
        right_status(200)(reply)
        rows = reply.json()["predictions"]
        require(len(rows) == count, f"{len(rows)} rows and not {count}")
        for row in rows:
            right_choices(row, 1)

    return check


def chat(questions: Sequence[str], check: Callable[[Reply], None], **options: Any) -> Request:
    messages = messages_of(" ".join(questions))
    body = json.dumps({"messages": messages, "max_tokens": 32, **options})
    return Request(CHAT, body.encode(), check)


def messages_of(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


QUESTION_LIST = [example.question for example in open_dataset("soak", QUESTIONS, None, None)]


def short(drawn: random.Random) -> Request:
    return chat([drawn.choice(QUESTION_LIST)], right_chat(1), temperature=drawn.choice([0, 0.7]))


def long(drawn: random.Random) -> Request:
    """Of two to seven hundred tokens, of which the demo model's context has 1024."""
    questions = drawn.choices(QUESTION_LIST, k=drawn.randint(20, 40))
    return chat(questions, right_chat(1, prompt_tokens=200))


def streamed(drawn: random.Random) -> Request:
    more = {"stream": True, "stream_options": {"include_usage": True}}
    return chat(
        [drawn.choice(QUESTION_LIST)], right_stream, temperature=drawn.choice([0, 1]), **more
    )


def three(drawn: random.Random) -> Request:
    return chat([drawn.choice(QUESTION_LIST)], right_chat(3), n=3, temperature=0.8)


def penalised(drawn: random.Random) -> Request:
    return chat([drawn.choice(QUESTION_LIST)], right_chat(1), frequency_penalty=1)


def guided(drawn: random.Random) -> Request:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    check = right_chat(1, json_of=CITY["properties"]["city"]["enum"])  # type: ignore[index]
    return chat([drawn.choice(QUESTION_LIST)], check, response_format=wanted)


def cancelled(drawn: random.Random) -> Request:
    """So hot that the model hardly ever ends: what runs is closed half-way."""
    asked = chat(
        [drawn.choice(QUESTION_LIST)],
        right_first_chunk,
        stream=True,
        temperature=30,
        max_tokens=900,
    )
    return Request(asked.path, asked.body, asked.check, cut=True)


def text(drawn: random.Random) -> Request:
    prompts = drawn.choices(QUESTION_LIST, k=drawn.randint(1, 4))
    body = {"prompt": prompts, "max_tokens": 24}
    return Request(TEXT, json.dumps(body).encode(), right_text(len(prompts)))


def rows(drawn: random.Random) -> Request:
    asked = [
        {"messages": messages_of(question), "max_tokens": 16}
        for question in drawn.choices(QUESTION_LIST, k=drawn.randint(2, 6))
    ]
    return Request(ROWS, json.dumps({"inputs": asked}).encode(), right_rows(len(asked)))


def malformed(drawn: random.Random) -> Request:
    question = [drawn.choice(QUESTION_LIST)]
    long_text = [" ".join(drawn.choices(QUESTION_LIST, k=400))]
    too_long = right_error(400, "context_length_exceeded", "messages")
    too_large = right_error(413, "too_large")
    return drawn.choice(
        [
            Request(CHAT, b'{"messages": [', right_error(400)),
            Request(CHAT, b"[1, 2]", right_error(400)),
            Request(TEXT, b"\xff\xfe", right_error(400)),
            Request(ROWS, b'{"inputs": [', right_status(400)),
            Request("/nowhere", b"{}", right_error(404)),
            Request(CHAT, None, right_error(405)),
            Request(CHAT, b" " * 1_048_577, too_large),
            chat(question, right_error(400, param="colour"), colour="red"),
            chat(question, right_error(400, param="temperature"), temperature="hot"),
            chat(question, right_error(400, param="n"), n=99),
            chat(question, right_error(404, "model_not_found", "model"), model="gpt-0"),
            chat(long_text, too_long),
        ]
    )


def health(_: random.Random) -> Request:
    return Request("/health", None, right_status(200))


def metrics(_: random.Random) -> Request:
    return Request("/metrics", None, right_status(200))


@dataclass(frozen=True)
class Kind:
    draw: Draw
    weight: int


KINDS = {
    "short": Kind(short, 28),
    "streamed": Kind(streamed, 15),
    "long": Kind(long, 10),
    "n=3": Kind(three, 8),
    "cancelled": Kind(cancelled, 10),
    "malformed": Kind(malformed, 12),
    "text": Kind(text, 5),
    "rows": Kind(rows, 4),
    "guided": Kind(guided, 2),
    "penalised": Kind(penalised, 2),
    "health": Kind(health, 2),
    "metrics": Kind(metrics, 2),
}


# What came of it.


def show_laps(laps: Sequence[Mapping[str, float]]) -> None:
    names = [
        f"{name} {what}" for name in ("front", "worker") for what in ("MB", "threads", "files")
    ]
    console.table(
        ("requests", *(name.replace("worker", "work.") for name in names)),
        [
            (
                f"{lap['requests']:.0f}",
                *(
                    f"{lap[name]:.1f}" if name.endswith("MB") else f"{lap[name]:.0f}"
                    for name in names
                ),
            )
            for lap in laps
        ],
        title="held by the server's processes, idle",
    )


def show_outcomes(outcomes: Mapping[tuple[str, str], int]) -> None:
    statuses = sorted({status for _, status in outcomes})
    console.table(
        ("kind", *statuses),
        [
            (kind, *(str(outcomes.get((kind, status), 0) or "") for status in statuses))
            for kind in KINDS
            if any(each == kind for each, _ in outcomes)
        ],
        title="requests by status",
    )


def compare(laps: Sequence[Mapping[str, float]], soak: Soak, same: bool) -> list[Figure]:
    first, last = laps[1], laps[-1]
    figures = []
    for name in ("front", "worker"):
        growth = last[f"{name} MB"] / first[f"{name} MB"]
        figures.append(Figure(f"{name}, memory growth", [growth], at_most=GROWTH_TARGET))
    for name in ("front", "worker"):
        for what in ("threads", "files"):
            more = last[f"{name} {what}"] - first[f"{name} {what}"]
            figures.append(Figure(f"{name}, more {what}", [more], "", at_most=0))
    return [
        *figures,
        Figure("wrong replies", [len(soak.wrong)], "", at_most=0),
        Figure("worker restarts", [soak.restarts], "", at_most=0),
        Figure("greedy answer as at first", [float(same)], "", at_least=1),
    ]


if __name__ == "__main__":
    main()
