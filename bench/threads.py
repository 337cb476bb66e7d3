"""Threads: the same int4 model under slmflow's thread count and under the runtime's own.

Each setting loads the model in a process of its own; the processes of a round run one after the
other. Prefill: prompt tokens over the time to the first token. Decode: the tokens after the
first, over the time from it to the last.
"""

import argparse
import json
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

from tokenizers import Tokenizer

from bench import work
from bench.checkpoint import Shape, plain_tokens
from bench.figures import Figure, ratios, show, write
from slmflow import console
from slmflow.served.onnx_runtime import OnnxRuntime, import_genai
from slmflow.served.search import SearchOptions

SETTINGS = ("slmflow", "runtime's own")
REPEATS = 3  # in one process, after one run that does not count
DECODE_TARGET = 1.5
PREFILL_TARGET = 1.7


def main() -> None:
    parser = work.parser("threads", __doc__, rounds=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--child", nargs=2, metavar=("SETTING", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    work.prepare(options.work)
    if options.child:
        setting, folder = options.child
        measured = measure(setting, Path(folder), options.prompt_tokens, options.new_tokens)
        print(json.dumps(measured))
        return
    shape = Shape()
    folder = work.int4_model(shape).path
    lengths = ["--prompt-tokens", str(options.prompt_tokens)]
    lengths += ["--new-tokens", str(options.new_tokens)]
    rates: dict[str, list[dict[str, float]]] = {setting: [] for setting in SETTINGS}
    with console.progress("rounds", options.rounds) as bar:
        for number in range(options.rounds):
            for setting in SETTINGS if number % 2 else reversed(SETTINGS):
                child = ["bench.threads", *lengths, "--child", setting, str(folder)]
                rates[setting].append(work.measured_by(child))
            bar.advance()
    figures = compare(rates)
    show(f"{options.prompt_tokens} prompt tokens, {options.new_tokens} new tokens", figures)
    about = {"parameters": shape.parameters, "prompt_tokens": options.prompt_tokens}
    write(options.json, "threads", figures, **about, new_tokens=options.new_tokens)


def compare(rates: dict[str, list[dict[str, float]]]) -> list[Figure]:
    figures = []
    for phase, target in (("prefill", PREFILL_TARGET), ("decode", DECODE_TARGET)):
        ours, own = ([rate[phase] for rate in rates[setting]] for setting in SETTINGS)
        figures.append(Figure(f"{phase}, {SETTINGS[0]}", ours, "tokens/s"))
        figures.append(Figure(f"{phase}, {SETTINGS[1]}", own, "tokens/s"))
        figures.append(Figure(f"{phase}, ratio", ratios(ours, own), at_least=target))
    return figures


def measure(setting: str, folder: Path, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
    runtime = load(setting, folder)
    prompt = random.Random(0).choices(plain_tokens(), k=prompt_tokens)
    measured = [_rates(runtime, prompt, new_tokens) for _ in range(1 + REPEATS)][1:]
    return {phase: median(rates[phase] for rates in measured) for phase in measured[0]}


def load(setting: str, folder: Path) -> OnnxRuntime:
    if setting == SETTINGS[0]:
        return OnnxRuntime.load(folder)
    genai = import_genai()
    model: Any = genai.Model(str(folder))
    config = json.loads((folder / "genai_config.json").read_text("utf-8"))
    detokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return OnnxRuntime(genai, model, genai.Tokenizer(model), detokenizer, folder, config)


def _rates(runtime: OnnxRuntime, prompt: list[int], new_tokens: int) -> dict[str, float]:
    started = time.perf_counter()
    steps = runtime.steps([prompt], SearchOptions(), new_tokens)
    next(steps)
    first = time.perf_counter()
    count = sum(1 for _ in steps)
    ended = time.perf_counter()
    assert count == new_tokens - 1, "the model of random weights never ends an answer by itself"
    return {"prefill": len(prompt) / (first - started), "decode": count / (ended - first)}


if __name__ == "__main__":
    main()
