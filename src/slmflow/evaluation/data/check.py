"""A row as a source holds it, checked field by field, becomes an example."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.validators import Draft202012Validator, validator_for

from slmflow.evaluation.data.example import Example
from slmflow.served.chat import ROLES, SAME_ROLE

ASKS = ("messages", "question", "prompt")
FIELDS = ("id", *ASKS, "references", "reference", "tags", "regex", "json_schema", "number")
MESSAGE = '{"role": "user", "content": "..."}'


def example_from(row: Any, number: str) -> Example:
    """``number`` is the id of a row that names none. Null counts as absent.

    ``question`` is short for one message of the user, ``reference`` for one right answer.
    Raises ``ValueError`` that says what is wrong and what is allowed.
    """
    if not isinstance(row, Mapping):
        raise ValueError("is no object of fields")
    given = {name: value for name, value in row.items() if value is not None}
    refuse_unknown("field", given, FIELDS)
    _require_whole_text(given)
    messages, prompt = _asked(given)
    return Example(
        _id(given.get("id", number)),
        messages,
        prompt,
        _references(given),
        _tags(given.get("tags", {})),
        _regex(given["regex"]) if "regex" in given else None,
        _json_schema(given["json_schema"]) if "json_schema" in given else None,
        _number(given["number"]) if "number" in given else None,
    )


def refuse_unknown(kind: str, given: Iterable[Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ValueError(f"unknown {kind} {name!r}{hint}; allowed: {', '.join(known)}")


def _require_whole_text(row: Mapping[str, Any]) -> None:
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which no model can read") from None


def _asked(row: Mapping[str, Any]) -> tuple[tuple[dict[str, str], ...], str | None]:
    given = [name for name in ASKS if name in row]
    if len(given) != 1:
        has = f"has {' and '.join(given)}" if given else "asks nothing"
        raise ValueError(f"{has}; give one of {', '.join(ASKS)}")
    if "messages" in row:
        return _messages(row["messages"]), None
    text = _text(given[0], row[given[0]])
    if "prompt" in row:
        return (), text
    return ({"role": "user", "content": text},), None


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"messages is {_shown(value)}; give a list: [{MESSAGE}]")
    messages = tuple(_message(index, message) for index, message in enumerate(value))
    if not any(m["role"] == "user" and m["content"].strip() for m in messages):
        raise ValueError("messages hold no text of role user")
    return messages


def _message(index: int, value: Any) -> dict[str, str]:
    where = f"messages[{index}]"
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {_shown(value)}; give {MESSAGE}")
    given = {name: item for name, item in value.items() if item is not None}
    refuse_unknown(f"field of {where}", given, ("role", "content"))
    role, content = given.get("role"), given.get("content")
    if role not in (*ROLES, *SAME_ROLE):
        allowed = ", ".join((*ROLES, *SAME_ROLE))
        raise ValueError(f"{where}.role is {_shown(role)}; allowed: {allowed}")
    if not isinstance(content, str):
        raise ValueError(f"{where}.content is {_shown(content)}; give a text")
    return {"role": role, "content": content}


def _id(value: Any) -> str:
    # bool: true and false are int, too
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"id is {_shown(value)}; give a text or a whole number")
    return str(value)


def _references(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "references" in row and "reference" in row:
        raise ValueError("has reference and references; give one of them")
    if "reference" in row:
        return (_text("reference", row["reference"]),)
    value = row.get("references", [])
    if isinstance(value, str):
        return (_text("references", value),)
    if not isinstance(value, list):
        raise ValueError(f"references is {_shown(value)}; give a list of texts, or one text")
    return tuple(_text(f"references[{index}]", item) for index, item in enumerate(value))


def _tags(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f'tags is {_shown(value)}; give an object: {{"topic": "cities"}}')
    return {str(name): _tag(name, item) for name, item in value.items() if item is not None}


def _tag(name: Any, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return json.dumps(value)
    raise ValueError(f"tags.{name} is {_shown(value)}; give a text, a number, true or false")


def _regex(value: Any) -> str:
    pattern = _text("regex", value)
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"regex {_shown(pattern)} is no regular expression: {error}") from None
    return pattern


def _json_schema(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f'json_schema is {_shown(value)}; give an object: {{"type": "object"}}')
    fault = _schema_fault(json.dumps(value, sort_keys=True))
    if fault is not None:
        raise ValueError(f"json_schema is no JSON schema: {fault}")
    return dict(value)


@lru_cache(maxsize=256)  # many rows share one, and a check takes milliseconds
def _schema_fault(text: str) -> str | None:
    schema = json.loads(text)
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        where = ".".join(str(part) for part in error.absolute_path)
        return f"{where}: {error.message}" if where else error.message
    except RecursionError:
        return "it is nested too deeply"
    # Another document would be fetched from the network while answers are judged.
    remote = [ref for ref in _refs(schema) if not ref.startswith("#")]
    return f"$ref {remote[0]!r} points outside of it; allowed: #..." if remote else None


def _refs(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _refs(item)


def _number(value: Any) -> float:
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise ValueError(f"number is {_shown(value)}; give a finite number: 12 or 3.5")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {_shown(value)}; give a text that is not blank")
    return value


def _shown(value: Any) -> str:
    shown = "absent" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
