"""Reading a request field by field, so that nothing it asks for is ignored."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from slmflow.served.search import SearchOptions

MAX_CHOICES = 128  # OpenAI's own limit for n
HARMLESS = frozenset(
    {"user", "metadata", "model", "custom_inputs", "safety_identifier", "prompt_cache_key"}
)
"""Fields that say nothing about the answer; ``model`` is checked by who serves several."""

ASKS_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "modalities": (["text"],),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
}
"""Fields that no model of this project supports, with the values that ask for nothing."""

UNSUPPORTED = "is not supported by this model; leave it out"


class RequestError(ValueError):
    """A request that cannot be honoured as it stands. ``field`` names what is wrong, ``code``
    is OpenAI's word for it where it has one."""

    def __init__(self, message: str, field: str | None = None, code: str | None = None) -> None:
        super().__init__(_sendable(message))
        self.field = None if field is None else _sendable(field)
        self.code = code

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {
            "message": str(self),
            "type": "invalid_request_error",
            "param": self.field,
            "code": self.code,
        }


@dataclass(frozen=True)
class Asked:
    """What requests of every kind may ask for. ``schema`` is a JSON schema that the answer must
    follow, as text."""

    options: SearchOptions
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    schema: str | None = None


class Fields:
    """The fields of one request; those that are None, or an empty cell, count as absent.

    Each is taken once; ``asked`` refuses what nobody took.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._given = {name: value for name, value in row.items() if not is_absent(value)}

    def take(self, name: str, default: Any = None) -> Any:
        return self._given.pop(name, default)

    def has(self, name: str) -> bool:
        return name in self._given

    def asked(self, defaults: SearchOptions) -> Asked:
        """The options over the model's own. Raises ``RequestError``."""
        stream = self._flag("stream")
        n = integer(self.take("n", 1), "n", 1, MAX_CHOICES)
        changes = self._lengths() | self._numbers()
        if self.has("stop"):
            changes["stop"] = _stop(self.take("stop"))
        include_usage = self._include_usage(stream)
        schema = _schema(self.take("response_format"))
        self._refuse_the_rest()
        try:
            return Asked(defaults.changed(changes), n, stream, include_usage, schema)
        except ValueError as error:
            message = str(error).replace("search.", "")
            named = [name for name in changes if name in message]
            raise RequestError(message, named[0] if named else None) from None

    def _lengths(self) -> dict[str, Any]:
        given = {
            name: integer(self.take(name), name, 1, 2**31)
            for name in ("max_tokens", "max_completion_tokens")
            if self.has(name)
        }
        if len(set(given.values())) > 1:
            raise RequestError(
                f"max_tokens is {given['max_tokens']} and max_completion_tokens is "
                f"{given['max_completion_tokens']}; give one of them",
                "max_completion_tokens",
            )
        return {"max_new_tokens": min(given.values()), "max_length": None} if given else {}

    def _numbers(self) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty"):
            if self.has(name):
                changes[name] = number(self.take(name), name)
        for name in ("top_k", "seed"):
            if self.has(name):
                changes[name] = integer(self.take(name), name, 0, 2**31 - 1)
        return changes

    def _flag(self, name: str) -> bool:
        value = self.take(name, False)
        if not is_flag(value):
            raise RequestError(f"{name} is {value!r}; allowed: true, false", name)
        return bool(value)

    def _include_usage(self, stream: bool) -> bool:
        options = self.take("stream_options")
        if options is None:
            return False
        if not stream:
            raise RequestError("stream_options is given without stream: true", "stream_options")
        if not isinstance(options, Mapping) or not set(options) <= {"include_usage"}:
            raise RequestError(
                'stream_options: give {"include_usage": true}, or leave it out', "stream_options"
            )
        value = options.get("include_usage", False)
        if not is_flag(value):
            raise RequestError(
                f"stream_options.include_usage is {value!r}; allowed: true, false",
                "stream_options",
            )
        return bool(value)

    def _refuse_the_rest(self) -> None:
        for name, value in sorted(self._given.items()):
            if name in HARMLESS or any(_same(value, nothing) for nothing in _nothing(name)):
                continue
            raise RequestError(f"{name} {UNSUPPORTED}", name)


def _sendable(text: str) -> str:
    """Names of fields may hold halves of characters, which no response can."""
    return text.encode("utf-8", "replace").decode()


def is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def items(value: Any) -> list[Any] | None:
    """The items of a list, tuple or array; None for anything else."""
    listed = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    return list(value) if listed else None


def whole_text(value: str, name: str) -> str:
    """The text, where it is one that tokenizers read: JSON can write halves of characters, and a
    NUL ends a text for the ONNX runtime's."""
    if "\0" in value:
        raise RequestError(f"{name} holds a NUL character, which is no text", name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RequestError(
            f"{name} holds half of a surrogate pair, which is no text", name
        ) from None
    return value


def integer(value: Any, name: str, least: int, most: int) -> int:
    if not _is_number(value) or not least <= value <= most or int(value) != value:
        raise RequestError(f"{name} is {value!r}; allowed: whole numbers {least} to {most}", name)
    return int(value)


def number(value: Any, name: str) -> float:
    if not _is_number(value):
        raise RequestError(f"{name} is {value!r}; give a number", name)
    return float(value)


def is_flag(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # numpy has its own


def _is_number(value: Any) -> bool:
    # Neither true and false, which Python counts with, nor more than a float can hold.
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and abs(value) < 2**63


def _nothing(name: str) -> tuple[Any, ...]:
    return ASKS_NOTHING.get(name, ())


def _same(value: Any, nothing: Any) -> bool:
    if is_flag(value) or is_flag(nothing):  # False is 0 in Python
        return is_flag(value) and is_flag(nothing) and bool(value) == bool(nothing)
    listed = items(value)  # an array compares item by item
    return bool((value if listed is None else listed) == nothing)


def _stop(value: Any) -> list[str]:
    stop = [value] if isinstance(value, str) else items(value)
    if stop is None or not all(isinstance(text, str) and text for text in stop):
        raise RequestError("stop: give a text, or a list of texts, none of them empty", "stop")
    return [whole_text(text, "stop") for text in stop]


def _schema(value: Any) -> str | None:
    """The JSON schema that ``response_format`` asks for."""
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return '{"type": "object"}'
    if kind != "json_schema":
        raise RequestError(
            'response_format: give {"type": "text"}, {"type": "json_object"} or '
            '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
            "response_format",
        )
    held = value.get("json_schema")
    schema = held.get("schema") if isinstance(held, Mapping) else None
    if not isinstance(schema, Mapping):
        raise RequestError(
            "response_format.json_schema.schema is missing; give a JSON schema", "response_format"
        )
    whole_text(json.dumps(schema, ensure_ascii=False), "response_format")
    return json.dumps(schema)
