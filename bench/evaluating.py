"""Evaluating: what the entry point evaluate costs over generation itself, and what it holds.

Cost: different prompts of 20 to 40 tokens, chat format included, answers of --new-tokens each,
greedy, the same int4 model and number of threads. Bare: a process with an onnxruntime_genai loop
that generates batches of 16, sorted by length; its generation alone, and all of it with start and
load. Evaluate: the whole command as it is typed, from start to exit, with scores, traces and
report, into an empty tracking store; without speed, likelihood and parity, which generate more.
That both read and made as many tokens is checked. They begin in turn.

Memory: the demo ONNX model, 4 tokens an answer, few rows and many, all different. Peaks are VmHWM
of /proc/PID/status, read while the command runs, so this needs Linux: of evaluate's own process,
and of the one that holds the model.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from bench import work
from bench.checkpoint import Shape, plain_tokens
from bench.figures import Figure, ratios, show, write
from bench.serving import Bare, is_word
from slmflow import console
from slmflow.checkout import PROJECT_ROOT
from slmflow.served.cores import thread_count
from slmflow.served.template import ChatTemplate
from slmflow.sources import LocalModel

ROWS = 500
MEMORY_ROWS = 1_000, 10_000
PROMPT_TOKENS = 20, 40  # fewest and most, chat format included
NEW_TOKENS = 64  # what an answer of this project has at most, unless something else is asked
MEMORY_NEW_TOKENS = 4
BATCH_ROWS = 16
COST_TARGET, MEMORY_TARGET = 1.15, 1.05
POLL_SECONDS = 0.05
WORKER = "worker.py"  # the script of the process that holds the model

ONLY_ANSWERS = ("speed=none", "score.likelihood_rows=0", "parity.rows=0", "ask.reuse=false")
STEP = re.compile(r"^ *✓ ([^:(\n]+).*\((?:\d+ in )?([\d.]+) s\b[^()]*\)$", re.MULTILINE)


def main() -> None:
    options = parsed()
    if options.child:
        folder, prompts = map(Path, options.child)
        asked = json.loads(prompts.read_text("utf-8"))
        print(json.dumps(generate(folder, asked, options.new_tokens)))
        return
    place = work.prepare(options.work)
    figures: list[Figure] = []
    if options.only != "memory":
        measured = cost(place, options.rows, options.rounds, options.new_tokens)
        show(f"{options.rows} prompts, {options.new_tokens} new tokens each", measured)
        figures += measured
    if options.only != "cost":
        measured = memory(place, options.memory_rows, options.rounds)
        show("memory, demo model", measured)
        figures += measured
    about = {
        "parameters": Shape().parameters,
        "new_tokens": options.new_tokens,
        "rows": options.rows,
    }
    write(options.json, "evaluating", figures, **about, memory_rows=options.memory_rows)


def parsed() -> argparse.Namespace:
    parser = work.parser("evaluating", __doc__, rounds=2)
    parser.add_argument("--rows", type=int, default=ROWS, help="of cost (default: %(default)s)")
    parser.add_argument(
        "--memory-rows",
        type=int,
        nargs=2,
        default=list(MEMORY_ROWS),
        metavar=("FEW", "MANY"),
        help="of memory (default: %(default)s)",
    )
    parser.add_argument(
        "--new-tokens", type=int, default=NEW_TOKENS, help="of an answer of cost (%(default)s)"
    )
    parser.add_argument("--only", choices=("cost", "memory"))
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "PROMPTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows < 1 or not 0 < options.memory_rows[0] < options.memory_rows[1]:
        parser.error("--rows: at least one; --memory-rows: the fewer first")
    return options


# Cost.


@dataclass(frozen=True)
class Asked:
    """A question, the prompt that the chat template makes of it, and that prompt's tokens."""

    question: str
    prompt: str
    tokens: int


def cost(place: Path, rows: int, rounds: int, new_tokens: int) -> list[Figure]:
    weights = work.int4_model(Shape())
    asked = make_prompts(weights.path, rows)
    measured = []
    with console.progress("rounds of cost", rounds) as bar:
        for number in range(rounds):
            bare_first = number % 2 == 0
            measured.append(one_round(place, weights, asked, new_tokens, bare_first))
            bar.advance()
    return compare_cost(measured, rows, new_tokens)


def make_prompts(folder: Path, rows: int) -> list[Asked]:
    """Different prompts, each of a length that is drawn."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = ChatTemplate.load(folder)
    words = [text for token in plain_tokens() if is_word(text := tokenizer.decode([token]))]
    drawn = random.Random(0)

    def of_words(count: int) -> Asked:
        question = " ".join(word.strip() for word in drawn.choices(words, k=count))
        prompt = template.render([{"role": "user", "content": question}])
        return Asked(question, prompt, len(tokenizer.encode(prompt).ids))

    made: dict[str, Asked] = {}
    while len(made) < rows:
        low, high = PROMPT_TOKENS
        one = of_words(drawn.randint(1, high))
        if low <= one.tokens <= high:
            made[one.question] = one
    return list(made.values())


@dataclass(frozen=True)
class Round:
    """Seconds, and how many of evaluate's answers are the texts of the bare loop."""

    generation: float  # by the bare loop
    bare: float  # its process, start to exit
    evaluate: float  # the command, start to exit
    steps: dict[str, float]  # what evaluate says of its parts
    same: int


def one_round(
    place: Path, weights: LocalModel, asked: Sequence[Asked], new_tokens: int, bare_first: bool
) -> Round:
    with work.run_store(place) as uri, tempfile.TemporaryDirectory(dir=place) as folder:
        model = package(weights)
        rows = Path(folder) / "rows.jsonl"
        write_rows(rows, (one.question for one in asked))
        if bare_first:
            told, bare = bare_run(weights, asked, new_tokens, Path(folder))
        steps, seconds = evaluate_run(model, rows, new_tokens)
        if not bare_first:
            told, bare = bare_run(weights, asked, new_tokens, Path(folder))
        same = check_equal(answers_in(uri), asked, told["texts"], new_tokens)
    return Round(told["seconds"], bare, seconds, steps, same)


def package(weights: LocalModel) -> str:
    """Logged as custom_onnx logs it, task=chat: then the answers say how many tokens they have."""
    import mlflow

    from slmflow.packaging.log_model import Packaging, log_onnx
    from slmflow.served.search import SearchOptions

    search = asdict(SearchOptions())  # all: MLflow lets evaluate change only what is there
    settings = {"task": "chat", "model": "bench", **search, "provider": "cpu", "threads": "auto"}
    packaging = Packaging(weights, settings, "What is the capital of Spain?", "bench")
    with mlflow.start_run():
        uri: str = log_onnx(packaging, "chat", "onnxruntime-genai").uri
    return uri


def bare_run(
    weights: LocalModel, asked: Sequence[Asked], new_tokens: int, folder: Path
) -> tuple[dict[str, Any], float]:
    """What the bare loop tells, and the seconds of its process."""
    shortest_first = sorted(asked, key=lambda one: one.tokens)  # the least padding
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps([one.prompt for one in shortest_first]), "utf-8")
    started = time.perf_counter()
    child = ["--child", str(weights.path), str(prompts), "--new-tokens", str(new_tokens)]
    told = work.measured_by(["bench.evaluating", *child])
    seconds = time.perf_counter() - started
    texts = {one.question: text for one, text in zip(shortest_first, told["texts"], strict=True)}
    return told | {"texts": texts}, seconds


def generate(folder: Path, prompts: Sequence[str], new_tokens: int) -> dict[str, Any]:
    """Within the child: every prompt's answer, and the seconds without the load of the model.

    The loop fails where an answer is shorter than it must be.
    """
    bare = Bare(folder, thread_count("auto"))
    texts: list[str] = []
    started = time.perf_counter()
    for start in range(0, len(prompts), BATCH_ROWS):
        batch = list(prompts[start : start + BATCH_ROWS])
        texts += bare.answer(batch, 1, new_tokens)["texts"]
    return {"seconds": time.perf_counter() - started, "texts": texts}


def evaluate_run(model: str, rows: Path, new_tokens: int) -> tuple[dict[str, float], float]:
    """Seconds of what evaluate says that it did, and of the whole command."""
    command = evaluate_command(rows, new_tokens, f"models=[{model}]")
    started = time.perf_counter()
    result = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    work.check(result)
    # The model's id is another in each round.
    said = re.sub(rf" {re.escape(model.removeprefix('models:/')[:10])}", "", result.stdout)
    steps = {name.strip(): float(took) for name, took in STEP.findall(said)}
    assert {"ask and score", "write the report"} <= set(steps), result.stdout
    return steps, seconds


def evaluate_command(rows: Path, new_tokens: int, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "entrypoints.evaluate", *ONLY_ANSWERS),
        *(f"data.path={rows}", "data.name=bench", "data.limit=null"),
        *("search=greedy", f"search.max_new_tokens={new_tokens}", *more),
    ]


def write_rows(path: Path, questions: Iterator[str]) -> None:
    """With a right answer and a tag each, so that there is something to score and to slice."""
    with path.open("w", encoding="utf-8") as file:
        for number, question in enumerate(questions):
            row = {
                "question": question,
                "references": ["Madrid", f"the answer {number}"],
                "tags": {"part": str(number % 4)},
            }
            file.write(json.dumps(row) + "\n")


def answers_in(uri: str) -> list[dict[str, Any]]:
    """Every row of the one evaluation that was logged to an own store."""
    store = Path(uri.removeprefix("sqlite:///")).parent
    (file,) = store.rglob("answers.parquet")
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


def check_equal(
    answers: Sequence[dict[str, Any]],
    asked: Sequence[Asked],
    texts: dict[str, str],
    new_tokens: int,
) -> int:
    """Both read and made as many tokens of every prompt; how many texts are the same.

    Not all need be: other rows in a batch are other arithmetic, so that on some processors one of
    two tokens that are as good as equal is chosen here, the other there.
    """
    assert [row["question"] for row in answers] == [one.question for one in asked]
    for row, one in zip(answers, asked, strict=True):
        told = row["error"], row["prompt_tokens"], row["completion_tokens"]
        assert told == (None, one.tokens, new_tokens), (told, one)
    return sum(row["answer"] == texts[row["question"]] for row in answers)


def compare_cost(rounds: Sequence[Round], rows: int, new_tokens: int) -> list[Figure]:
    target = COST_TARGET if rows >= ROWS else None  # of fewer, most of the time is the start
    generation = [each.generation for each in rounds]
    bare = [each.bare for each in rounds]
    ours = [each.evaluate for each in rounds]
    unsaid = [each.evaluate - sum(each.steps.values()) for each in rounds]
    return [
        Figure("bare generation alone", generation, "s"),
        Figure("  tokens made", [rows * new_tokens / each for each in generation], "tokens/s"),
        Figure("bare, start to exit", bare, "s"),
        Figure("evaluate, start to exit", ours, "s"),
        *(
            Figure(f"  {name}", [each.steps.get(name, 0.0) for each in rounds], "s")
            for name in rounds[0].steps
        ),
        Figure("  start, exit, in between", unsaid, "s"),
        Figure("over generation alone", ratios(ours, generation), at_most=target),
        Figure("over bare, start to exit", ratios(ours, bare)),
        Figure("answers equal to bare", [each.same for each in rounds], "rows"),
    ]


# Memory.


@dataclass(frozen=True)
class Peaks:
    """Bytes."""

    evaluate: int
    model: int


def memory(place: Path, counts: Sequence[int], rounds: int) -> list[Figure]:
    peaks: dict[int, list[Peaks]] = {count: [] for count in counts}
    with work.run_store(place), tempfile.TemporaryDirectory(dir=place) as folder:
        with console.step("package the demo model"):
            packaging = [sys.executable, "-m", "entrypoints.custom_onnx"]
            work.check(subprocess.run(packaging, cwd=PROJECT_ROOT, capture_output=True, text=True))
        with console.progress("rounds of memory", rounds) as bar:
            for _ in range(rounds):
                for count in counts:
                    rows = Path(folder) / f"{count}.jsonl"
                    write_rows(rows, (f"What is the capital of country {n}?" for n in range(count)))
                    peaks[count].append(peaks_of(evaluate_command(rows, MEMORY_NEW_TOKENS)))
                bar.advance()
    return compare_memory(peaks, *counts)


def peaks_of(command: Sequence[str]) -> Peaks:
    """Run the command; the most that each of its two processes ever had resident at once."""
    with tempfile.TemporaryFile("w+") as told:
        process = psutil.Popen(command, cwd=PROJECT_ROOT, stdout=told, stderr=told, text=True)
        evaluate = model = 0
        while process.poll() is None:
            evaluate = max(evaluate, peak_memory(process.pid))
            model = max([model, *(peak_memory(pid) for pid in model_processes(process))])
            time.sleep(POLL_SECONDS)
        told.seek(0)
        work.check(subprocess.CompletedProcess(command, process.returncode, told.read(), ""))
    assert evaluate and model, "one of the two processes was never seen"
    return Peaks(evaluate, model)


def model_processes(process: psutil.Popen) -> Iterator[int]:
    for child in process.children():
        try:
            if any(Path(part).name == WORKER for part in child.cmdline()):
                yield child.pid
        except psutil.Error:  # it has just ended
            continue


def peak_memory(pid: int) -> int:
    """Bytes; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return 0 if found is None else int(found[1]) * 1024


def compare_memory(peaks: dict[int, list[Peaks]], few: int, many: int) -> list[Figure]:
    figures = []
    for name, target in (("evaluate", MEMORY_TARGET), ("model", None)):
        low, high = ([getattr(each, name) for each in peaks[count]] for count in (few, many))
        a_row = [(b - a) / (many - few) for a, b in zip(low, high, strict=True)]
        figures += [
            Figure(f"{name}'s process, {few:,} rows", [each / 1e6 for each in low], "MB"),
            Figure(f"{name}'s process, {many:,} rows", [each / 1e6 for each in high], "MB"),
            Figure("  over the fewer", ratios(high, low), at_most=target),
            Figure("  more for each row", a_row, "bytes"),
        ]
    return figures


if __name__ == "__main__":
    main()
