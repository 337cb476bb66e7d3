"""MLflow's stores for a tracking server over HTTP, made fit for one that goes away in mid-run.

MLflow sends what got no answer again, also where the server had carried it out: two runs, two
logged models, or an error because a run has the model already. Here whatever makes something is
looked for before it is sent again, and a download that broke off is begun anew.
"""

import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelTag, Run, RunTag, ViewType
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service.utils import _tracking_store_registry
from mlflow.utils import request_utils
from mlflow.utils.credentials import get_default_host_creds

from slmflow.tracking.patience import made_once, patient, repeated

REQUEST = "slmflow.request"  # a tag: which request made this run or logged model


class PatientStore(RestStore):  # type: ignore[misc]  # MLflow has no types
    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: list[RunTag], run_name: str
    ) -> Run:
        request = uuid.uuid4().hex
        tags = [*tags, RunTag(REQUEST, request)]
        make = partial(super().create_run, experiment_id, user_id, start_time, tags, run_name)

        def find() -> Run | None:
            where = f"tags.`{REQUEST}` = '{request}'"
            return _only(self.search_runs([experiment_id], where, ViewType.ALL, max_results=1))

        return made_once(make, find)

    def create_logged_model(
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: list[LoggedModelTag] | None = None,
        **about: Any,
    ) -> LoggedModel:
        request = uuid.uuid4().hex
        tags = [*(tags or []), LoggedModelTag(REQUEST, request)]
        make = partial(
            super().create_logged_model, experiment_id, name, source_run_id, tags, **about
        )

        def find() -> LoggedModel | None:
            where = f"tags.`{REQUEST}` = '{request}'"
            return _only(self.search_logged_models([experiment_id], where, max_results=1))

        return made_once(make, find)

    def create_experiment(self, name: str, *arguments: Any, **about: Any) -> Any:
        make = partial(super().create_experiment, name, *arguments, **about)

        def find() -> Any:
            found = self.get_experiment_by_name(name)
            return None if found is None else found.experiment_id

        return made_once(make, find)

    def log_outputs(self, run_id: str, models: list[LoggedModelOutput]) -> None:
        def find() -> bool | None:
            outputs = self.get_run(run_id).outputs
            known = {one.model_id for one in outputs.model_outputs} if outputs else set()
            return {one.model_id for one in models} <= known or None

        made_once(partial(super().log_outputs, run_id, models), find)

    def log_spans(self, location: str, spans: list[Any], tracking_uri: str | None = None) -> Any:
        if spans and self._get_server_version(self.get_host_creds()) is None:
            # MLflow asks for it once, and keeps in mind for good that no answer came.
            self.get_experiment(location)
            RestStore._get_server_version.cache_clear()
        return repeated(partial(super().log_spans, location, spans, tracking_uri))

    def _call_endpoint(self, *arguments: Any, **about: Any) -> Any:
        return repeated(partial(super()._call_endpoint, *arguments, **about))


class PatientArtifacts(MlflowArtifactsRepository):  # type: ignore[misc]  # MLflow has no types
    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        repeated(partial(super()._download_file, remote_file_path, local_path))


def install() -> None:
    """From now on, in this process. Before the first request: MLflow keeps its sessions."""
    request_utils.Retry = patient
    for scheme in ("http", "https"):
        _tracking_store_registry.register(scheme, _store)
    _artifact_repository_registry.register("mlflow-artifacts", PatientArtifacts)


def _store(store_uri: str, **_: Any) -> PatientStore:
    return PatientStore(partial(get_default_host_creds, store_uri))


def _only(found: Sequence[Any]) -> Any:
    return found[0] if found else None
