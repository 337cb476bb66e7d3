"""Evaluation sets: JSON Lines with questions and the answers that count as right."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmflow.errors import DataError
from slmflow.served.chat import ROLES

SHOWN_ERRORS = 20


@dataclass(frozen=True)
class Example:
    """One row: messages of a chat, or a prompt as it stands; one or more right answers."""

    id: str
    references: tuple[str, ...]
    messages: tuple[Mapping[str, str], ...] = ()
    prompt: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def request(self) -> dict[str, Any]:
        if self.prompt is not None:
            return {"prompt": self.prompt}
        return {"messages": [dict(message) for message in self.messages]}

    @property
    def question(self) -> str:
        return self.prompt if self.prompt is not None else self.messages[-1]["content"]


@dataclass(frozen=True)
class Dataset:
    name: str
    path: Path
    digest: str  # SHA-256 of the file
    examples: tuple[Example, ...]


def read_dataset(name: str, path: Path, limit: int | None) -> Dataset:
    """The first ``limit`` rows. Raises ``DataError`` that lists every bad row with its line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"data.path={path} cannot be read: {error.strerror}") from None
    examples: list[Example] = []
    problems: list[str] = []
    for number, line in enumerate(content.split(b"\n"), start=1):  # texts may hold other breaks
        if not line.strip():
            continue
        try:
            examples.append(_example(_parsed(line), number))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        more = len(problems) - SHOWN_ERRORS
        tail = [f"and {more} more"] if more > 0 else []
        raise DataError("\n  ".join([f"{path}:", *problems[:SHOWN_ERRORS], *tail]))
    if not examples:
        raise DataError(f"{path} has no rows")
    return Dataset(name, path, hashlib.sha256(content).hexdigest(), tuple(examples[:limit]))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:  # whose own message has a "line 1" in it
        raise ValueError(f"is no JSON: {error.msg}, column {error.colno}") from None


def _example(row: Any, number: int) -> Example:
    if not isinstance(row, dict):
        raise ValueError("is no JSON object")
    unknown = sorted(set(row) - {"id", "messages", "prompt", "references", "tags"})
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}")
    if ("messages" in row) == ("prompt" in row):
        raise ValueError("needs either messages or prompt")
    references = row.get("references")
    if not references or not _texts(references):
        raise ValueError("references must be a list of at least one text")
    messages = row.get("messages", [])
    if "messages" in row and not _are_messages(messages):
        raise ValueError(f"messages must be role ({', '.join(ROLES)}) and content, at least one")
    if "prompt" in row and not (isinstance(row["prompt"], str) and row["prompt"].strip()):
        raise ValueError("prompt must be a text")
    tags = row.get("tags", {})
    if not isinstance(tags, dict):
        raise ValueError("tags must be an object")
    return Example(
        str(row.get("id", number)),
        tuple(references),
        tuple(messages),
        row.get("prompt"),
        {key: str(value) for key, value in tags.items()},
    )


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_message(item) for item in value)


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in ROLES
        and isinstance(value.get("content"), str)
    )
