"""One model after the other: ask in a fresh process, score, log."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.models import Model

from slmflow import console
from slmflow.answering.ask import ask
from slmflow.evaluation.compare import Result, agreement, score, summarize
from slmflow.evaluation.dataset import Dataset
from slmflow.evaluation.record import log_comparison, log_dataset, log_result
from slmflow.tracking.registry import version_tags
from slmflow.tracking.run import open_child


def evaluate_models(
    uris: Sequence[str], dataset: Dataset, model_config: Mapping[str, Any]
) -> tuple[list[Result], dict[tuple[str, str], float]]:
    """Results in the order of the URIs, each logged to a child of the active run.

    ``model_config`` overrides what this project's models were packaged with. Raises ``AskError``.
    """
    log_dataset(dataset)
    results = []
    for label, uri in labels(uris).items():
        with open_child(label):
            result = _evaluate(label, uri, dataset, model_config)
            with console.step(f"score the answers of {label}"):
                log_result(result, dataset)
        results.append(result)
    same = agreement(results)
    log_comparison(results, same, dataset)
    return results, same


def labels(uris: Sequence[str]) -> dict[str, str]:
    """A short name a URI: runtime and version where the registry knows them, else the URI."""
    known = {uri: version_tags(uri) for uri in uris}
    names = {uri.removeprefix("models:/").replace("@", "/").split("/")[0] for uri in known}
    named: dict[str, str] = {}
    for uri, tags in known.items():
        short = uri.removeprefix("models:/")
        version = f"v{short.split('/')[1]}" if len(names) == 1 and "/" in short else short
        named[f"{tags['runtime']} {version}" if "runtime" in tags else short] = uri
    return named


def _evaluate(label: str, uri: str, dataset: Dataset, model_config: Mapping[str, Any]) -> Result:
    rows = [example.request for example in dataset.examples]
    tags = version_tags(uri)
    config = model_config if "slmflow" in tags else {}
    with console.progress(f"ask {label}", total=len(rows)) as bar:
        session = ask(uri, rows, config, bar.advance)
    scores = score(session.replies, dataset.examples)
    metrics = summarize(session, scores, _size(uri))
    weights = tags.get("precision") or tags.get("dtype") or "-"
    return Result(label, uri, weights, session.replies, scores, metrics)


def _size(uri: str) -> int | None:
    size: int | None = Model.load(uri).model_size_bytes
    return size
