"""What the readers of all formats give."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in its source, not checked."""

    place: str  # as a person finds it: line 3
    number: str  # its id, where it names none
    fields: Any = None
    problem: str | None = None  # why it could not be read


def parse_json(text: str) -> Any:
    """Raises ``ValueError`` in a few words, for what JSON itself does not allow, too."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:  # whose own message has a "line 1" in it
        raise ValueError(f"is no JSON: {error.msg}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("is JSON that is nested too deeply") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"is no JSON: {name} is no JSON number")
