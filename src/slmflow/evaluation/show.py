"""The comparison as a person sees it."""

from collections.abc import Callable, Mapping, Sequence

from slmflow import console
from slmflow.evaluation.compare import Result
from slmflow.evaluation.dataset import Dataset

SHOWN_DIFFERENCES = 3


def show_comparison(
    results: Sequence[Result], agreement: Mapping[tuple[str, str], float], dataset: Dataset
) -> None:
    console.table(
        ["model", "size", "exact", "F1", "tokens/s", "1st token", "memory"],
        [_row(result) for result in results],
        title=f"{dataset.name}, {len(dataset.examples)} questions",
    )
    for (one, other), share in agreement.items():
        console.note(f"{one} and {other} give the same answer to {share:.0%} of the questions")
    _show_differences(results, dataset)


def _row(result: Result) -> list[str]:
    metrics = result.metrics
    return [
        result.label,
        _cell(metrics, "size_bytes", console.size),
        _cell(metrics, "exact_match", _percent),
        _cell(metrics, "token_f1", _percent),
        _cell(metrics, "tokens_per_second", lambda value: f"{value:.0f}"),
        _cell(metrics, "first_token_seconds_median", lambda value: f"{value * 1000:.0f} ms"),
        _cell(metrics, "peak_memory_bytes", console.size),
    ]


def _show_differences(results: Sequence[Result], dataset: Dataset) -> None:
    """A few questions that the models answer differently, to see what the numbers mean."""
    different = [
        index
        for index in range(len(dataset.examples))
        if len({result.replies[index].text for result in results}) > 1
    ]
    for index in different[:SHOWN_DIFFERENCES]:
        example = dataset.examples[index]
        answers = ", ".join(f"{r.label}: {r.replies[index].text!r}" for r in results)
        console.note(f"{example.question!r} ({example.references[0]}) -> {answers}")


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _cell(metrics: Mapping[str, float], name: str, show: Callable[[float], str]) -> str:
    return show(metrics[name]) if name in metrics else "-"
