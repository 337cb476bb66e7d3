"""What a row asks the model."""

import json
from collections.abc import Mapping
from typing import Any

ASKS = ("prompt", "messages")
MESSAGE = '{"role": "user", "content": "..."}'
LONGEST_SHOWN = 60


def request_of(row: Any) -> dict[str, Any]:
    """``{"prompt": text}`` or ``{"messages": [...]}``. Null counts as absent.

    ``messages`` may be a list or its JSON. Raises ``ValueError`` that says what is allowed. What
    roles a model knows, and how long a prompt may be, it says itself.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"is {_shown(row)}; a row is an object of fields")
    given = [name for name in ASKS if row.get(name) is not None]
    if len(given) != 1:
        has = "has prompt and messages" if given else "has no prompt"
        raise ValueError(f"{has}; give one of prompt, messages")
    if given == ["messages"]:
        return {"messages": _messages(row["messages"])}
    prompt = row["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt is {_shown(prompt)}; give a text that is not blank")
    return {"prompt": prompt}


def _messages(value: Any) -> list[dict[str, str]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"messages is no JSON; give a list: [{MESSAGE}]") from None
    if not isinstance(value, list) or not value:
        raise ValueError(f"messages is {_shown(value)}; give a list: [{MESSAGE}]")
    return [_message(index, message) for index, message in enumerate(value)]


def _message(index: int, value: Any) -> dict[str, str]:
    where = f"messages[{index}]"
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {_shown(value)}; give {MESSAGE}")
    given = {name: item for name, item in value.items() if item is not None}
    for name in ("role", "content"):
        if not isinstance(given.get(name), str):
            raise ValueError(f"{where}.{name} is {_shown(given.get(name))}; give a text")
    unknown = sorted(set(given) - {"role", "content"})
    if unknown:
        raise ValueError(f"{where} has {unknown[0]!r}; allowed: role, content")
    return given


def _shown(value: Any) -> str:
    shown = "absent" if value is None else repr(value)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[: LONGEST_SHOWN - 3]}..."
