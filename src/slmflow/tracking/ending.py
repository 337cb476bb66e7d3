"""The last words of a run, also where the tracking server is away when they are to be said.

What the server does not hear of is kept in a file of this machine, and told to it by the next
command that reaches it.
"""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LifecycleStage, LoggedModelStatus, Run, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking._tracking_service.utils import _get_store

from slmflow import cache, console
from slmflow.errors import ServerAway, TrackingError
from slmflow.redaction import redacted
from slmflow.tracking.names import UPLOADED_BY
from slmflow.tracking.parameters import log_error
from slmflow.tracking.patience import unanswered
from slmflow.tracking.reason import reason, refused

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"


def end(run: Run, state: str, error: str = "") -> bool:
    """End the active run. False where the server could not be told: that is kept for later.

    Raises where the server refuses that a run is FINISHED; of one that failed, the error is told.
    """
    whole = told = False
    try:
        whole = _say_why(run, state, error)
    finally:
        try:
            told = _end(state)
        finally:  # also on a second Ctrl-C, while this one waits
            if not told:
                keep(run.info.run_id, state, error)
            elif not whole:
                _write(run.info.run_id, state, error)
    return told


def _say_why(run: Run, state: str, error: str) -> bool:
    """False where a part of it got no answer. What is refused would be refused later, too."""
    whole = True
    if state != FINISHED:
        whole = _said(lambda: _abandon_models(run))
    if error:
        whole = _said(lambda: log_error(error, run.info.run_id)) and whole
    return whole


def _said(say: Callable[[], None]) -> bool:
    try:
        say()
    except MlflowException as failure:
        return not unanswered(failure)
    return True


def _end(state: str) -> bool:
    try:
        mlflow.end_run(state)  # which takes the run off MLflow's stack, whatever the server says
    except MlflowException as failure:
        if state == FINISHED and not unanswered(failure):
            raise
        return False
    return True


def _abandon_models(run: Run) -> None:
    """Logged models that the run began and did not complete."""
    client = MlflowClient()
    for key in ("source_run_id", f"tags.`{UPLOADED_BY}`"):
        mine = f"{key} = '{run.info.run_id}'"
        for model in client.search_logged_models([run.info.experiment_id], mine):
            if model.status == LoggedModelStatus.PENDING:
                client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)


def as_told(run: Run, error: BaseException) -> BaseException:
    """The error, or where it came of a tracking server that left: what to tell of that."""
    if isinstance(error, ServerAway) or not isinstance(error, Exception) or not unanswered(error):
        return error
    return ServerAway(
        f"the tracking server {redacted(mlflow.get_tracking_uri())} does not answer "
        f"({redacted(reason(error))}). Run {run.info.run_id} stopped there: what it had "
        "not logged yet is missing, and it registered nothing half. Repeat the command: downloads, "
        "built ONNX models and answers are kept"
    )


def unheard(run: Run) -> TrackingError:
    """The run did all that it had to do, and only its end is not on the server."""
    return TrackingError(
        f"run {run.info.run_id} finished, and all of it is on the tracking server "
        f"{redacted(mlflow.get_tracking_uri())} but its end; there is nothing to repeat"
    )


def tell_kept() -> None:
    """Tell the server how runs of this machine ended while it was away."""
    folder = _folder()
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        with suppress(OSError, ValueError):  # another process tells it at this moment
            if _is_told(json.loads(file.read_text("utf-8"))):
                file.unlink()


def _is_told(kept: dict[str, Any]) -> bool:
    """Whether there is nothing left to tell. What the server says to an old ending must not stop
    a new run; where it permits this to another account only, that one will tell it."""
    try:
        _tell(kept)
    except MlflowException as error:
        if unanswered(error):
            raise
        if refused(error) is not None or error.get_http_status_code() in (401, 403):
            return False
        console.note(f"the server takes no ending of run {kept['run_id']}: {reason(error)}")
    return True


def take_over(run: Run) -> None:
    """A run that was opened by another process, or that goes on.

    Ends runs that `mlflow run` opened for this one and lost: it sends its request again where no
    answer came. Such a twin has the same start to the millisecond, and nothing was logged to it.
    """
    (_folder() / f"{run.info.run_id}.json").unlink(missing_ok=True)
    if not mlflow.get_tracking_uri().startswith("http"):
        return
    client = MlflowClient()
    where = f"attributes.start_time = {run.info.start_time} and attributes.status = 'RUNNING'"
    for other in client.search_runs([run.info.experiment_id], where, max_results=10):
        if other.info.run_id != run.info.run_id and _is_twin(other, run):
            why = f"opened twice, as the server's answer was lost; see run {run.info.run_id}"
            client.set_tag(other.info.run_id, "slmflow.error", why)
            _set_ended(other.info.run_id, KILLED, _now())


def _is_twin(other: Run, run: Run) -> bool:
    named = "mlflow.runName"  # made up by the server, so each has one of its own
    given = {key: value for key, value in other.data.tags.items() if key != named}
    untouched = not other.data.params and not other.data.metrics
    same = other.info.user_id == run.info.user_id and given.items() <= run.data.tags.items()
    return untouched and same


def keep(run_id: str, state: str, error: str) -> None:
    """Until ``tell_kept``: how a run ended that the server has not heard of."""
    if _write(run_id, state, error):
        console.note(
            f"the server shows run {run_id} as running: the next command here that reaches it "
            f"tells it that the run ended {state}"
        )


def is_kept(run_id: str) -> bool:
    """Whether a process of this machine could not tell the server how this run ended."""
    return (_folder() / f"{run_id}.json").is_file()


def _write(run_id: str, state: str, error: str) -> bool:
    content = {"run_id": run_id, "state": state, "error": redacted(error), "end": _now()}
    try:
        cache.write_json(_folder() / f"{run_id}.json", content)
    except OSError:  # a full disk: the message is told in any case
        return False
    return True


def _tell(kept: dict[str, Any]) -> None:
    client = MlflowClient()
    run_id, state = kept["run_id"], kept["state"]
    try:
        run = client.get_run(run_id)
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            return
        if not RunStatus.is_terminated(RunStatus.from_string(run.info.status)):
            _set_ended(run_id, state, kept["end"])
            console.note(f"run {run_id} ended {state} while the tracking server was away: told now")
        if kept["error"] and "slmflow.error" not in run.data.tags:
            log_error(kept["error"], run_id, client)
        _abandon_models(run)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # not even among the deleted ones
            raise


def _set_ended(run_id: str, state: str, end: int) -> None:
    """Without the address of its page, which MLflow's client prints: it is not the person's run."""
    _get_store().update_run_info(run_id, RunStatus.from_string(state), end, None)


def _now() -> int:
    return int(time.time() * 1000)


def _folder() -> Path:
    """Of this tracking server, whose address may hold a password."""
    server = hashlib.sha256(mlflow.get_tracking_uri().encode()).hexdigest()[:16]
    return cache.root() / "unheard_ends" / server
