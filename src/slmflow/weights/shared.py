"""Weights as a logged model of their own: uploaded once, named by every model packaged from them.

A logged model is MLflow's own way to keep files that belong to no single run, and it can be the
input of the runs that use it. It is found by its tag, and counts only once it is READY and has
every file: an upload that broke off is never taken for weights.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking import MlflowClient

from slmflow.served.digests import cache_root
from slmflow.served.weights import Manifest, WeightsError, kept, link_or_copy, staging, verify
from slmflow.tracking.names import UPLOADED_BY

NAME = "weights"
TAG = "slmflow.weights.large"
ABOUT = "slmflow.weights.about"
PAGE = 50  # experiments that are searched with one request


def ensure(manifest: Manifest) -> tuple[str, Path | None]:
    """The URI of the logged model with the manifest's large files, and their folder where that is
    on this machine. Uploads them where no experiment has them yet.
    """
    client = MlflowClient()
    run = mlflow.active_run()
    assert run is not None  # weights are placed while a model is packaged
    experiment = run.info.experiment_id
    # Points of a sweep that want the same at once wait for one of them to upload it.
    lock = cache_root() / "weights" / f"{large_digest(manifest)}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        found = find(client, manifest, experiment) or _upload(client, manifest, run)
    client.log_inputs(run.info.run_id, models=[LoggedModelInput(found.model_id)])
    return found.model_uri, local_folder(found.artifact_location)


def local_folder(location: str) -> Path | None:
    """Of artifacts that are a folder of this machine."""
    repository = get_artifact_repository(location)
    if isinstance(repository, LocalArtifactRepository):
        return Path(repository.artifact_dir)
    return None


def large_digest(manifest: Manifest) -> str:
    """SHA-256 of names and contents of the large files alone."""
    return replace(manifest, files=manifest.large).digest


def find(client: MlflowClient, manifest: Manifest, experiment: str) -> LoggedModel | None:
    """The oldest that is whole; the run's own experiment is asked first."""
    others = [e.experiment_id for e in client.search_experiments() if e.experiment_id != experiment]
    pages = [[experiment], *(others[i : i + PAGE] for i in range(0, len(others), PAGE))]
    for experiments in pages:
        tagged = f"tags.`{TAG}` = '{large_digest(manifest)}'"
        found = client.search_logged_models(experiments, tagged)
        for model in sorted(found, key=lambda one: int(one.creation_timestamp)):
            if model.status == LoggedModelStatus.READY and _is_whole(client, model, manifest):
                return model
    return None


def _is_whole(client: MlflowClient, model: LoggedModel, manifest: Manifest) -> bool:
    """A tag proves nothing: files may have been deleted. Names and sizes are asked of a server,
    contents are read where the files lie here."""
    folder = local_folder(model.artifact_location)
    try:
        if folder is not None:
            verify(folder, manifest.large)
            return True
        listed = client.list_logged_model_artifacts(model.model_id)
    except (MlflowException, OSError, WeightsError):
        return False
    sizes = {file.path: file.file_size for file in listed}
    return all(sizes.get(name) == about.size for name, about in manifest.large.items())


def _upload(client: MlflowClient, manifest: Manifest, run: Run) -> LoggedModel:
    experiment, run_id = run.info.experiment_id, run.info.run_id
    about = (
        f"The weights of {manifest.source} at {manifest.revision}, which packaged models name "
        "in their weights.json; those models cannot be loaded elsewhere once this is deleted."
    )
    tags = {TAG: large_digest(manifest), ABOUT: about[:5000], UPLOADED_BY: run_id}
    model = client.create_logged_model(experiment, name=NAME, tags=tags)
    try:
        with staging() as folder:
            for name, file in manifest.large.items():
                link_or_copy(kept(file.sha256), folder / name)
            client.log_model_artifacts(model.model_id, str(folder))
        first = find(client, manifest, experiment)  # of another machine, meanwhile
        if first is None:
            return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    except BaseException:
        with suppress(MlflowException):  # the error that is told is the one that came first
            client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
    client.delete_logged_model(model.model_id)
    return first
