"""Results to MLflow: metrics, every example with its scores, the dataset."""

import os
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import mlflow.genai
import pandas as pd
from mlflow.entities import Feedback
from mlflow.genai.scorers import scorer
from mlflow.models import Model

from slmflow.evaluation.compare import Result
from slmflow.evaluation.dataset import Dataset
from slmflow.evaluation.metrics import METRICS
from slmflow.sources import PROJECT_ROOT


def log_dataset(dataset: Dataset) -> None:
    frame = pd.DataFrame(
        [
            {"question": example.question, "answer": example.references[0]}
            for example in dataset.examples
        ]
    )
    logged = mlflow.data.from_pandas(
        frame,
        source=_relative(dataset.path),
        name=dataset.name,
        targets="answer",
        digest=dataset.digest[:36],
    )
    mlflow.log_input(logged, context="evaluation")
    mlflow.set_tag("data.digest", f"sha256:{dataset.digest}")


def log_result(result: Result, dataset: Dataset) -> None:
    """Into the active run: the metrics, and every example with its scores for the UI."""
    mlflow.log_params({"uri": result.uri, "label": result.label})
    # Under the model, too, so that its page shows what it is worth.
    mlflow.log_metrics(dict(result.metrics), model_id=Model.load(result.uri).model_id)
    rows = [
        {
            "inputs": example.request,
            "outputs": reply.text,
            "expectations": {"references": list(example.references)},
        }
        for example, reply in zip(dataset.examples, result.replies, strict=True)
    ]
    _one_writer_for_sqlite()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # its bar and its advert
        mlflow.genai.evaluate(data=rows, scorers=[_judge])


def log_comparison(
    results: Sequence[Result], agreement: dict[tuple[str, str], float], dataset: Dataset
) -> None:
    """Into the active run: every model's metrics below its label, agreement, the example table."""
    mlflow.log_metrics(
        {
            f"{_key(result.label)}/{name}": value
            for result in results
            for name, value in result.metrics.items()
        }
    )
    mlflow.log_metrics(
        {f"agreement/{_key(a)}-{_key(b)}": share for (a, b), share in agreement.items()}
    )
    mlflow.log_table(_examples(results, dataset), "examples.json")


@scorer  # type: ignore[untyped-decorator]
def _judge(outputs: str, expectations: dict[str, Any]) -> list[Feedback]:
    """All metrics in one scorer: MLflow spends a tenth of a second on every scorer call."""
    references = expectations["references"]
    return [
        Feedback(name=name, value=metric(outputs, references)) for name, metric in METRICS.items()
    ]


def _one_writer_for_sqlite() -> None:
    """MLflow's ten threads wait for each other's locks on a sqlite store, up to a minute."""
    if mlflow.get_tracking_uri().startswith("sqlite:"):
        os.environ.setdefault("MLFLOW_GENAI_EVAL_MAX_WORKERS", "1")
        os.environ.setdefault("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")


def _examples(results: Sequence[Result], dataset: Dataset) -> pd.DataFrame:
    rows = []
    for index, example in enumerate(dataset.examples):
        row: dict[str, Any] = {
            "id": example.id,
            "question": example.question,
            "references": " | ".join(example.references),
        }
        for result in results:
            row[result.label] = result.replies[index].text
            for name, values in result.scores.items():
                row[f"{result.label} {name}"] = values[index]
        rows.append(row)
    return pd.DataFrame(rows)


def _relative(path: Path) -> str:
    inside = path.is_relative_to(PROJECT_ROOT)
    return (path.relative_to(PROJECT_ROOT) if inside else path).as_posix()


def _key(label: str) -> str:
    """What MLflow allows in the name of a metric."""
    return re.sub(r"[^\w.-]+", "_", label)
