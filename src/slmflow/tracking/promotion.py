"""An alias moves from the champion to a version that passed a gate against that champion.

MLflow sets an alias whatever it pointed at before, so of two people who promote at once, both
would succeed. Here each first takes a ticket (see ``tickets``), by which all agree on who was
first; no clock is read and nobody waits. The winner moves the alias and marks its ticket as carried
out. Who finds the last winner's ticket without the mark moves the alias in its place, before
anything else.

Guaranteed on MLflow's SQL stores (SQLite, PostgreSQL, MySQL), used directly or through any number
of ``mlflow server``: of the promotions that were judged against one champion, one wins. A promoter
that is killed blocks nobody: before its ticket nothing has happened; after it, its promotion stands
and the next promoter completes it. One that was paused and overtaken may move the alias late; it
reads the tickets after every move and puts that right at once.

Not guaranteed: an alias that is moved by hand takes no ticket. That is seen and kept if it is done
before the promoter looks for the last time, and lost in the few requests after that. A promoter
that was overtaken and is killed between its late move and its repair, or whose request a proxy
delivers after its death, leaves the alias on a version that was champion in its time. Where one was
killed between its move and its mark, and somebody then goes back to the champion before by hand,
the next promoter undoes that. MLflow's file store may give one number twice.
"""

from collections.abc import Mapping

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from slmflow.errors import TrackingError
from slmflow.tracking.reason import reason
from slmflow.tracking.tickets import (
    Ticket,
    again_when_writers_meet,
    ensure_log,
    give_back_ticket,
    last_winner,
    mark_carried_out,
    read_tickets,
    take_ticket,
    winner_beside,
)

TAG_LENGTH = 5000  # characters; servers of some years ago take no more


def incumbent(name: str, alias: str) -> str | None:
    """``models:/name/3`` of the version that the alias points at; None: it points at none."""
    try:
        return _uri(name, _aliased(MlflowClient(), name, alias))
    except MlflowException as error:
        raise _no_answer(error, f"{name}@{alias} cannot be looked up; is the server up?") from None


def promote(
    name: str, version: str, alias: str, expected: str | None, tags: Mapping[str, str]
) -> None:
    """Tag the version and move the alias to it, if the alias still points at ``expected``.

    ``expected`` is what ``incumbent`` said when the version was judged. Raises ``TrackingError``
    where another version has become champion since; then neither alias nor tags have changed.
    """
    try:
        _promote(MlflowClient(), name, version, alias, expected, _fitting(tags))
    except MlflowException as error:
        hint = f"see whether {name}@{alias} has moved, else repeat the command: answers are kept"
        raise _no_answer(error, hint) from None


def record(name: str, version: str, tags: Mapping[str, str]) -> None:
    """Write a decision that moves no alias on the version."""
    try:
        _tag(MlflowClient(), name, version, _fitting(tags))
    except MlflowException as error:
        raise _no_answer(error, f"the decision is not on {_uri(name, version)}") from None


def _promote(
    client: MlflowClient,
    name: str,
    version: str,
    alias: str,
    expected: str | None,
    tags: Mapping[str, str],
) -> None:
    ensure_log(client, name)
    follows = _settle(client, name, alias)
    uri, now = _uri(name, version), _uri(name, _aliased(client, name, alias))
    if now == uri:
        return  # an attempt before this one, or another person with the same version
    if now != expected:
        raise _changed(alias, expected, now)
    replaces = expected.rpartition("/")[2] if expected is not None else None
    ticket = Ticket(0, follows, alias, version, replaces, False, tags)
    number = take_ticket(client, name, ticket)
    winner = winner_beside(read_tickets(client, name, alias), number)
    if winner.number != number:
        give_back_ticket(client, name, number)
    if winner.version != version:
        raise _changed(alias, expected, _uri(name, winner.version))
    if _settle(client, name, alias) == winner.number:  # else it was champion, and was overtaken
        now = _uri(name, _aliased(client, name, alias))
        if now != uri:
            raise _changed(alias, expected, now)


def _settle(client: MlflowClient, name: str, alias: str) -> int:
    """Carry out the promotion that won last, unless that is done. Its number; 0: there is none.

    Looks again after every move: what was won meanwhile goes on top, so the last to move the alias
    leaves it where the tickets say.
    """
    carried: Ticket | None = None
    while True:
        last = last_winner(read_tickets(client, name, alias))
        if last is None:
            return 0
        if last.carried_out if carried is None else last.number == carried.number:
            return last.number
        _carry_out(client, name, last, last.replaces if carried is None else carried.version)
        carried = last


@again_when_writers_meet
def _carry_out(client: MlflowClient, name: str, ticket: Ticket, replaces: str | None) -> None:
    """An alias on another version than ``replaces`` was moved by hand, and stays there."""
    if _aliased(client, name, ticket.alias) == replaces:
        try:
            _tag(client, name, ticket.version, ticket.tags)
            client.set_registered_model_alias(name, ticket.alias, ticket.version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # deleted since: the alias stays
                raise
    mark_carried_out(client, name, ticket.number)


def _tag(client: MlflowClient, name: str, version: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


def _aliased(client: MlflowClient, name: str, alias: str) -> str | None:
    try:
        aliases: Mapping[str, str] = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return str(aliases[alias]) if alias in aliases else None


def _changed(alias: str, expected: str | None, now: str | None) -> TrackingError:
    return TrackingError(
        f"{alias} changed from {expected or 'no version'} to {now or 'no version'} while this was "
        "evaluated, and nothing was promoted; repeat the command to evaluate against that: answers "
        "are kept, so it is quick"
    )


def _no_answer(error: MlflowException, hint: str) -> TrackingError:
    return TrackingError(f"the registry {mlflow.get_registry_uri()}: {reason(error)}; {hint}")


def _fitting(tags: Mapping[str, str]) -> dict[str, str]:
    """Cut to what MLflow takes, and without the empty, which some stores refuse."""
    cut = "... (cut: too long for a tag)"
    return {
        key: value if len(value) <= TAG_LENGTH else value[: TAG_LENGTH - len(cut)] + cut
        for key, value in tags.items()
        if value
    }


def _uri(name: str, version: str | None) -> str | None:
    return f"models:/{name}/{version}" if version is not None else None
