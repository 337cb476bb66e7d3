"""One row of an evaluation set: what is asked, and what its answer is judged by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """Either the messages of a chat, or a prompt that is continued as it stands.

    A row without references and checks can still show agreement, parity and speed.
    """

    id: str
    messages: tuple[Mapping[str, str], ...] = ()
    prompt: str | None = None
    references: tuple[str, ...] = ()  # right answers
    tags: Mapping[str, str] = field(default_factory=dict)
    regex: str | None = None  # must be found in the answer (re.search)
    json_schema: Mapping[str, Any] | None = None  # the answer must be JSON that follows it
    number: float | None = None  # must be the last number of the answer

    @property
    def request(self) -> dict[str, Any]:
        if self.prompt is not None:
            return {"prompt": self.prompt}
        return {"messages": [dict(message) for message in self.messages]}

    @property
    def question(self) -> str:
        """The last text of the user."""
        if self.prompt is not None:
            return self.prompt
        return [m["content"] for m in self.messages if m["role"] == "user"][-1]

    def as_row(self) -> dict[str, Any]:
        """As a source would hold it, absent fields left out."""
        row = {"id": self.id, **self.request}
        row |= {"references": list(self.references) or None, "tags": dict(self.tags) or None}
        row |= {"regex": self.regex, "json_schema": self.json_schema, "number": self.number}
        return {name: value for name, value in row.items() if value is not None}
