"""Settings of an evaluation: how models are asked, scored, timed and compared."""

from dataclasses import dataclass, field

CORRECT = "correct"


@dataclass
class Ask:
    window_rows: int = 128  # handed to a model at once, which it sorts by length into batches
    concurrency: int = 4  # requests at once to an endpoint
    reuse: bool = True  # answers that the same model gave to the same question before

    def __post_init__(self) -> None:
        _at_least("ask.window_rows", self.window_rows, 1)
        _at_least("ask.concurrency", self.concurrency, 1)


@dataclass
class Score:
    own_metrics: list[str] = field(default_factory=list)  # module:function, beside the built-in
    primary: str = CORRECT  # what summary, slices and disagreements go by
    likelihood_rows: int = 50  # rows whose reference's log-likelihood is taken; 0: none
    confidence: float = 0.95  # of the intervals
    resamples: int = 2000  # of the bootstrap
    seed: int = 0  # of the bootstrap
    matters: float = 0.05  # the smallest difference of a score that one wants to see

    def __post_init__(self) -> None:
        _at_least("score.likelihood_rows", self.likelihood_rows, 0)
        _at_least("score.resamples", self.resamples, 100)
        _at_least("score.seed", self.seed, 0)
        for name in ("confidence", "matters"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"score.{name} is {value}; allowed: above 0, below 1")


@dataclass
class SpeedSettings:
    """Every combination of the three lists is measured; the first one leads the summary."""

    rounds: int = 3  # each in a fresh process, the candidates by turns; 0: no speed
    repeats: int = 3  # of each setting in a round
    prompt_tokens: list[int] = field(default_factory=lambda: [64, 256])
    new_tokens: list[int] = field(default_factory=lambda: [32])
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8])
    prompts: str = "demo/long_prompts.jsonl"  # texts that prompts are cut from

    def __post_init__(self) -> None:
        _at_least("speed.rounds", self.rounds, 0)
        _at_least("speed.repeats", self.repeats, 1)
        for name in ("prompt_tokens", "new_tokens", "batch_sizes"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"speed.{name} is empty; give at least one number")
            for value in values:
                _at_least(f"speed.{name}", value, 1)


@dataclass
class ParitySettings:
    rows: int = 20  # compared token by token with the reference; 0: no parity
    new_tokens: int = 32  # of each answer

    def __post_init__(self) -> None:
        _at_least("parity.rows", self.rows, 0)
        _at_least("parity.new_tokens", self.new_tokens, 1)


@dataclass
class LmEval:
    tasks: list[str] = field(default_factory=list)  # of lm-evaluation-harness; none: it is not run
    limit: int | None = None  # rows of each task; null: all
    include: str | None = None  # folder with tasks of one's own; relative: from the repository
    chat_template: bool = False  # put every task in the model's chat format


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; allowed: {least} or more")
