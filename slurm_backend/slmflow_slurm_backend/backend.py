"""The backend that MLflow finds: from a project to a job, and to the end of its run."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import ExecutionException, MlflowException
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.utils import (
    PROJECT_SYNCHRONOUS,
    fetch_and_validate_project,
    get_or_create_run,
)
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_BACKEND
from mlflow.utils.uri import is_local_uri

from slmflow_slurm_backend.config import ConfigError, SlurmConfig, read_config
from slmflow_slurm_backend.ending import CLUSTER, JOB, LOG, end_run
from slmflow_slurm_backend.follow import SlurmRun, say
from slmflow_slurm_backend.job import Order
from slmflow_slurm_backend.project import copy_project, local_folder
from slmflow_slurm_backend.scheduler import SlurmSilent, cancel_job, cluster_name, missing_command
from slmflow_slurm_backend.submit import Refused, job_name, log_pattern, submit


class SlurmBackend(AbstractBackend):  # type: ignore[misc]
    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: Mapping[str, str] | None,
        version: str | None,
        backend_config: Mapping[str, Any],
        tracking_uri: str,
        experiment_id: str,
    ) -> SlurmRun:
        """Raises ExecutionException, which ``mlflow run`` shows as one message."""
        config = _checked(backend_config, project_uri, version)
        mlflow.set_tracking_uri(reachable(tracking_uri))
        cluster = _cluster()
        project = fetch_and_validate_project(project_uri, version, entry_point, params)
        run = get_or_create_run(
            None, project_uri, experiment_id, project, version, entry_point, params
        )
        client = MlflowClient()
        tags = {MLFLOW_PROJECT_BACKEND: "slurm", CLUSTER: cluster}
        with _ending(client, run):
            submitted = _submit(client, run, Path(project), entry_point, params or {}, config, tags)
        # MLflow waits for a caller who asked for it; its command line does not ask.
        if not backend_config.get(PROJECT_SYNCHRONOUS):
            _wait(submitted)
        return submitted


def _submit(
    client: MlflowClient,
    run: Run,
    project: Path,
    entry_point: str,
    params: Mapping[str, str],
    config: SlurmConfig,
    tags: Mapping[str, str],
) -> SlurmRun:
    run_id = run.info.run_id
    folder = config.folder / run_id
    log = log_pattern(folder / "job")
    for name, value in tags.items():
        client.set_tag(run_id, name, value)
    client.update_run(run_id, status="SCHEDULED")
    order = Order(
        run_id=run_id,
        experiment_id=run.info.experiment_id,
        project=copy_project(project, folder / "project"),
        entry_point=entry_point,
        parameters=dict(params),
        env_manager=config.env_manager,
        patience=min(20.0, config.grace * 2 / 3),
        log=log,
    )
    try:
        job_id = submit(order, config, folder / "job")
    except Refused:
        shutil.rmtree(folder)
        raise
    log = Path(str(log).replace("%j", job_id))
    client.set_tag(run_id, LOG, str(log))
    client.set_tag(run_id, JOB, job_id)
    say(f"run {run_id} is job {job_id}; its output goes to {log}")
    return SlurmRun(run_id, job_id, folder, log)


def _wait(submitted: SlurmRun) -> None:
    try:
        good = submitted.wait()
    except KeyboardInterrupt:
        submitted.cancel()
        raise
    except MlflowException as error:
        raise ExecutionException(
            f"the tracking server cannot be asked ({error}); the job ends its run by itself. Later:"
            f" python -m slmflow_slurm_backend {submitted.run_id}"
        ) from None
    if not good:
        said = MlflowClient().get_run(submitted.run_id).data.tags.get("slmflow.error", "")
        raise ExecutionException(f"Run (ID '{submitted.run_id}') failed\n{said}".strip())


@contextmanager
def _ending(client: MlflowClient, run: Run) -> Iterator[None]:
    """A run that gets no job ends here."""
    try:
        yield
    except Refused as error:
        end_run(client, run, "FAILED", f"sbatch refused the job: {error}")
        raise ExecutionException(f"sbatch refused the job: {error}") from None
    except BaseException as error:
        with suppress(SlurmSilent):  # sbatch may have taken it all the same
            cancel_job(f"--name={job_name(run.info.run_id)}")
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        end_run(client, run, status, f"not submitted: {error or type(error).__name__}")
        raise


def _checked(given: Mapping[str, Any], project_uri: str, version: str | None) -> SlurmConfig:
    try:
        config = read_config(given)
        config.folder.mkdir(parents=True, exist_ok=True)
    except ConfigError as error:
        raise ExecutionException(str(error)) from None
    except OSError as error:
        raise ExecutionException(f"folder: {error}") from None
    if version is not None and local_folder(project_uri) is not None:
        raise ExecutionException(
            f"-v {version} with a folder would check that version out in your own clone of it:"
            " check it out yourself and leave -v away, or give the URL of the repository"
        )
    return config


def _cluster() -> str:
    if (command := missing_command()) is not None:
        raise ExecutionException(f"there is no {command} here: submit where Slurm's commands are")
    try:
        return cluster_name()
    except SlurmSilent as error:
        raise ExecutionException(f"Slurm does not answer: {error}") from None


def reachable(tracking_uri: str) -> str:
    """A relative path would be another one in the job: it becomes absolute."""
    scheme, _, rest = tracking_uri.partition(":///")
    if scheme.startswith("sqlite"):
        if rest.startswith(":memory:") or not rest:
            raise ExecutionException("a tracking store in memory cannot be seen by a job")
        return f"{scheme}:///{Path(rest).absolute()}"
    parsed = urlparse(tracking_uri)
    if parsed.hostname in ("localhost", "127.0.0.1", "::1"):
        say(f"other machines cannot reach the tracking server at {parsed.hostname}")
    if is_local_uri(tracking_uri):
        return Path(local_file_uri_to_path(tracking_uri)).absolute().as_uri()
    return tracking_uri
