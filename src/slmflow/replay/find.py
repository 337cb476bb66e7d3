"""From what a person typed to the run that is meant."""

import re
from contextlib import suppress

import mlflow
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from slmflow.errors import TrackingError
from slmflow.redaction import redacted
from slmflow.tracking.names import ENTRY_POINT, PARENT, RESUMES
from slmflow.tracking.reason import reason
from slmflow.tracking.registry import NOT_THERE, find_version

AGAIN = "slmflow.rerun.as"  # on a rerun: the run that it made
STANDS_FOR = (AGAIN, RESUMES)  # on a run that did another's work: the other
RUN_ID = re.compile(r"[0-9a-f]{32}")
PREFIX = re.compile(r"[0-9a-fA-F]{4,31}")
ALLOWED = "a run id, or how it begins (4 characters or more), runs:/ID, models:/NAME/VERSION"
SHOWN = 5  # runs that begin alike


def find(given: str) -> Run:
    """A run of this project that can be looked into; of a rerun the run that it made, of a session
    that went on with a sweep the sweep.

    Raises ``TrackingError``.
    """
    client = MlflowClient()
    run = _named(given.strip(), client)
    run_id = run.info.run_id
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(
            f"run {run_id} was deleted; where it can be restored: mlflow runs restore "
            f"--run-id {run_id}"
        )
    for tag in STANDS_FOR:
        if tag in run.data.tags:
            return find(run.data.tags[tag])
    if ENTRY_POINT not in run.data.tags:
        raise TrackingError(_stranger(run, client))
    return run


def _named(given: str, client: MlflowClient) -> Run:
    if given.startswith("models:/"):
        return _packaged_by(given, client)
    run_id = given.removeprefix("runs:/").partition("/")[0]
    if PREFIX.fullmatch(run_id):
        return _begins_with(run_id.lower(), client)
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        raise TrackingError(
            f"run_id={given}: there is no such run on {_where()} ({reason(error)}); allowed: "
            f"{ALLOWED}; is MLFLOW_TRACKING_URI the one that it was recorded on?"
        ) from None


def _packaged_by(uri: str, client: MlflowClient) -> Run:
    version = find_version(uri)
    if version is None:
        raise TrackingError(
            f"run_id={uri}: the registry {mlflow.get_registry_uri()} has no such version; "
            "allowed: models:/NAME/VERSION, models:/NAME@ALIAS"
        )
    try:
        return client.get_run(version.run_id)
    except MlflowException as error:
        raise TrackingError(
            f"{uri} is there, but not the run that packaged it ({version.run_id or 'not recorded'}"
            f": {reason(error)})"
        ) from None


def _begins_with(prefix: str, client: MlflowClient) -> Run:
    experiments = [one.experiment_id for one in client.search_experiments(ViewType.ALL)]
    found = list(
        client.search_runs(experiments, f"attributes.run_id LIKE '{prefix}%'", max_results=SHOWN)
    )
    if len(found) == 1:
        return found[0]
    if not found:
        raise TrackingError(
            f"run_id={prefix}: no run on {_where()} begins like that; allowed: {ALLOWED}"
        )
    ids = ", ".join(run.info.run_id for run in found)
    raise TrackingError(f"run_id={prefix}: more than one run begins like that: {ids}")


def _stranger(run: Run, client: MlflowClient) -> str:
    run_id, parent = run.info.run_id, run.data.tags.get(PARENT)
    if parent is not None:
        with suppress(MlflowException):
            above = client.get_run(parent)
            if ENTRY_POINT in above.data.tags:
                name = above.data.tags[ENTRY_POINT]
                return f"run {run_id} is a part of a run of {name}; type run_id={parent}"
    return (
        f"run {run_id} ({run.info.run_name}) did not begin as an entry point of this project: it "
        f"has no tag {ENTRY_POINT}. It is of another project, or failed before its config was "
        "composed; then type its command again"
    )


def _where() -> str:
    return redacted(str(mlflow.get_tracking_uri()))
