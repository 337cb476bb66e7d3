"""Serving: the entry point serve over HTTP against the bare runtime.

The same int4 model, prompts, greedy search and number of new tokens; that both make the same text
is checked first. Three processes, of which one asks for work at a time: the server; a bare
onnxruntime_genai loop with as many threads and no code of slmflow's; the client, threads over
http.client. What is compared is measured one after the other, in the other order every second
round. A round starts server and bare loop anew: two loaded copies of a model differ by some
percent, by where they happen to lie in memory.

Clients: a closed loop each, the next request when the last is answered; from the first request to
the last answer. Bare: as many batches of the same prompts, encoded and decoded. First token: from
before the request is sent until its first text is there; bare, append_tokens and the first
generate_next_token alone.
"""

import argparse
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from bench import work
from bench.checkpoint import Shape, plain_tokens
from bench.figures import Figure, ratios, show, write
from slmflow import console
from slmflow.checkout import PROJECT_ROOT
from slmflow.served.cores import thread_count
from slmflow.sources import LocalModel

CLIENTS = 8
PROMPT_TOKENS = tuple(range(57, 57 + 2 * CLIENTS, 2))  # of each client's prompt: 64 on average
NEW_TOKENS = 64
FIRST_TOKENS = (64, 512)  # of the prompts whose first token is timed
LONG_ANSWER = 128
REPEATS = 3  # of what takes a moment, in one round; their median counts
POLL_SECONDS = 0.02
IDLE_SECONDS = 4.0

MANY_TARGET, BATCH_TARGET, ONE_TARGET = 1.8, 0.9, 0.95
FIRST_FACTOR, FIRST_MILLISECONDS = 1.1, 10.0
HEALTH_MILLISECONDS = 50.0

Measured = dict[str, float]


def main() -> None:
    parser = work.parser("serving", __doc__, rounds=5)
    parser.add_argument("--requests", type=int, default=6, help="of a client (default: 6)")
    parser.add_argument("--child", nargs="+", metavar="ROLE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        serve_orders(*options.child)
        return
    place = work.prepare(options.work)
    shape = Shape()
    weights = work.int4_model(shape)
    prompts = make_prompts(weights.path, shape.context)
    with work.run_store(place):
        with console.step("package it"):
            uri = package(weights)
        rounds = []
        with console.progress("rounds", options.rounds) as bar:
            for number in range(options.rounds):
                rounds.append(
                    one_round(place, uri, weights.path, prompts, options.requests, number)
                )
                bar.advance()
    figures = compare({name: [each[name] for each in rounds] for name in rounds[0]})
    show(f"{CLIENTS} clients, {NEW_TOKENS} new tokens a request", figures)
    about = {"parameters": shape.parameters, "clients": CLIENTS, "new_tokens": NEW_TOKENS}
    write(options.json, "serving", figures, **about, requests=options.requests)


def package(weights: LocalModel) -> str:
    """Logged as custom_onnx logs it, task=prompt: a prompt then has the tokens that it is given."""
    import mlflow

    from slmflow.packaging.log_model import Packaging, log_onnx
    from slmflow.served.search import SearchOptions

    search = asdict(SearchOptions(max_new_tokens=NEW_TOKENS))
    settings = {"task": "prompt", "model": "bench", **search, "provider": "cpu", "threads": "auto"}
    packaging = Packaging(weights, settings, "What is the capital of Spain?", "bench")
    with mlflow.start_run():
        uri: str = log_onnx(packaging, "prompt", "onnxruntime-genai").uri
    return uri


def make_prompts(folder: Path, context: int) -> dict[str, list[str]]:
    """Texts of exact lengths: one a client, one a length of the first tokens, the longest."""
    tokenizer = Bare.tokenizer(folder)
    words = [text for token in plain_tokens() if is_word(text := tokenizer.decode([token]))]
    words = [word for word in words if len(tokenizer.encode(f" {word}")) == 1]
    drawn = random.Random(0)

    def text_of(tokens: int) -> str:
        text = "".join(f" {word}" for word in drawn.choices(words, k=tokens))
        assert len(tokenizer.encode(text)) == tokens, text
        return text

    return {
        "clients": [text_of(tokens) for tokens in PROMPT_TOKENS],
        "first": [text_of(tokens) for tokens in FIRST_TOKENS],
        "longest": [text_of(context - 2)],
    }


def is_word(text: str) -> bool:
    return text.strip().isalpha() and text.strip().islower()


def one_round(
    place: Path, uri: str, folder: Path, prompts: dict[str, list[str]], requests: int, number: int
) -> Measured:
    with (
        work.served(place, f"model_uri={uri}") as server,
        helper("client", server.host, str(server.port)) as client,
        helper("bare", str(folder), str(thread_count("auto"))) as bare,
    ):
        sides = Sides(server, client, bare, turned=number % 2 == 1)
        check_equal(sides, prompts)
        measured = sides.idle()
        measured |= sides.many(prompts["clients"], requests)
        measured |= sides.one(prompts["clients"][0])
        for tokens, prompt in zip(FIRST_TOKENS, prompts["first"], strict=True):
            measured |= sides.first(prompt, str(tokens))
        return measured | sides.health(prompts["longest"][0])


def check_equal(sides: "Sides", prompts: dict[str, list[str]]) -> None:
    """Both make the same text of a prompt; also the warm-up."""
    for prompt in (prompts["clients"][0], *prompts["first"]):
        order = {"prompts": [prompt], "requests": 1, "new_tokens": NEW_TOKENS}
        told = sides.bare.ask("answer", **order)["texts"]
        for stream in (False, True):
            assert sides.client.ask("answer", stream=stream, **order)["texts"] == told, prompt


@dataclass(frozen=True)
class Sides:
    """What is compared, each thing by each side in turn; ``turned``: in the other order."""

    server: work.Served
    client: "Helper"
    bare: "Helper"
    turned: bool

    def idle(self) -> Measured:
        """Of one core, with nothing asked: what the server takes from the bare loop."""
        time.sleep(IDLE_SECONDS)  # what it does after an answer
        before = self.server.cpu_seconds
        time.sleep(IDLE_SECONDS)
        front, worker = (
            100 * (now - then) / IDLE_SECONDS
            for now, then in zip(self.server.cpu_seconds, before, strict=True)
        )
        return {"idle front": front, "idle worker": worker}

    def many(self, prompts: list[str], requests: int) -> Measured:
        order = {"prompts": prompts, "requests": requests, "new_tokens": NEW_TOKENS}
        cpu: Measured = {}

        def streamed() -> float:
            before = self.server.cpu_seconds[0], self.client.cpu_seconds
            told = self.client.ask("answer", stream=True, **order)
            now = self.server.cpu_seconds[0], self.client.cpu_seconds
            for name, start, end in zip(("cpu front", "cpu client"), before, now, strict=True):
                cpu[name] = 100 * (end - start) / told["seconds"]
            return rate(told)

        measured = self._in_turn(
            {
                "alone": lambda: rate(
                    self.client.ask("alone", prompts=prompts, new_tokens=NEW_TOKENS)
                ),
                "whole": lambda: rate(self.client.ask("answer", stream=False, **order)),
                "bare batch": lambda: rate(self.bare.ask("answer", **order)),
                "streamed": streamed,
            }
        )
        return measured | cpu

    def one(self, prompt: str) -> Measured:
        order = {"prompts": [prompt], "requests": REPEATS, "new_tokens": LONG_ANSWER}
        return self._in_turn(
            {
                "one whole": lambda: rate(self.client.ask("answer", stream=False, **order)),
                "bare one": lambda: rate(self.bare.ask("answer", **order)),
                "one streamed": lambda: rate(self.client.ask("answer", stream=True, **order)),
            }
        )

    def first(self, prompt: str, name: str) -> Measured:
        """Milliseconds."""
        helpers = {f"first {name}": self.client, f"bare first {name}": self.bare}
        times: dict[str, list[float]] = {side: [] for side in helpers}
        for _ in range(REPEATS):
            for side, helper in helpers.items():
                times[side].append(1000 * helper.ask("first", prompt=prompt)["seconds"])
        return {side: median(each) for side, each in times.items()}

    def health(self, prompt: str) -> Measured:
        """Milliseconds."""
        times = [1000 * seconds for seconds in self.client.ask("health", prompt=prompt)["seconds"]]
        return {
            "health slowest": max(times),
            "health median": median(times),
            "health polls": len(times),
        }

    def _in_turn(self, ways: dict[str, Callable[[], float]]) -> Measured:
        names = reversed(ways) if self.turned else iter(ways)
        return {name: ways[name]() for name in names}


def rate(told: dict[str, Any]) -> float:
    return float(told["tokens"]) / float(told["seconds"])


def compare(rounds: dict[str, list[float]]) -> list[Figure]:
    figures = [
        Figure("bare, batch of 8", rounds["bare batch"], "tokens/s"),
        Figure("one request at a time", rounds["alone"], "tokens/s"),
    ]
    for name in ("whole", "streamed"):
        many = rounds[name]
        figures += [
            Figure(f"8 clients, {name}", many, "tokens/s"),
            Figure("  over one at a time", ratios(many, rounds["alone"]), at_least=MANY_TARGET),
            Figure("  over bare", ratios(many, rounds["bare batch"]), at_least=BATCH_TARGET),
        ]
    figures.append(Figure("bare, one answer", rounds["bare one"], "tokens/s"))
    for name in ("whole", "streamed"):
        over = ratios(rounds[f"one {name}"], rounds["bare one"])
        figures.append(Figure(f"one answer over it, {name}", over, at_least=ONE_TARGET))
    for tokens in FIRST_TOKENS:
        ours, bare = rounds[f"first {tokens}"], rounds[f"bare first {tokens}"]
        late = [a - FIRST_FACTOR * b for a, b in zip(ours, bare, strict=True)]
        figures += [
            Figure(f"first token of {tokens}", ours, "ms"),
            Figure("  bare", bare, "ms"),
            Figure(f"  over {FIRST_FACTOR} x bare", late, "ms", at_most=FIRST_MILLISECONDS),
        ]
    return [
        *figures,
        Figure("/health, slowest", rounds["health slowest"], "ms", at_most=HEALTH_MILLISECONDS),
        Figure("/health, median", rounds["health median"], "ms"),
        Figure("/health, asked", rounds["health polls"], "times"),
        Figure("CPU, idle front", rounds["idle front"], "%"),
        Figure("CPU, idle worker", rounds["idle worker"], "%"),
        Figure("CPU, front, streaming", rounds["cpu front"], "%"),
        Figure("CPU, client, streaming", rounds["cpu client"], "%"),
    ]


class Helper:
    """A process of this module that does what it is asked to, one order at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._usage = psutil.Process(process.pid)

    def ask(self, what: str, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"what": what, "order": order}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the process that measures ended while it measured {what!r}; see above")
        told: dict[str, Any] = json.loads(line)
        return told

    @property
    def cpu_seconds(self) -> float:
        times = self._usage.cpu_times()
        return float(times.user + times.system)


@contextmanager
def helper(*role: str) -> Iterator[Helper]:
    command = [sys.executable, "-m", "bench.serving", "--child", *role]
    with subprocess.Popen(
        command, cwd=PROJECT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Helper(process)


def serve_orders(role: str, *about: str) -> None:
    """Within the child: orders and what they measured, a line of JSON each."""
    made: Client | Bare = (
        Client(about[0], int(about[1])) if role == "client" else Bare(Path(about[0]), int(about[1]))
    )
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(made, asked["what"])(**asked["order"])), flush=True)


class Client:
    """Threads, a connection that stays open each."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port

    def answer(
        self,
        prompts: list[str],
        requests: int,
        new_tokens: int,
        stream: bool,
    ) -> dict[str, Any]:
        """A client for every prompt asks it so many times."""
        begin = threading.Barrier(len(prompts) + 1)

        def loop(prompt: str) -> list[str]:
            connection = self._connected()
            begin.wait()
            return [self._text(connection, prompt, new_tokens, stream) for _ in range(requests)]

        with ThreadPoolExecutor(len(prompts)) as pool:
            loops = [pool.submit(loop, prompt) for prompt in prompts]
            begin.wait()
            started = time.perf_counter()
            texts = [each.result() for each in loops]
            seconds = time.perf_counter() - started
        tokens = len(prompts) * requests * new_tokens
        return {"tokens": tokens, "seconds": seconds, "texts": [each[0] for each in texts]}

    def alone(self, prompts: list[str], new_tokens: int) -> dict[str, Any]:
        """One client asks the prompts one after the other."""
        connection = self._connected()
        started = time.perf_counter()
        for prompt in prompts:
            self._text(connection, prompt, new_tokens, False)
        seconds = time.perf_counter() - started
        return {"tokens": len(prompts) * new_tokens, "seconds": seconds}

    def first(self, prompt: str) -> dict[str, Any]:
        connection = self._connected()
        started = time.perf_counter()
        chunks = self._stream(connection, prompt, 4)
        next(chunk for chunk in chunks if chunk["choices"][0]["text"])
        seconds = time.perf_counter() - started
        assert list(chunks), "the stream ended with its first chunk"
        return {"seconds": seconds}

    def health(self, prompt: str) -> dict[str, Any]:
        """How long /health takes while a prompt is read that nearly fills the context."""
        connection = self._connected()
        times = []
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self._text, self._connected(), prompt, 1, False)
            while not reading.done():
                started = time.perf_counter()
                connection.request("GET", "/health")
                response = connection.getresponse()
                response.read()
                times.append(time.perf_counter() - started)
                assert response.status == 200, response.status
                time.sleep(POLL_SECONDS)
            reading.result()
        return {"seconds": times}

    def _connected(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.connect()
        return connection

    def _text(
        self, connection: http.client.HTTPConnection, prompt: str, new_tokens: int, stream: bool
    ) -> str:
        if stream:
            chunks = list(self._stream(connection, prompt, new_tokens))
            usage = chunks.pop()["usage"]
            text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        else:
            whole = json.loads(self._post(connection, prompt, new_tokens).read())
            usage, text = whole["usage"], whole["choices"][0]["text"]
        assert usage["completion_tokens"] == new_tokens, usage
        return str(text)

    def _stream(
        self, connection: http.client.HTTPConnection, prompt: str, new_tokens: int
    ) -> Iterator[dict[str, Any]]:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        response = self._post(connection, prompt, new_tokens, **options)
        for line in response:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))

    def _post(
        self, connection: http.client.HTTPConnection, prompt: str, new_tokens: int, **options: Any
    ) -> http.client.HTTPResponse:
        body = json.dumps({"prompt": prompt, "max_tokens": new_tokens, **options})
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", body, headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return response


class Bare:
    """What one would write against the runtime's own interface."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai

        self._genai: Any = onnxruntime_genai
        config = onnxruntime_genai.Config(str(folder))
        config.clear_providers()
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = onnxruntime_genai.Model(config)
        self._tokenizer = onnxruntime_genai.Tokenizer(self._model)

    @staticmethod
    def tokenizer(folder: Path) -> Any:
        import onnxruntime_genai

        return onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(folder)))

    def answer(self, prompts: list[str], requests: int, new_tokens: int) -> dict[str, Any]:
        """All prompts in one batch, so many times."""
        started = time.perf_counter()
        for _ in range(requests):
            texts = self._batch(prompts, new_tokens)
        seconds = time.perf_counter() - started
        return {"tokens": len(prompts) * requests * new_tokens, "seconds": seconds, "texts": texts}

    def first(self, prompt: str) -> dict[str, Any]:
        ids = self._tokenizer.encode(prompt)
        generator = self._generator(1, len(ids) + 4)
        started = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        return {"seconds": time.perf_counter() - started}

    def _batch(self, prompts: Sequence[str], new_tokens: int) -> list[str]:
        encoded = [self._tokenizer.encode(prompt) for prompt in prompts]
        longest = max(len(ids) for ids in encoded)
        padded = np.full((len(encoded), longest), self._tokenizer.pad_token_id, dtype=np.int32)
        for row, ids in enumerate(encoded):
            padded[row, : len(ids)] = ids
        generator = self._generator(len(encoded), longest + new_tokens)
        generator.append_tokens(padded if len(encoded) > 1 else padded[0])
        while not generator.is_done():
            generator.generate_next_token()
        made = [generator.get_sequence(row)[longest:] for row in range(len(encoded))]
        assert all(len(ids) == new_tokens for ids in made), [len(ids) for ids in made]
        return [self._tokenizer.decode(ids) for ids in made]

    def _generator(self, rows: int, length: int) -> Any:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(batch_size=rows, max_length=length, do_sample=False)
        return self._genai.Generator(self._model, params)


if __name__ == "__main__":
    main()
