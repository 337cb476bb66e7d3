"""Predict: a packaged model's pyfunc predict against a bare onnxruntime_genai loop.

The same int4 model, prompts, greedy search and number of new tokens; that both make the same text
of a prompt is checked first. Bare: encode, generate, decode the whole. The bare loop runs on the
very model object that the packaged model loaded: two loaded copies of a model differ by some
percent, by where they happen to lie in memory. A round takes the prompts one by one, each both
ways in turn, then all at once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import mlflow
import pandas as pd

from bench import work
from bench.checkpoint import Shape
from bench.figures import Figure, ratios, show, write
from slmflow import console
from slmflow.checkout import PROJECT_ROOT
from slmflow.evaluation.data.dataset import open_dataset
from slmflow.packaging.log_model import Packaging, log_onnx
from slmflow.served.onnx_runtime import import_genai
from slmflow.served.search import SearchOptions
from slmflow.sources import LocalModel

QUESTIONS = PROJECT_ROOT / "demo" / "heldout.jsonl"
PROMPTS = 16
ONE_TARGET = 1.05
MANY_TARGET = 1.8


def main() -> None:
    parser = work.parser("predict", __doc__, rounds=7)
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args()
    store = work.prepare(options.work)
    shape = Shape()
    weights = work.int4_model(shape)
    prompts = read_prompts()
    with work.run_store(store):
        with console.step("package it, load it"):
            packaged = load_packaged(weights, options.new_tokens)
        bare = BareLoop(packaged, options.new_tokens)
        with console.step("check that both make the same") as told:
            same = check_equal(packaged, bare, prompts, options.new_tokens)
            told.append(f"{options.new_tokens} tokens a prompt everywhere, equal texts one by one")
            told.append(f"{same} of {len(prompts)} equal at once")
        rounds = measure(packaged, bare, prompts, options.rounds)
    figures = compare(rounds, len(prompts) * options.new_tokens)
    show(f"{options.new_tokens} new tokens a prompt", figures)
    about = {"parameters": shape.parameters, "prompts": len(prompts)}
    write(options.json, "predict", figures, **about, new_tokens=options.new_tokens)


def read_prompts() -> list[str]:
    """Questions of different lengths, spread over the file."""
    examples = list(open_dataset("demo_heldout", QUESTIONS, None, None))
    return [example.question for example in examples[:: len(examples) // PROMPTS]][:PROMPTS]


def load_packaged(weights: LocalModel, new_tokens: int) -> Any:
    """Logged as custom_onnx logs it, task=prompt; loaded as anyone loads it."""
    settings = {
        "task": "prompt",
        "model": "bench",
        **asdict(SearchOptions(max_new_tokens=new_tokens)),
        "provider": "cpu",
        "threads": "auto",
    }
    packaging = Packaging(weights, settings, "What is the capital of Spain?", "bench")
    with mlflow.start_run():
        info = log_onnx(packaging, "prompt", "onnxruntime-genai")
    return mlflow.pyfunc.load_model(info.model_uri)


class BareLoop:
    """What one would write against the runtime's own interface."""

    def __init__(self, packaged: Any, new_tokens: int) -> None:
        self._genai = import_genai()
        self._model = packaged.unwrap_python_model().packaged.runtime._model
        self._tokenizer = self._genai.Tokenizer(self._model)
        self._new_tokens = new_tokens

    def answer(self, text: str) -> tuple[str, int]:
        """The answer and the number of its tokens."""
        ids = self._tokenizer.encode(text)
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=len(ids) + self._new_tokens, do_sample=False)
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        made = generator.get_sequence(0)[len(ids) :]
        return self._tokenizer.decode(made), len(made)


def check_equal(packaged: Any, bare: BareLoop, prompts: Sequence[str], new_tokens: int) -> int:
    """How many texts of the batch are those of the prompts alone; also the warm-up.

    A batch takes other arithmetic, so on some processors it may choose otherwise between two
    tokens that are as good as equal. A prompt alone may not.
    """
    with counted(packaged) as steps:
        together = packaged.predict(frame(prompts))
    assert sum(steps) == len(prompts) * new_tokens, (sum(steps), len(prompts), new_tokens)
    alone = []
    for prompt in prompts:
        text, count = bare.answer(prompt)
        with counted(packaged) as steps:
            alone += packaged.predict(frame([prompt]))
        assert sum(steps) == count == new_tokens, (prompt, sum(steps), count, new_tokens)
        assert alone[-1] == text, (prompt, alone[-1], text)
    return sum(one == other for one, other in zip(together, alone, strict=True))


@contextmanager
def counted(packaged: Any) -> Iterator[list[int]]:
    """The tokens of each step that the packaged model's runtime takes in the block."""
    runtime = packaged.unwrap_python_model().packaged.runtime
    steps = runtime.steps
    made: list[int] = []

    def counting(*arguments: Any) -> Iterator[Sequence[int]]:
        for tokens in steps(*arguments):
            made.append(len(tokens))
            yield tokens

    runtime.steps = counting
    try:
        yield made
    finally:
        del runtime.steps  # the class's own shows again


@dataclass(frozen=True)
class Round:
    """Seconds: of each prompt by the bare loop and by predict, of all at once by predict."""

    bare: list[float]
    one: list[float]
    together: float


def measure(packaged: Any, bare: BareLoop, prompts: Sequence[str], rounds: int) -> list[Round]:
    measured = []
    with console.progress("rounds", rounds) as bar:
        for number in range(rounds):
            pairs = [
                both_ways(packaged, bare, prompt, bare_first=(number + index) % 2 == 0)
                for index, prompt in enumerate(prompts)
            ]
            together = timed(lambda: packaged.predict(frame(prompts)))
            measured.append(
                Round([pair[0] for pair in pairs], [pair[1] for pair in pairs], together)
            )
            bar.advance()
    return measured


def both_ways(packaged: Any, bare: BareLoop, prompt: str, bare_first: bool) -> tuple[float, float]:
    if bare_first:
        seconds = timed(lambda: bare.answer(prompt))
        return seconds, timed(lambda: packaged.predict(frame([prompt])))
    seconds = timed(lambda: packaged.predict(frame([prompt])))
    return timed(lambda: bare.answer(prompt)), seconds


def compare(rounds: Sequence[Round], tokens: int) -> list[Figure]:
    overhead = [median(ratios(each.one, each.bare)) for each in rounds]
    bare = [tokens / sum(each.bare) for each in rounds]
    one = [tokens / sum(each.one) for each in rounds]
    together = [tokens / each.together for each in rounds]
    return [
        Figure("bare loop, one prompt", bare, "tokens/s"),
        Figure("predict, one prompt", one, "tokens/s"),
        Figure(f"predict, {PROMPTS} prompts at once", together, "tokens/s"),
        Figure("time of predict over bare", overhead, at_most=ONE_TARGET),
        Figure(f"tokens/s of {PROMPTS} over one", ratios(together, one), at_least=MANY_TARGET),
    ]


def frame(prompts: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame({"prompt": list(prompts)})


def timed(work_to_do: Callable[[], object]) -> float:
    started = time.perf_counter()
    work_to_do()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
