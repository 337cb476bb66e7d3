"""Promotions in an order that all agree on: versions of the registered model ``NAME.promotions``.

A ticket names the promotion that it follows. Of the tickets that follow the same one, the smallest
number has won. MLflow's SQL stores give numbers one after another and show with each all those
before it, so whoever finds his own ticket finds the winner.
"""

import getpass
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random

from slmflow.errors import TrackingError

OWN = "promotion."  # how the tags begin that make a version a ticket
NONE = "none"
DESCRIPTION = (
    "Which version got which alias, when and why: one version here is one promotion. Written by "
    "slmflow, which also decides by them who was first; delete none."
)


@dataclass(frozen=True)
class Ticket:
    """A promotion that was asked for.

    ``follows``: the number of the one that had won before, 0 for none. ``replaces``: the version
    that it was judged against. ``tags`` are for the version that is promoted.
    """

    number: int
    follows: int
    alias: str
    version: str
    replaces: str | None
    carried_out: bool
    tags: Mapping[str, str]


def last_winner(tickets: Iterable[Ticket]) -> Ticket | None:
    """Of one alias: the end of the chain in which each follows the one before."""
    last: Ticket | None = None
    for ticket in sorted(tickets, key=lambda ticket: ticket.number):
        if ticket.follows == (last.number if last is not None else 0):
            last = ticket
    return last


def winner_beside(tickets: Iterable[Ticket], mine: int) -> Ticket:
    """The first of the tickets that follow what mine follows."""
    numbered = {ticket.number: ticket for ticket in tickets}
    if mine not in numbered:
        raise TrackingError(
            f"the registry {mlflow.get_registry_uri()} does not show yet what was written to it (a "
            "read replica that lags?); repeat the command in a minute: answers are kept"
        )
    beside = (one for one in numbered.values() if one.follows == numbered[mine].follows)
    return min(beside, key=lambda ticket: ticket.number)


def _is_passing(error: BaseException) -> bool:
    """Two writers met: SQLite was locked, or both inserted the same row."""
    passing = ("TEMPORARILY_UNAVAILABLE", "BAD_REQUEST")
    return isinstance(error, MlflowException) and error.error_code in passing


again_when_writers_meet = retry(
    retry=retry_if_exception(_is_passing),
    stop=stop_after_attempt(8),
    wait=wait_random(0, 0.5),
    reraise=True,
)


def read_tickets(client: MlflowClient, name: str, alias: str) -> list[Ticket]:
    versions = client.search_model_versions(f"name='{_log_of(name)}'")
    tickets = (_ticket(int(one.version), one.tags) for one in versions if one.tags)
    return [ticket for ticket in tickets if ticket.alias == alias]


@again_when_writers_meet
def take_ticket(client: MlflowClient, name: str, ticket: Ticket) -> int:
    """Its number. That of ``ticket`` is not read."""
    own = {
        "alias": ticket.alias,
        "version": ticket.version,
        "replaces": ticket.replaces or NONE,
        "follows": str(ticket.follows),
        "by": f"{_user()} on {socket.gethostname()}, process {os.getpid()}",
    }
    tags = {**ticket.tags, **{f"{OWN}{key}": value for key, value in own.items()}}
    source = f"models:/{name}/{ticket.version}"
    return int(client.create_model_version(_log_of(name), source, tags=tags).version)


def give_back_ticket(client: MlflowClient, name: str, number: int) -> None:
    """One that lost; left lying, it would only be read again."""
    with suppress(MlflowException):
        client.delete_model_version(_log_of(name), str(number))


def mark_carried_out(client: MlflowClient, name: str, number: int) -> None:
    client.set_model_version_tag(_log_of(name), str(number), f"{OWN}carried_out", "true")


@again_when_writers_meet
def ensure_log(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(_log_of(name), description=DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _ticket(number: int, tags: Mapping[str, str]) -> Ticket:
    replaces = tags.get(f"{OWN}replaces", NONE)
    return Ticket(
        number=number,
        follows=int(tags.get(f"{OWN}follows", -1)),
        alias=tags.get(f"{OWN}alias", ""),
        version=tags.get(f"{OWN}version", ""),
        replaces=replaces if replaces != NONE else None,
        carried_out=f"{OWN}carried_out" in tags,
        tags={key: value for key, value in tags.items() if not key.startswith(OWN)},
    )


def _log_of(name: str) -> str:
    return f"{name}.promotions"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "someone"
