"""Registered versions: made whole or not at all, found again by their tags."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from slmflow.errors import TrackingError
from slmflow.tracking.reason import reason

RUNTIMES = ("transformers_pipeline", "custom_onnx")
PROJECT_TAG = "slmflow"


@dataclass(frozen=True)
class Registered:
    name: str
    version: str
    alias: str | None  # None: a point of a sweep, which moves it to its best point in the end

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def register(
    logged_model_uri: str, name: str, tags: Mapping[str, str], alias: str | None
) -> Registered:
    """Make a version of ``models:/m-...`` with its tags and point the alias at it.

    Raises ``TrackingError``; then no version is left behind.
    """
    client = MlflowClient()
    version: ModelVersion | None = None
    try:
        _ensure_registered_model(client, name)
        model_id = logged_model_uri.removeprefix("models:/")
        version = client.create_model_version(
            name, logged_model_uri, tags=dict(tags), model_id=model_id
        )
        if alias is not None:
            client.set_registered_model_alias(name, alias, version.version)
    except BaseException as error:
        if version is not None:
            with suppress(MlflowException):
                client.delete_model_version(name, version.version)
        if not isinstance(error, MlflowException):
            raise
        raise TrackingError(
            f"the model was logged and checked as {logged_model_uri}, but the registry "
            f"{mlflow.get_registry_uri()} did not take it ({reason(error)}); repeat the command "
            "when it answers"
        ) from None
    return Registered(name, str(version.version), alias)


def point_alias(uri: str) -> str:
    """Point the alias of its kind at this version of the project's, and tell its name."""
    version = find_version(uri)
    if version is None:
        raise TrackingError(f"{uri} is no longer in the registry {mlflow.get_registry_uri()}")
    tags = version.tags
    alias = alias_of(tags["runtime"], tags["hardware"], tags["task"])
    MlflowClient().set_registered_model_alias(version.name, alias, version.version)
    return alias


def newest(name: str, runtime: str, task: str, hardware: str) -> Registered | None:
    """The newest version of one kind that this project registered."""
    wanted = {"runtime": runtime, "task": task, "hardware": hardware}
    versions = [
        version
        for version in MlflowClient().search_model_versions(f"name='{name}'")
        if PROJECT_TAG in version.tags and wanted.items() <= version.tags.items()
    ]
    if not versions:
        return None
    latest = max(versions, key=lambda version: int(version.version))
    return Registered(name, str(latest.version), alias_of(runtime, hardware, task))


def _ensure_registered_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def alias_of(runtime: str, hardware: str, task: str) -> str:
    """Chat models have the plain name; another task must not take it from them."""
    return _with_task(f"candidate-{runtime}-{hardware}", task)


def champion_of(hardware: str, task: str) -> str:
    """The alias of the version in use, whatever its runtime."""
    return _with_task(f"champion-{hardware}", task)


def _with_task(alias: str, task: str) -> str:
    return alias if task == "chat" else f"{alias}-{task}"


def find_version(uri: str) -> ModelVersion | None:
    """The version of a ``models:/name/version`` or ``models:/name@alias``, with its aliases;
    None for other URIs and for what the registry does not know."""
    if not uri.startswith("models:/"):
        return None
    name, separator, alias = uri.removeprefix("models:/").partition("@")
    client = MlflowClient()
    with suppress(MlflowException):
        if separator:
            found = client.get_model_version_by_alias(name, alias)
            return client.get_model_version(name, found.version)  # which knows all its aliases
        name, separator, number = name.partition("/")
        if separator:
            return client.get_model_version(name, number)
    return None


def version_tags(uri: str) -> dict[str, str]:
    """Tags of a registered version; empty for other URIs."""
    version = find_version(uri)
    return dict(version.tags) if version is not None else {}
