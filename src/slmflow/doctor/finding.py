"""What a check found out."""

from dataclasses import dataclass
from enum import StrEnum

from slmflow.errors import UserError


class Level(StrEnum):
    ok = "ok"
    warning = "warning"  # it may work, or not as one would want
    failure = "failure"  # it cannot work


@dataclass(frozen=True)
class Finding:
    """``found`` is a phrase; ``mend`` is what to type, one command or one override of a command."""

    check: str
    level: Level
    found: str
    mend: str = ""


class NotReady(UserError):
    """This machine cannot do what is configured (``doctor/precheck.py``)."""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.ok, found)


def warning(check: str, found: str, mend: str = "") -> Finding:
    return Finding(check, Level.warning, found, mend)


def failure(check: str, found: str, mend: str) -> Finding:
    return Finding(check, Level.failure, found, mend)
