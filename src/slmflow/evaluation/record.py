"""Results to MLflow: the dataset, each candidate in a run of its own, comparison and report."""

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from slmflow.config.schema import EvaluationSettings
from slmflow.evaluation.data.dataset import Dataset
from slmflow.evaluation.data.log import as_mlflow
from slmflow.evaluation.findings import Findings
from slmflow.evaluation.results import Evaluation, Figure
from slmflow.evaluation.scoring import Array, ScoredRow
from slmflow.redaction import redacted, without_secrets
from slmflow.tracking.run import artifact_place

POINTS = 50  # of a series over the rows
GROUP_ROWS = 1000  # of the Parquet file that are held at once
OWN_LOGIC = ("data", "gate", "promote", "lm_eval")  # told elsewhere in the report


def log_dataset(dataset: Dataset) -> None:
    mlflow.log_input(as_mlflow(dataset), context="evaluation")
    mlflow.set_tag("data.digest", f"sha256:{dataset.digest}")


def settings_of(settings: EvaluationSettings) -> dict[str, Any]:
    """As the report shows them: it escapes texts, so that secrets are taken out before."""
    shown = {name: value for name, value in asdict(settings).items() if name not in OWN_LOGIC}
    return dict(without_secrets(shown))


def written(rows: Iterable[ScoredRow], metrics: Iterable[str], path: Path) -> Iterator[ScoredRow]:
    """The same rows, each written to a Parquet file on its way."""
    names = list(metrics)
    schema = _schema(names)
    every = iter(rows)
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(every, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist([_record(r, names) for r in group], schema))
            yield from group


def log_candidate(found: Findings, rounds: Mapping[str, Sequence[float]]) -> None:
    """Into its run: what it is, what it is worth, and how that came about in series."""
    candidate, client = found.candidate, MlflowClient()
    about = {"uri": candidate.uri, "label": candidate.label, "digest": candidate.digest}
    client.log_batch(found.run_id, params=[Param(key, value) for key, value in about.items()])
    # Under the model, too, so that its page shows what it is worth.
    flat = _flat(found.figures)
    mlflow.log_metrics(flat, run_id=found.run_id, model_id=candidate.model_id)
    now = int(time.time() * 1000)
    series = [
        Metric(f"rounds/{name}", value, now, step)
        for name, values in rounds.items()
        for step, value in enumerate(values, start=1)
    ]
    series += [
        Metric(f"running/{name}", value, now, step)
        for name, values in found.tally.scores.items()
        for step, value in _running(values)
    ]
    for start in range(0, len(series), 1000):  # MLflow takes no more at once
        client.log_batch(found.run_id, metrics=series[start : start + 1000])


def log_evaluation(evaluation: Evaluation) -> None:
    """Into the active run: every figure below its candidate's label, differences, the report."""
    metrics: dict[str, float] = {}
    for candidate in evaluation.candidates:
        metrics |= {f"{key(candidate.label)}/{n}": v for n, v in _flat(candidate.figures).items()}
    for comparison in evaluation.comparisons:
        place = f"{key(comparison.label)}-against-{key(comparison.reference)}"
        changes = {name: found.change for name, found in comparison.differences.items()}
        metrics |= {f"{place}/{n}": v for n, v in _flat(changes).items()}
        metrics |= {f"{place}/{n}.ratio": f.value for n, f in comparison.ratios.items()}
        metrics[f"{place}/agreement"] = comparison.agreement
        if comparison.parity is not None and comparison.parity.top1_agreement is not None:
            metrics[f"{place}/top1_agreement"] = comparison.parity.top1_agreement
            metrics[f"{place}/kl_mean"] = comparison.parity.kl_mean or 0.0
    mlflow.log_metrics(metrics)
    log_report(evaluation)


def log_report(evaluation: Evaluation) -> None:
    from slmflow.evaluation.report.html import render_html  # late: matplotlib takes half a second
    from slmflow.evaluation.report.markdown import render_markdown

    mlflow.log_text(redacted(render_html(evaluation)), "report.html")
    mlflow.log_text(redacted(render_markdown(evaluation)), "report.md")
    told = json.dumps(evaluation.as_json(), indent=1, default=str)
    mlflow.log_text(redacted(told), "evaluation.json")


def report_place() -> str:
    """Where a person finds the report: a page of the tracking server, or a path."""
    run = mlflow.active_run()
    assert run is not None
    return artifact_place(run.info.run_id, "report.html")


def key(label: str) -> str:
    """What MLflow allows in the name of a metric."""
    return re.sub(r"[^\w.-]+", "_", label)


def _flat(figures: Mapping[str, Figure]) -> dict[str, float]:
    """A value by its name; its bounds by the name with .low and .high, where it has some."""
    flat = {name: figure.value for name, figure in figures.items()}
    for name, figure in figures.items():
        if figure.low != figure.high:
            flat |= {f"{name}.low": figure.low, f"{name}.high": figure.high}
    return flat


def _running(values: Array) -> Iterator[tuple[int, float]]:
    """The mean of the rows so far, after so many rows."""
    (where,) = np.isfinite(values).nonzero()
    means = np.cumsum(values[where]) / np.arange(1, len(where) + 1)
    for at in np.unique(np.linspace(0, len(where) - 1, POINTS).astype(int)):
        yield int(where[at]) + 1, float(means[at])


def _schema(metrics: Sequence[str]) -> pa.Schema:
    texts = ("id", "question", "answer", "error", "finish_reason", "tags")
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("references", pa.list_(pa.string())),
            *((name, pa.int64()) for name in ("prompt_tokens", "completion_tokens")),
            *((name, pa.float64()) for name in metrics),
        ]
    )


def _record(row: ScoredRow, metrics: Sequence[str]) -> dict[str, Any]:
    example, reply = row.example, row.reply
    return {
        "id": example.id,
        "question": example.question,
        "answer": reply.text,
        "error": reply.error,
        "finish_reason": reply.finish_reason,
        "tags": json.dumps(dict(example.tags)),
        "references": list(example.references),
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        **{name: row.scores.get(name) for name in metrics},
    }
