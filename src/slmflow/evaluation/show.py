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
        ["model", "weights", "size", "exact", "tokens/s", "1st token", "memory"],
        [_row(result) for result in results],
        title=f"{dataset.name}, {len(dataset.examples)} questions",
    )
    if len(results) > 1:
        console.heading("side by side")
    for (one, other), share in agreement.items():
        console.note(f"{one} and {other}: same answer to {share:.0%} of the questions")
    for result in results[1:]:
        console.note(f"{result.label} against {results[0].label}:")
        console.note(f"  {_against(result, results[0])}")
    _show_differences(results, dataset)


def _against(result: Result, reference: Result) -> str:
    """What choosing the one over the other means, in a sentence."""
    points = round(100 * (result.metrics["exact_match"] - reference.metrics["exact_match"]))
    parts = [f"{abs(points)} points {'more' if points > 0 else 'less'} exact"]
    if points == 0:
        parts = ["as exact"]
    for name, unit in (("tokens_per_second", "the tokens/s"), ("peak_memory_bytes", "the memory")):
        if reference.metrics.get(name) and name in result.metrics:
            parts.append(f"{result.metrics[name] / reference.metrics[name]:.2g}x {unit}")
    return ", ".join(parts)


def _row(result: Result) -> list[str]:
    metrics = result.metrics
    return [
        result.label,
        result.weights,
        _cell(metrics, "size_bytes", console.size),
        _cell(metrics, "exact_match", _percent),
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
    if different:
        console.heading("answered differently, for example")
    for index in different[:SHOWN_DIFFERENCES]:
        example = dataset.examples[index]
        console.note(f"{example.question} ({example.references[0]})")
        for result in results:
            console.note(f"  {result.label}: {result.replies[index].text}")


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _cell(metrics: Mapping[str, float], name: str, show: Callable[[float], str]) -> str:
    return show(metrics[name]) if name in metrics else "-"
