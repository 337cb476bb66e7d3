"""The life of a run: joined or opened, and ended in the state that is true."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from slmflow.config.unused import UNUSED
from slmflow.errors import ServerAway, TrackingError
from slmflow.interrupts import no_sigterm
from slmflow.redaction import HIDDEN, redacted, without_secrets
from slmflow.tracking import ending, parameters, provenance, rest
from slmflow.tracking.experiment import experiment_id, experiment_name
from slmflow.tracking.names import ENTRY_POINT, MADE_BY
from slmflow.tracking.patience import unanswered
from slmflow.tracking.reason import reason, refused
from slmflow.tracking.recorded import SecretRecorded, delete_exposed, hide_recorded, tell_hidden

rest.install()  # whoever opens runs imports this module

MADE_UP_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # MLflow's own: likeable-shrimp-12


@contextmanager
def open_run(name: str) -> Iterator[Run]:
    """The run that ``mlflow run`` opened for this process, else a new one; where a run is active
    already, as in a rerun, a child of it.

    Ends FINISHED, FAILED when an error passes through, KILLED on an interrupt.
    """
    if mlflow.active_run() is not None:
        with open_child(name) as child:
            yield child
        return
    joined = os.environ.get("MLFLOW_RUN_ID")
    try:
        if joined is None:
            choose_experiment()
        run = mlflow.start_run(run_name=redacted(name) if joined is None else None)
    except MlflowException as error:
        raise _not_opened(error, joined) from None
    with _ending_true(run):
        if joined is not None:
            ending.take_over(run)
        ending.tell_kept()
        if joined is not None and MADE_UP_NAME.fullmatch(run.info.run_name or ""):
            mlflow.set_tag("mlflow.runName", redacted(name))
        yield run


def choose_experiment() -> str:
    """The id of the one that the environment names, else of this project's own."""
    if (chosen := experiment_id()) is not None:
        return chosen
    return str(mlflow.set_experiment(experiment_name()).experiment_id)


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
    run = mlflow.start_run(run_name=redacted(name), nested=True)
    with _ending_true(run):
        yield run


@contextmanager
def open_part(name: str) -> Iterator[Run]:
    """A run below the active one that has no config of its own: what the other was made by, it was
    made by, too, and says so."""
    whole = mlflow.active_run()
    assert whole is not None
    with open_child(name) as run:
        mlflow.set_tag(MADE_BY, whole.info.run_id)
        yield run


def log_config(
    config: Mapping[str, Any],
    choices: Mapping[str, str],
    entry_point: str,
    unused: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> None:
    """What was asked, and by what it is done: the composed config as dotted parameters and whole
    as an artifact, choices as tags, ``provenance/``. Secrets are left out of all.

    ``mlflow run`` has already logged the parameters of MLproject and what was typed. ``unused``
    names keys, or groups of them, that mean nothing to this entry point; ``overrides`` is what
    was typed.
    """
    known = _joined_run().data
    shown = without_secrets(config)
    flat = {**without_secrets(choices), **flatten(shown)}
    skipped = {key for key in flat for name in unused if f"{key}.".startswith(f"{name}.")}
    values = {key: _typed(value) for key, value in flat.items()}
    made_by = provenance.collect(
        entry_point, overrides, choices, flatten(shown), known.tags.get("mlflow.source.git.commit")
    )
    with tempfile.TemporaryDirectory() as place:
        made_by.write(Path(place) / provenance.FOLDER)
        (Path(place) / "config.yaml").write_text(yaml.safe_dump(shown, sort_keys=False), "utf-8")
        mlflow.log_artifacts(place)
    parameters.log_cut(parameters.cut(known.params, values, overrides))
    used = {key: value for key, value in values.items() if key not in skipped | set(known.params)}
    parameters.log_parameters(used)
    chosen = {f"choice.{group}": choice for group, choice in choices.items()}
    mlflow.set_tags({**chosen, ENTRY_POINT: entry_point, **made_by.tags})
    if MADE_BY in known.tags:  # of a sweep's point, until it had a config
        mlflow.delete_tag(MADE_BY)


def record_unjoined(
    run_id: str,
    entry_point: str,
    overrides: Sequence[str],
    composed: tuple[Mapping[str, Any], Mapping[str, str]] | None,
) -> None:
    """What every run records, for one that failed before its workflow joined it. ``composed``: the
    config and its choices; without, only the provenance is known."""
    mlflow.start_run(run_id=run_id)
    try:
        if composed is None:
            _log_provenance(entry_point, overrides)
        else:
            config, choices = composed
            unused = UNUSED.get(entry_point, ())
            log_config(config, choices, entry_point, unused, overrides)
    finally:
        mlflow.end_run(ending.FAILED)


def _log_provenance(entry_point: str, overrides: Sequence[str]) -> None:
    commit = _joined_run().data.tags.get("mlflow.source.git.commit")
    made_by = provenance.collect(entry_point, overrides, {}, {}, commit)
    with tempfile.TemporaryDirectory() as place:
        made_by.write(Path(place) / provenance.FOLDER)
        mlflow.log_artifacts(place)
    mlflow.set_tags(made_by.tags)


def _joined_run() -> Run:
    """The active run as the server has it, rid of the secrets that ``mlflow run`` recorded."""
    active = mlflow.active_run()
    assert active is not None
    run = mlflow.get_run(active.info.run_id)
    tell_hidden(hide_recorded(run))
    return run


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
        server = redacted(uri).replace(f"//{HIDDEN}@", "//").rstrip("/")  # as a browser wants it
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
def _ending_true(run: Run) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        with no_sigterm():
            ending.end(run, ending.KILLED)
        raise
    except BaseException as error:
        told = ending.as_told(run, error)
        ending.end(run, ending.FAILED, str(told) or type(told).__name__)
        if isinstance(error, SecretRecorded):
            delete_exposed(run.info.run_id)
        if told is error:
            raise
        raise told from None
    if not ending.end(run, ending.FINISHED):
        raise ending.unheard(run)


def _not_opened(error: MlflowException, joined: str | None) -> TrackingError:
    told = unreachable(error)
    if not unanswered(error):
        return TrackingError(told)
    if joined is not None:
        ending.keep(joined, ending.FAILED, told)
    return ServerAway(told)


def unreachable(error: Exception) -> str:
    """What to tell of it, where it came of opening a run."""
    uri = mlflow.get_tracking_uri()
    told = redacted(reason(error))
    if refused(error) is not None:
        return f"{redacted(uri)} opens no run: {told}"
    hint = "is the server running, and MLFLOW_TRACKING_URI right? ./run doctor says more"
    if "not found" in told and uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        hint = "a relative sqlite path means another file in another folder: give an absolute one"
    return f"no run can be opened on {redacted(uri)} ({told}); {hint}"
