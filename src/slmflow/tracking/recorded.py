"""What others recorded on a run before this code began, and must not stay there.

``mlflow run`` logs its parameters, the URI of the project and git's remote as they are given. Tags
can be written again on every store; parameters only where the store itself can be reached, a
database or files. A tracking server refuses, for good reasons.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.tracking._tracking_service.utils import _get_store

from slmflow import console
from slmflow.errors import TrackingError
from slmflow.redaction import redacted, redacted_value

INSTEAD = (
    "give it without MLflow's knowledge: start by ./run, which refuses it, export it as a "
    "variable, and where a key must have it type -P 'KEY=${oc.env:NAME}'"
)


class SecretRecorded(TrackingError):
    """A secret is on the tracking server, and cannot be taken away from here."""


def hide_recorded(run: Run) -> list[str]:
    """The names of the parameters that held a secret. Raises ``SecretRecorded`` where these
    cannot be written again; tags have been by then."""
    params = {
        key: hidden for key, value in run.data.params.items() if (hidden := _hidden(key, value))
    }
    tags = {
        key: redacted(value) for key, value in run.data.tags.items() if redacted(value) != value
    }
    if not params and not tags:
        return []
    store = _get_store()
    if hasattr(store, "ManagedSessionMaker"):
        _write_database(store, run.info.run_id, params, tags)
    elif hasattr(store, "_get_param_path"):
        for key, value in params.items():
            Path(store._get_param_path(run.info.experiment_id, run.info.run_id, key)).write_text(
                value, "utf-8"
            )
    for key, value in tags.items():
        MlflowClient().set_tag(run.info.run_id, key, value)
    if params and not (hasattr(store, "ManagedSessionMaker") or hasattr(store, "_get_param_path")):
        raise SecretRecorded(_words(run.info.run_id, sorted(params)))
    return sorted(params)


def hide_or_delete(run_id: str) -> list[str]:
    """As ``hide_recorded``, for a run that nobody has joined yet: where that is impossible the
    run ends FAILED and is deleted."""
    try:
        return hide_recorded(MlflowClient().get_run(run_id))
    except SecretRecorded:
        MlflowClient().set_terminated(run_id, "FAILED")
        delete_exposed(run_id)
        raise


def tell_hidden(names: Sequence[str]) -> None:
    if names:
        console.prose(
            f"mlflow run had recorded a secret as {', '.join(names)}: it is *** now; the line that "
            "mlflow prints at its start, and the history of your shell, still have it"
        )


def delete_exposed(run_id: str) -> None:
    """Out of sight; ``mlflow gc`` takes it out of the store."""
    MlflowClient().delete_run(run_id)


def _hidden(key: str, value: str) -> str | None:
    """What to write instead; None where it may stay."""
    hidden = redacted_value(key, value)
    return None if hidden == value else hidden


def _write_database(
    store: Any, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    """SQLite would leave the old bytes in its file until they are needed."""
    from mlflow.store.tracking.dbmodels.models import SqlParam, SqlTag
    from sqlalchemy import text

    with store.ManagedSessionMaker(read_only=False) as session:
        if store.db_type == "sqlite":
            session.execute(text("PRAGMA secure_delete = ON"))
        for table, values in ((SqlParam, params), (SqlTag, tags)):
            for key, value in values.items():
                session.query(table).filter_by(run_uuid=run_id, key=key).update({"value": value})


def _words(run_id: str, names: list[str]) -> str:
    return (
        f"mlflow run has recorded a secret as {', '.join(names)} of run {run_id}, and its tracking "
        "server lets nobody change a parameter. The run was ended and deleted (a stack trace of "
        "mlflow below says no more than that), but the server still has it: "
        f"revoke the secret now, and have `mlflow gc --run-ids {run_id}` run on the "
        f"server. From then on {INSTEAD}"
    )
