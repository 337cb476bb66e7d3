"""The life of a run: joined or opened, and ended in the state that is true."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.entities import Run, RunStatus
from mlflow.exceptions import MlflowException

from slmflow.errors import TrackingError
from slmflow.tracking.reason import reason

EXPERIMENT = "slmflow"
MADE_UP_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # MLflow's own: likeable-shrimp-12


@contextmanager
def open_run(name: str) -> Iterator[Run]:
    """The run that ``mlflow run`` opened for this process, else a new one.

    Ends FINISHED, FAILED when an error passes through, KILLED on an interrupt.
    """
    joins = "MLFLOW_RUN_ID" in os.environ
    try:
        if not joins:
            choose_experiment()
        run = mlflow.start_run(run_name=None if joins else name)
    except MlflowException as error:
        raise TrackingError(_unreachable(error)) from None
    if joins and MADE_UP_NAME.fullmatch(run.info.run_name or ""):
        mlflow.set_tag("mlflow.runName", name)
    with _ending_true():
        yield run


def choose_experiment() -> str:
    """The id of the one that the environment names, else of this project's own."""
    if (chosen := os.environ.get("MLFLOW_EXPERIMENT_ID")) is not None:
        return chosen
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    return str(mlflow.set_experiment(name).experiment_id)


def absolute_tracking_uri() -> str:
    """As other processes must know it: a relative file would be another one in another folder."""
    uri = str(mlflow.get_tracking_uri())
    kind, separator, path = uri.partition(":///")
    if separator and kind.startswith("sqlite") and not path.startswith("/"):
        return f"{kind}:///{Path(path).absolute()}"
    return uri


@contextmanager
def open_child(name: str) -> Iterator[Run]:
    """A run below the active one."""
    run = mlflow.start_run(run_name=name, nested=True)
    with _ending_true():
        yield run


def log_config(
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    entry_point: str,
    unused: Sequence[str] = (),
) -> None:
    """The composed config: dotted parameters, and whole as an artifact; choices as tags.

    ``mlflow run`` has already logged the parameters of MLproject and what was typed. ``unused``
    names keys, or groups of them, that mean nothing to this entry point.
    """
    run = mlflow.active_run()
    assert run is not None
    known = mlflow.get_run(run.info.run_id).data.params
    flat = {**choices, **flatten(config)}
    skipped = {key for key in flat for name in unused if f"{key}.".startswith(f"{name}.")}
    used = {key: _typed(flat[key]) for key in flat if key not in skipped | set(known)}
    mlflow.log_params(used)
    mlflow.set_tags({f"choice.{group}": choice for group, choice in choices.items()})
    mlflow.set_tag("slmflow.entry_point", entry_point)
    mlflow.log_text(yaml.safe_dump(dict(config), sort_keys=False), "config.yaml")


def log_outcome(models: Sequence[str], figures: Mapping[str, float]) -> None:
    """What a run made, and what it is worth: by these a sweep compares its points.

    ``models``: URIs of the versions that it registered.
    """
    if models:
        mlflow.set_tag("slmflow.models", " ".join(models))
    mlflow.log_metrics(dict(figures))


def artifact_place(run_id: str, name: str) -> str:
    """Where a person finds it: a page of the tracking server, or a path."""
    run, uri = mlflow.get_run(run_id), mlflow.get_tracking_uri()
    if uri.startswith("http"):
        server = re.sub(r"//[^/@]+@", "//", uri).rstrip("/")  # without user name and password
        place = f"experiments/{run.info.experiment_id}/runs/{run_id}"
        return f"{server}/#/{place}/artifacts/{name}"
    return f"{run.info.artifact_uri}/{name}".removeprefix("file://")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"search": {"top_k": 0}}`` to ``{"search.top_k": 0}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _typed(value: Any) -> str:
    """A value as one would type it: null, true, [a, b]."""
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def _ending_true() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        mlflow.end_run(RunStatus.to_string(RunStatus.KILLED))
        raise
    except BaseException as error:
        try:
            mlflow.set_tag("slmflow.error", str(error)[:5000] or type(error).__name__)
        finally:
            mlflow.end_run(RunStatus.to_string(RunStatus.FAILED))
        raise
    mlflow.end_run()


def _unreachable(error: MlflowException) -> str:
    uri = mlflow.get_tracking_uri()
    told = reason(error)
    hint = "is the server running, and MLFLOW_TRACKING_URI right?"
    if "not found" in told and uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        hint = "a relative sqlite path means another file in another folder: give an absolute one"
    return f"no run can be opened on {uri} ({told}); {hint}"
