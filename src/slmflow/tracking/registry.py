"""Registered versions: made whole or not at all, found again by their tags."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from slmflow.errors import ServerAway, TrackingError
from slmflow.redaction import redacted
from slmflow.tracking.patience import made_once, unanswered
from slmflow.tracking.reason import reason

RUNTIMES = ("transformers_pipeline", "custom_onnx")
PROJECT_TAG = "slmflow"
WAITS_FOR_ALIAS = "slmflow.waits_for_alias"  # which one; gone once the version is whole
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""How a registry says that it has no such model or version; the second of an alias, or of a number
that is none."""


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

    The version and its tags are one request. Until its alias is set a tag says so, and no reader
    here takes the version for one of the project's; whoever registers next completes it.
    Raises ``TrackingError``; then no version is left behind, or, where the registry went away
    (``ServerAway``), none that readers see. Where only that tag could not be removed, the version
    stands with its alias, and the error says so.
    """
    client = MlflowClient()
    version: ModelVersion | None = None
    before: str | None = None  # where the alias points until then
    whole = False
    try:
        _ensure_registered_model(client, name)
        _complete_others(client, name)
        waiting = {} if alias is None else {WAITS_FOR_ALIAS: alias}
        version = _version_of(client, logged_model_uri, name, {**tags, **waiting})
        if alias is not None:
            before = client.get_registered_model(name).aliases.get(alias)
            _point(client, version, alias, before)
            whole = True  # what fails from here on, _complete_others mends
            client.delete_model_version_tag(name, version.version, WAITS_FOR_ALIAS)
    except BaseException as error:
        if version is not None and not whole:
            _take_back(client, version, alias, before)
        if not isinstance(error, MlflowException):
            raise
        if version is not None and whole:
            raise _still_marked(Registered(name, str(version.version), alias), error) from None
        raise _not_registered(logged_model_uri, name, error) from None
    return Registered(name, str(version.version), alias)


def _version_of(
    client: MlflowClient, logged_model_uri: str, name: str, tags: Mapping[str, str]
) -> ModelVersion:
    """The one version of this logged model, made where there is none."""

    def find() -> ModelVersion | None:
        where = f"name='{name}' and source_path='{logged_model_uri}'"
        first, *twins = sorted(client.search_model_versions(where), key=_number) or [None]
        for twin in twins:  # a proxy had handed on the first request late
            client.delete_model_version(name, twin.version)
        return first

    def make() -> ModelVersion:
        model_id = logged_model_uri.removeprefix("models:/")
        return client.create_model_version(
            name, logged_model_uri, tags=dict(tags), model_id=model_id
        )

    return find() or (made_once(make, find) and find())


def _point(client: MlflowClient, version: ModelVersion, alias: str, at: str | None) -> None:
    """An alias that has gone on to a newer version stays there."""
    if int(at or 0) < _number(version):
        client.set_registered_model_alias(version.name, alias, version.version)


def _complete_others(client: MlflowClient, name: str) -> None:
    """Versions whose run was killed, or lost the registry, before the alias was set: each was
    logged and checked."""
    aliases: Mapping[str, str] | None = None
    for version in sorted(client.search_model_versions(f"name='{name}'"), key=_number):
        alias = version.tags.get(WAITS_FOR_ALIAS)
        if alias is None:
            continue
        if aliases is None:
            aliases = client.get_registered_model(name).aliases
        with suppress(MlflowException):  # its own run takes it back at this moment
            _point(client, version, alias, aliases.get(alias))
            client.delete_model_version_tag(name, version.version, WAITS_FOR_ALIAS)


def _take_back(
    client: MlflowClient, version: ModelVersion, alias: str | None, before: str | None
) -> None:
    """The alias goes with the version where it was set and only the answer was missing: then it
    points again at where it did."""
    with suppress(MlflowException):
        client.delete_model_version(version.name, version.version)
        if alias is None or before is None:
            return
        if alias not in client.get_registered_model(version.name).aliases:
            client.set_registered_model_alias(version.name, alias, before)


def _not_registered(uri: str, name: str, error: MlflowException) -> TrackingError:
    told = (
        f"the model was logged and checked as {uri}, but the registry "
        f"{redacted(mlflow.get_registry_uri())} did not take it ({redacted(reason(error))})"
    )
    if not unanswered(error):
        return TrackingError(f"{told}; repeat the command when it answers")
    return ServerAway(
        f"{told}. If a version of {name} was made nevertheless, nobody takes it for one before "
        "the next packaging run has completed it; repeat the command when it answers"
    )


def _still_marked(made: Registered, error: MlflowException) -> TrackingError:
    """Not ``ServerAway``, after which the command is repeated: that would make a second version."""
    call = f"delete_model_version_tag({made.name!r}, {made.version!r}, {WAITS_FOR_ALIAS!r})"
    return TrackingError(
        f"{made.uri} is registered and its alias {made.alias} points at it, so that there is "
        f"nothing to repeat; only its tag {WAITS_FOR_ALIAS} could not be removed "
        f"({redacted(reason(error))}). While it is there, commands that are given no "
        "version pass over this one. The next packaging run of this model removes it, or: "
        f'python -c "from mlflow import MlflowClient; MlflowClient().{call}"'
    )


def point_alias(uri: str) -> str:
    """Point the alias of its kind at this version of the project's, and tell its name."""
    version = find_version(uri)
    if version is None:
        raise TrackingError(f"{uri} is no longer in the registry {mlflow.get_registry_uri()}")
    tags = version.tags
    alias = alias_of(tags["runtime"], tags["hardware"], tags["task"])
    MlflowClient().set_registered_model_alias(version.name, alias, version.version)
    return alias


def current(name: str, runtime: str, task: str, hardware: str) -> Registered | None:
    """The version of one kind that commands take where none is named: the one its alias points
    at, which reruns and a sweep's losing points do not move; without the alias, the newest."""
    client = MlflowClient()
    wanted = {"runtime": runtime, "task": task, "hardware": hardware}
    versions = [
        version
        for version in client.search_model_versions(f"name='{name}'")
        if PROJECT_TAG in version.tags and wanted.items() <= version.tags.items()
        if WAITS_FOR_ALIAS not in version.tags
    ]
    if not versions:
        return None
    alias = alias_of(runtime, hardware, task)
    at = client.get_registered_model(name).aliases.get(alias)
    pointed = [version for version in versions if str(version.version) == str(at)]
    taken = max(pointed or versions, key=_number)
    return Registered(name, str(taken.version), alias)


def _number(version: ModelVersion) -> int:
    return int(version.version)


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
    None for other URIs and for what the registry says that it does not have.

    Raises ``TrackingError`` where it does not answer (``ServerAway``) or does not permit to look.
    """
    if not uri.startswith("models:/"):
        return None
    try:
        return _look_up(uri.removeprefix("models:/"))
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return None
        kind = ServerAway if unanswered(error) else TrackingError
        raise kind(
            f"the registry {redacted(mlflow.get_registry_uri())} does not say whether "
            f"{redacted(uri)} is there ({redacted(reason(error))})"
        ) from None


def _look_up(named: str) -> ModelVersion | None:
    client = MlflowClient()
    name, separator, alias = named.partition("@")
    if separator:
        found = client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, found.version)  # which knows all its aliases
    name, separator, number = named.partition("/")
    return client.get_model_version(name, number) if separator else None
