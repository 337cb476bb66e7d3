"""A job to MLflow: what was read, what came out, where it lies. Into the active run."""

import hashlib
import json
from contextlib import suppress

import mlflow
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.dataset_source_registry import (
    get_dataset_source_from_json,
    resolve_dataset_source,
)
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException

from slmflow.prediction.places import absolute
from slmflow.prediction.predict import Summary
from slmflow.redaction import redacted

DIGEST_LENGTH = 36  # MLflow refuses more


def log_job(summary: Summary, place: str) -> None:
    """``place`` is the input as it was typed."""
    model = redacted(summary.model.spec.uri)
    mlflow.set_tags({"predict.output": summary.output, "predict.model": model})
    metrics = {
        "rows": summary.rows,
        "failed_rows": summary.failed,
        "parts": len(summary.parts),
        "parts_from_before": len(summary.parts) - len(summary.new),
        "prompt_tokens": sum(part.prompt_tokens for part in summary.parts),
        "completion_tokens": sum(part.completion_tokens for part in summary.parts),
        "seconds": summary.seconds,
    }
    if summary.tokens_per_second is not None:
        metrics["tokens_per_second"] = summary.tokens_per_second
    # Under the model, too, so that its page shows what it was used for.
    mlflow.log_metrics(metrics, model_id=_known(summary.model.model_id))
    mlflow.log_input(_dataset(summary, place), context="prediction")
    mlflow.log_dict(dict(summary.manifest), "manifest.json")


def _known(model_id: str | None) -> str | None:
    """None where this tracking server has no such model: it may come from another one."""
    if model_id is None:
        return None
    try:
        mlflow.get_logged_model(model_id)
    except MlflowException:
        return None
    return model_id


def _dataset(summary: Summary, place: str) -> MetaDataset:
    files = summary.manifest["identity"]["input"]
    digest = hashlib.sha256(json.dumps([file["digest"] for file in files]).encode()).hexdigest()
    name = place.rstrip("/").rpartition("/")[2].partition(".")[0]
    return MetaDataset(_source(absolute(place)), name=name, digest=digest[:DIGEST_LENGTH])


def _source(url: str) -> DatasetSource:
    with suppress(MlflowException):  # a store that it does not know; its address says enough
        if "://" in url:
            return resolve_dataset_source(url)
    return get_dataset_source_from_json(json.dumps({"uri": url}), "local")
