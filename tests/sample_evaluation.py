"""Evaluations made by hand, for what shows them: a full one, and one with next to nothing."""

import random
from collections.abc import Sequence

from slmflow.evaluation.results import (
    CandidateResult,
    Cause,
    Comparison,
    ConditionOutcome,
    DatasetFacts,
    Decision,
    Difference,
    Evaluation,
    FailedMetric,
    Figure,
    GateOutcome,
    Kind,
    Parity,
    Row,
    Speed,
    SpeedPoint,
    Verdict,
)

REFERENCE = "transformers_pipeline v1"
QUANTISED = "custom_onnx v2"
ENDPOINT = "http://localhost:8080 phi3"
METRICS = ("exact_match", "contains_answer", "token_f1")
SETTINGS = ((128, 64, 1), (1024, 64, 1), (128, 64, 8))

SCRIPT = "<script>document.title = 'taken over'</script><img src=x onerror=alert(1)>"
QUOTES = "\"'`</td></style><!-- & &amp; {{ 7 * 7 }} {% raw %} $x^2$ \x00\x1b[31m \ud800"
MARKDOWN = "| a | b |\n|---|---|\n# no heading\n**no** [no](http://no.example) ``` ~~~ @nobody #12"
HEBREW = (
    "\u05d4\u05d1\u05d9\u05e8\u05d4 \u05d4\u05d9\u05d0 (Madrid) \u05de\u05d3\u05e8\u05d9\u05d3."
)
ARABIC = "\u0645\u062f\u0631\u064a\u062f \u202ehidden\u202c"
CHINESE = "\u897f\u73ed\u7259\u7684\u9996\u90fd\u662f\u9a6c\u5fb7\u91cc\u3002" * 12
UNBROKEN = "x" * 900
HOSTILE = (SCRIPT, QUOTES, MARKDOWN, HEBREW, ARABIC, CHINESE, UNBROKEN)


def sample() -> Evaluation:
    """Three candidates on 400 rows, whatever can go well or badly."""
    return Evaluation(
        name="phi3-demo on held-out capitals",
        run_id="3f1c9a52d7e84b0f9c6de2a1b7f05544",
        started="2025-11-21T14:03:27+00:00",
        seconds=1284.6,
        dataset=DatasetFacts(
            "demo_heldout", "demo/data/heldout.jsonl", "9f" * 32, rows=400, of=1319, seed=7
        ),
        primary="exact_match",
        metrics=METRICS,
        confidence=0.95,
        candidates=(_reference(), _quantised(), _endpoint()),
        comparisons=(_quantised_comparison(), _endpoint_comparison()),
        disagreements=_disagreements(),
        environment={
            "cpu": "AMD EPYC 9B14, 2 of 4 cores",
            "memory": "16.8 GB",
            "gpu": "none",
            "python": "3.11.14",
            "os": "Linux 6.8",
            "mlflow": "3.17.0",
            "onnxruntime-genai": "0.18.1",
            "transformers": "5.17.2",
        },
        settings={
            "data": {"path": "demo/data/heldout.jsonl", "limit": 400, "seed": 7},
            "metrics": list(METRICS),
            "speed": {"rounds": 3, "settings": SETTINGS},
            "gate": {"alias": "champion-cpu", "note": SCRIPT},
        },
        decision=_refused(),
    )


def tiny() -> Evaluation:
    """One candidate, three rows without references: no speed, no gate, no tags, no scores."""
    candidate = CandidateResult(
        label="custom_onnx v1",
        uri="models:/phi3-demo/1",
        kind=Kind.packaged,
        name="phi3-demo",
        version="1",
        runtime="custom_onnx",
        weights="int4",
        digest="ab" * 32,
        figures={"errors": exact(0)},
    )
    return Evaluation(
        name="phi3-demo",
        run_id="0" * 32,
        started="2025-01-02T03:04:05+00:00",
        seconds=4.2,
        dataset=DatasetFacts("questions", "questions.txt", "cd" * 32, rows=3, of=3, seed=None),
        primary="exact_match",
        metrics=(),
        confidence=0.95,
        candidates=(candidate,),
        comparisons=(),
        disagreements=(),
        environment={},
        settings={},
    )


def exact(value: float) -> Figure:
    return Figure(value, value, value)


def mean(value: float, half: float, rows: int = 400) -> Figure:
    return Figure(value, value - half, min(1, value + half), rows)


def _reference() -> CandidateResult:
    return CandidateResult(
        label=REFERENCE,
        uri="models:/phi3-demo/1",
        kind=Kind.packaged,
        name="phi3-demo",
        version="1",
        runtime="transformers_pipeline",
        weights="float32",
        digest="1a" * 32,
        figures={
            "exact_match": mean(0.8925, 0.031),
            "contains_answer": mean(0.9325, 0.025),
            "token_f1": mean(0.9113, 0.024),
            "perplexity": Figure(1.84, 1.71, 1.98, 400),
            "reference_log_likelihood": Figure(-0.61, -0.68, -0.54, 400),
            "decode_tokens_per_second": Figure(21.4, 20.6, 22.1),
            "prefill_tokens_per_second": Figure(412, 398, 431),
            "first_token_seconds": Figure(0.318, 0.301, 0.342),
            "inter_token_seconds": Figure(0.0467, 0.0452, 0.0485),
            "load_seconds": Figure(6.4, 6.1, 7.9),
            "peak_memory_bytes": exact(4_812_000_000),
            "size_bytes": exact(3_421_000_000),
            "errors": exact(0),
        },
        speed=_speed(0.318, 21.4, (6.1, 6.4, 7.9), 4_812_000_000, seed=1),
        slices=_slices(0.89),
    )


def _quantised() -> CandidateResult:
    return CandidateResult(
        label=QUANTISED,
        uri="models:/phi3-demo/2",
        kind=Kind.packaged,
        name="phi3-demo",
        version="2",
        runtime="custom_onnx",
        weights="int4",
        digest="2b" * 32,
        figures={
            "exact_match": mean(0.8425, 0.036),
            "contains_answer": mean(0.9275, 0.026),
            "token_f1": mean(0.8846, 0.027),
            "perplexity": Figure(2.01, 1.85, 2.19, 400),
            "reference_log_likelihood": Figure(-0.70, -0.78, -0.62, 400),
            "decode_tokens_per_second": Figure(115.3, 109.8, 119.2),
            "prefill_tokens_per_second": Figure(1530, 1490, 1562),
            "first_token_seconds": Figure(0.0841, 0.0822, 0.0897),
            "inter_token_seconds": Figure(0.00867, 0.00839, 0.00911),
            "load_seconds": Figure(1.12, 1.08, 1.31),
            "peak_memory_bytes": exact(2_069_000_000),
            "size_bytes": exact(872_000_000),
            "errors": exact(0),
        },
        speed=_speed(0.0841, 115.3, (1.08, 1.12, 1.31), 2_069_000_000, seed=2),
        failed_metrics={"token_f1": FailedMetric(2, "ValueError: an answer of 9,000 tokens")},
        slices=_slices(0.84),
    )


def _endpoint() -> CandidateResult:
    """Only its answers can be seen."""
    chance = random.Random(3)
    first = tuple(chance.lognormvariate(-1.6, 0.3) for _ in range(40))
    point = SpeedPoint(128, 64, 1, first, (), (), (38.2, 41.0, 44.7))
    return CandidateResult(
        label=ENDPOINT,
        uri="http://localhost:8080/v1",
        kind=Kind.endpoint,
        name=None,
        version=None,
        runtime=None,
        weights=None,
        digest="3c" * 32,
        figures={
            "exact_match": mean(0.8781, 0.033, 397),
            "contains_answer": mean(0.9219, 0.027, 397),
            "token_f1": mean(0.9002, 0.026, 397),
            "decode_tokens_per_second": Figure(41.0, 38.2, 44.7),
            "first_token_seconds": Figure(0.205, 0.191, 0.233),
            "errors": exact(3),
        },
        speed=Speed((point,), (), None, None),
        failed_metrics={"contains_answer": FailedMetric(3, SCRIPT)},
        slices=_slices(0.87),
    )


def _quantised_comparison() -> Comparison:
    return Comparison(
        label=QUANTISED,
        reference=REFERENCE,
        differences={
            "exact_match": Difference(
                Figure(-0.05, -0.08, -0.023, 400), Verdict.worse, 0.00021, None
            ),
            "contains_answer": Difference(
                Figure(-0.005, -0.019, 0.009, 400), Verdict.no_difference_shown, 0.63, None
            ),
            "token_f1": Difference(Figure(-0.0267, -0.045, -0.009, 398), Verdict.worse, None, None),
        },
        ratios={
            "decode_tokens_per_second": Figure(5.39, 5.1, 5.6),
            "prefill_tokens_per_second": Figure(3.71, 3.5, 3.9),
            "first_token_seconds": Figure(0.264, 0.25, 0.29),
            "load_seconds": Figure(0.175, 0.16, 0.2),
            "peak_memory_bytes": exact(0.43),
            "size_bytes": exact(0.255),
        },
        agreement=0.8125,
        parity=Parity(
            rows=400,
            cause=Cause.template,
            words="The rendered prompts differ in 400 of 400 rows: the first has a <|system|> turn "
            "that the second leaves out.",
            same_prompts=0,
            same_prompt_tokens=0,
            same_answers=325,
            first_divergence=3,
            top1_agreement=0.9716,
            kl_mean=0.0213,
            kl_max=1.87,
            example=(
                "<|system|>\nAnswer briefly.<|end|>\n<|user|>\nWhat is the capital of Spain?"
                "<|end|>\n<|assistant|>\n",
                "<|user|>\nWhat  is the capital of Spain?<|end|>\n<|assistant|>",
            ),
        ),
    )


def _endpoint_comparison() -> Comparison:
    return Comparison(
        label=ENDPOINT,
        reference=REFERENCE,
        differences={
            "exact_match": Difference(
                Figure(-0.0144, -0.034, 0.012, 397), Verdict.too_few_rows, 0.21, 1900
            ),
            "contains_answer": Difference(
                Figure(-0.0106, -0.029, 0.008, 397), Verdict.no_difference_shown, 0.34, None
            ),
            "token_f1": Difference(
                Figure(-0.0111, -0.031, 0.009, 397), Verdict.too_few_rows, None, 1100
            ),
        },
        ratios={"decode_tokens_per_second": Figure(1.92, 1.78, 2.07)},
        agreement=0.902,
        parity=Parity(
            rows=397,
            cause=Cause.unseen,
            words="The endpoint shows only its answers: why 39 of them differ cannot be told.",
            same_prompts=None,
            same_prompt_tokens=None,
            same_answers=358,
            first_divergence=11,
            example=("Madrid.", SCRIPT),
        ),
    )


def _refused() -> Decision:
    low = "exact_match may fall by 0.02 and falls by up to 0.08 (0.84 against 0.89)"
    fast = "decode_tokens_per_second must be at least 1.5 times as high and is 5.1 times"
    unseen = "peak_memory_bytes cannot be seen of an endpoint"
    return Decision(
        gate="production",
        alias="champion-cpu",
        incumbent="models:/phi3-demo/1",
        candidates=(
            GateOutcome(
                QUANTISED,
                "models:/phi3-demo/2",
                passed=False,
                outcomes=(
                    ConditionOutcome(
                        "exact_match", "change_at_least -0.02", False, -0.08, -0.05, low
                    ),
                    ConditionOutcome(
                        "decode_tokens_per_second", "ratio_at_least 1.5", True, 5.1, 5.39, fast
                    ),
                ),
            ),
            GateOutcome(
                ENDPOINT,
                "http://localhost:8080/v1",
                passed=False,
                outcomes=(
                    ConditionOutcome(
                        "peak_memory_bytes", "ratio_at_most 0.8", False, None, None, unseen
                    ),
                ),
            ),
        ),
        chosen=None,
    )


def _speed(first: float, rate: float, loads: Sequence[float], memory: int, seed: int) -> Speed:
    chance = random.Random(seed)
    points = []
    for prompt, new, batch in SETTINGS:
        slower = prompt / 128 * batch**0.5
        rates = tuple(rate * batch**0.8 * part for part in (0.96, 1.0, 1.03))
        points.append(
            SpeedPoint(
                prompt,
                new,
                batch,
                tuple(first * slower * chance.lognormvariate(0, 0.15) for _ in range(60)),
                tuple(batch / rates[1] * chance.lognormvariate(0, 0.2) for _ in range(1200)),
                tuple(prompt * batch / (first * slower) * part for part in (0.97, 1.0, 1.02)),
                rates,
            )
        )
    return Speed(tuple(points), tuple(loads), memory, None)


def _slices(base: float) -> dict[str, dict[str, dict[str, Figure]]]:
    tags = {
        "topic": ("geography", "history", "arithmetic", "science"),
        "language": ("en", "de", "\u05e2\u05d1\u05e8\u05d9\u05ea", "\u4e2d\u6587"),
        "length": ("short", "medium", "long"),
        "source": ("wiki", SCRIPT),
        "difficulty": ("1", "2", "3", "4", "5"),
    }
    return {
        tag: {
            value: {"exact_match": mean(base - 0.03 * at, 0.06 + 0.02 * at, 400 // (at + 2))}
            for at, value in enumerate(values)
        }
        for tag, values in tags.items()
    }


def _disagreements() -> tuple[Row, ...]:
    plain = Row(
        id="capitals-017",
        question="What is the capital of Spain?",
        references=("Madrid", "The capital of Spain is Madrid."),
        tags={"topic": "geography", "language": "en"},
        answers={REFERENCE: "Madrid.", QUANTISED: "Barcelona, of course.", ENDPOINT: "Madrid"},
        scores={
            REFERENCE: {"exact_match": 1, "contains_answer": 1, "token_f1": 1},
            QUANTISED: {"exact_match": 0, "contains_answer": 0, "token_f1": 0},
            ENDPOINT: {"exact_match": 1, "contains_answer": 1, "token_f1": 1},
        },
    )
    hostile = tuple(
        Row(
            id=f"hostile-{at}",
            question=f"Repeat after me: {text}",
            references=(text,),
            tags={"source": text[:40]},
            answers={REFERENCE: text, QUANTISED: ""},  # the endpoint failed
            scores={REFERENCE: {"exact_match": 1}, QUANTISED: {"exact_match": 0}},
        )
        for at, text in enumerate(HOSTILE)
    )
    long = Row(
        id="long-3",
        question="Tell the story of the lighthouse keeper. " * 12,
        references=(),
        tags={},
        answers={REFERENCE: "Once upon a time. " * 150, QUANTISED: "The end.\n" * 200},
        scores={},
    )
    return (plain, *hostile, long)
