"""Batch prediction: tokens/s of the entry point predict over a bare loop, and what it holds.

Speed: different prompts of 20 to 400 tokens, chat format included, answers of --new-tokens each,
greedy, the same int4 model and number of threads. Bare: a process with an onnxruntime_genai loop
that generates batches of 16, all prompts sorted by length; its generation alone, and all of it
with start and load. Predict: what it says of its own speed, load of the model included, and the
whole command as it is typed, from start to exit. That both read and made as many tokens is
checked. They begin in turn.

Memory: the demo ONNX model, 2 tokens an answer, few rows and many, all different. Peaks are VmHWM
of /proc/PID/status, read while the command runs, so this needs Linux: of predict's own process,
and of the one that holds the model.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tokenizers import Tokenizer

from bench import work
from bench.checkpoint import Shape, plain_tokens
from bench.evaluating import Asked, Peaks, bare_run, package, peaks_of
from bench.figures import Figure, ratios, show, write
from bench.serving import is_word
from slmflow import console
from slmflow.checkout import PROJECT_ROOT
from slmflow.served.template import ChatTemplate
from slmflow.sources import LocalModel

ROWS = 1_000
MEMORY_ROWS = 1_000, 100_000
PROMPT_TOKENS = 20, 400  # fewest and most, chat format included
NEW_TOKENS = 32
MEMORY_NEW_TOKENS = 2
SPEED_TARGET, MEMORY_TARGET = 0.95, 1.10


def main() -> None:
    options = parsed()
    place = work.prepare(options.work)
    figures: list[Figure] = []
    if options.only != "memory":
        measured = speed(place, options.rows, options.rounds, options.new_tokens)
        show(f"{options.rows} prompts, {options.new_tokens} new tokens each", measured)
        figures += measured
    if options.only != "speed":
        measured = memory(place, options.memory_rows)
        show("memory, demo model", measured)
        figures += measured
    about = {"parameters": Shape().parameters, "new_tokens": options.new_tokens}
    rows = {"rows": options.rows, "memory_rows": options.memory_rows}
    write(options.json, "batch_prediction", figures, **about, **rows)


def parsed() -> argparse.Namespace:
    parser = work.parser("batch_prediction", __doc__, rounds=2)
    parser.add_argument("--rows", type=int, default=ROWS, help="of speed (default: %(default)s)")
    parser.add_argument(
        "--memory-rows",
        type=int,
        nargs=2,
        default=list(MEMORY_ROWS),
        metavar=("FEW", "MANY"),
        help="of memory (default: %(default)s)",
    )
    parser.add_argument(
        "--new-tokens", type=int, default=NEW_TOKENS, help="of an answer (default: %(default)s)"
    )
    parser.add_argument("--only", choices=("speed", "memory"))
    options = parser.parse_args()
    if options.rows < 1 or not 0 < options.memory_rows[0] < options.memory_rows[1]:
        parser.error("--rows: at least one; --memory-rows: the fewer first")
    return options


# Speed.


@dataclass(frozen=True)
class Round:
    """Seconds, and how many of predict's answers are the texts of the bare loop."""

    generation: float  # by the bare loop
    bare: float  # its process, start to exit
    answering: float  # by predict, load of the model included
    predict: float  # the command, start to exit
    same: int


def speed(place: Path, rows: int, rounds: int, new_tokens: int) -> list[Figure]:
    weights = work.int4_model(Shape())
    asked = mixed_prompts(weights.path, rows)
    measured = []
    with console.progress("rounds of speed", rounds) as bar:
        for number in range(rounds):
            measured.append(one_round(place, weights, asked, new_tokens, number % 2 == 0))
            bar.advance()
    return compare_speed(measured, rows * new_tokens)


def mixed_prompts(folder: Path, rows: int) -> list[Asked]:
    """Different prompts in no order, as many short ones as there are long ones half as often."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = ChatTemplate.load(folder)
    words = [text for token in plain_tokens() if is_word(text := tokenizer.decode([token]))]
    drawn = random.Random(0)
    low, high = PROMPT_TOKENS
    made: dict[str, Asked] = {}
    while len(made) < rows:
        count = round(math.exp(drawn.uniform(math.log(low), math.log(high))) / 2)
        question = " ".join(word.strip() for word in drawn.choices(words, k=count))
        prompt = template.render([{"role": "user", "content": question}])
        tokens = len(tokenizer.encode(prompt).ids)
        if low <= tokens <= high:
            made[question] = Asked(question, prompt, tokens)
    return list(made.values())


def one_round(
    place: Path, weights: LocalModel, asked: Sequence[Asked], new_tokens: int, bare_first: bool
) -> Round:
    with work.run_store(place) as uri, tempfile.TemporaryDirectory(dir=place) as folder:
        model = package(weights)
        rows, output = Path(folder) / "rows.jsonl", Path(folder) / "answers"
        write_rows(rows, (one.question for one in asked))
        if bare_first:
            told, bare = bare_run(weights, asked, new_tokens, Path(folder))
        seconds = predict_run(predict_command(rows, output, new_tokens, model))
        if not bare_first:
            told, bare = bare_run(weights, asked, new_tokens, Path(folder))
        same = check_equal(output, asked, told["texts"], new_tokens)
        answering = answering_seconds(uri)
    return Round(told["seconds"], bare, answering, seconds, same)


def predict_command(rows: Path, output: Path, new_tokens: int, *model_uri: str) -> list[str]:
    """Without a URI: the newest version of the demo model."""
    return [
        *(sys.executable, "-m", "entrypoints.predict", f"input={rows}", f"output={output}"),
        *("search=greedy", f"search.max_new_tokens={new_tokens}"),
        *(f"model_uri={uri}" for uri in model_uri),
    ]


def predict_run(command: Sequence[str]) -> float:
    started = time.perf_counter()
    result = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    work.check(result)
    return seconds


def write_rows(path: Path, questions: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, question in enumerate(questions):
            file.write(json.dumps({"id": number, "prompt": question}) + "\n")


def check_equal(
    output: Path, asked: Sequence[Asked], texts: dict[str, str], new_tokens: int
) -> int:
    """Both read and made as many tokens of every prompt; how many texts are the same.

    Not all need be: other rows in a batch are other arithmetic, so that on some processors one of
    two tokens that are as good as equal is chosen here, the other there.
    """
    rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    assert [row["prompt"] for row in rows] == [one.question for one in asked]
    for row, one in zip(rows, asked, strict=True):
        told = row["error"], row["prompt_tokens"], row["completion_tokens"]
        assert told == (None, one.tokens, new_tokens), (told, one)
    return sum(row["answer"] == texts[row["prompt"]] for row in rows)


def answering_seconds(uri: str) -> float:
    """What the one run of predict in that store says of itself."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(work.EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "metrics.rows > 0")
    return float(run.data.metrics["seconds"])


def compare_speed(rounds: Sequence[Round], tokens: int) -> list[Figure]:
    generation = [tokens / each.generation for each in rounds]
    bare = [tokens / each.bare for each in rounds]
    answering = [tokens / each.answering for each in rounds]
    predict = [tokens / each.predict for each in rounds]
    return [
        Figure("bare generation alone", generation, "tokens/s"),
        Figure("bare, start to exit", bare, "tokens/s"),
        Figure("predict, load included", answering, "tokens/s"),
        Figure("predict, start to exit", predict, "tokens/s"),
        Figure("answering over generation", ratios(answering, generation)),
        Figure("command over process", ratios(predict, bare), at_least=SPEED_TARGET),
        Figure("command over generation", ratios(predict, generation)),
        Figure("answers equal to bare", [each.same for each in rounds], "rows"),
    ]


# Memory.


def memory(place: Path, counts: Sequence[int]) -> list[Figure]:
    peaks: list[Peaks] = []
    with work.run_store(place), tempfile.TemporaryDirectory(dir=place) as folder:
        with console.step("package the demo model"):
            packaging = [sys.executable, "-m", "entrypoints.custom_onnx"]
            work.check(subprocess.run(packaging, cwd=PROJECT_ROOT, capture_output=True, text=True))
        for count in counts:
            rows, output = Path(folder) / f"{count}.jsonl", Path(folder) / f"answers-{count}"
            write_rows(rows, (f"What is the capital of country {n}?" for n in range(count)))
            with console.step(f"{count:,} rows"):
                peaks.append(peaks_of(predict_command(rows, output, MEMORY_NEW_TOKENS)))
            assert pq.read_table(output, columns=["row"]).num_rows == count
    return compare_memory(peaks, *counts)


def compare_memory(peaks: Sequence[Peaks], few: int, many: int) -> list[Figure]:
    figures = []
    low, high = peaks
    for name, of_few, of_many in (
        ("predict", low.evaluate, high.evaluate),
        ("the model", low.model, high.model),
    ):
        figures += [
            Figure(f"{name}, {few:,} rows", [of_few / 1e6], "MB"),
            Figure(f"{name}, {many:,} rows", [of_many / 1e6], "MB"),
            Figure("  over the fewer", [of_many / of_few], at_most=MEMORY_TARGET),
        ]
    return figures


if __name__ == "__main__":
    main()
