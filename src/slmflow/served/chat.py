"""The chat contract: OpenAI's Chat Completions request and response, as plain dictionaries.

https://platform.openai.com/docs/api-reference/chat
"""

import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from slmflow.served.answer import Answer
from slmflow.served.search import SearchOptions

ROLES = ("system", "user", "assistant")
OPTIONS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "seed": "seed"}
HARMLESS = {"user", "metadata", "custom_inputs", "model"}
MAX_CHOICES = 128  # OpenAI's own limit for n


class RequestError(ValueError):
    """A request that cannot be honoured as it stands; the message names the field."""


@dataclass(frozen=True)
class ChatRequest:
    messages: tuple[dict[str, str], ...]
    options: SearchOptions
    n: int = 1


def parse_request(row: Mapping[str, Any], defaults: SearchOptions) -> ChatRequest:
    """One request over the model's own search options. Fields that are None count as absent.

    Raises ``RequestError``: nothing that a caller asks for is silently ignored.
    """
    fields = {name: value for name, value in row.items() if not _absent(value)}
    messages = _messages(fields.pop("messages", None))
    if fields.pop("stream", False):
        raise RequestError("stream: predict() answers in one piece; call predict_stream()")
    n = _integer(fields.pop("n", 1), "n", 1, MAX_CHOICES)
    changes: dict[str, Any] = {}
    if "max_tokens" in fields:
        changes["max_new_tokens"] = _integer(fields.pop("max_tokens"), "max_tokens", 1, 2**31)
        changes["max_length"] = None
    if "stop" in fields:
        changes["stop"] = _stop(fields.pop("stop"))
    for name in ("frequency_penalty", "presence_penalty"):
        if fields.pop(name, 0):
            raise RequestError(
                f"{name} is not supported; leave it out, or package the model "
                "with search.repetition_penalty"
            )
    for name in set(fields) & set(OPTIONS):
        changes[OPTIONS[name]] = _number(fields.pop(name), name)
    unknown = sorted(set(fields) - HARMLESS)
    if unknown:
        raise RequestError(f"{unknown[0]} is not supported by this model")
    try:
        return ChatRequest(messages, defaults.changed(changes), n)
    except ValueError as error:
        raise RequestError(str(error).replace("search.", "", 1)) from None


def choices_of(request: ChatRequest) -> list[SearchOptions]:
    """The options of each of a request's ``n`` answers: seeds count up, so that answers differ."""
    seed = request.options.seed
    if seed is None:
        return [request.options] * request.n
    return [request.options.changed({"seed": (seed + i) % 2**31}) for i in range(request.n)]


def completion(answers: Sequence[Answer], model: str) -> dict[str, Any]:
    """A ``chat.completion`` object of one request's answers."""
    return _envelope(model, "chat.completion") | {
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text},
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ],
        "usage": _usage(answers),
    }


def chunks(pieces: Iterable[str | Answer], model: str) -> Iterable[dict[str, Any]]:
    """The ``chat.completion.chunk`` objects of one streamed answer; the last carries the usage."""
    envelope = _envelope(model, "chat.completion.chunk")
    role: dict[str, str] = {"role": "assistant"}
    for piece in pieces:
        if isinstance(piece, str):
            yield envelope | {"choices": [_delta(role | {"content": piece}, None)]}
            role = {}
        else:
            last = {"choices": [_delta(role, piece.finish_reason)], "usage": _usage([piece])}
            yield envelope | last


def _delta(delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _envelope(model: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _usage(answers: Sequence[Answer]) -> dict[str, int]:
    prompt = answers[0].prompt_tokens
    made = sum(answer.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
    }


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    given = _items(value)
    if not given:
        raise RequestError(
            'messages is missing or empty; give [{"role": "user", "content": "..."}]'
        )
    messages = tuple(_message(index, message) for index, message in enumerate(given))
    if not any(message["content"].strip() for message in messages):
        raise RequestError("messages hold no text; give at least one word")
    return messages


def _message(index: int, message: Any) -> dict[str, str]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise RequestError(f'{where} is not {{"role": ..., "content": ...}}')
    given = {name: value for name, value in message.items() if not _absent(value)}
    role = given.pop("role", None)
    if role not in ROLES:
        raise RequestError(f"{where}.role is {role!r}; allowed: {', '.join(ROLES)}")
    content = given.pop("content", None)
    if not isinstance(content, str):
        raise RequestError(f"{where}.content is {content!r}; give a text")
    given.pop("name", None)  # who speaks: allowed by the protocol, no part of any prompt
    if given:
        raise RequestError(f"{where}.{sorted(given)[0]} is not supported by this model")
    return {"role": role, "content": content}


def _stop(value: Any) -> list[str]:
    stop = [value] if isinstance(value, str) else _items(value)
    if stop is None or not all(isinstance(text, str) and text for text in stop):
        raise RequestError("stop: give a text, or a list of texts, none of them empty")
    return stop


def _items(value: Any) -> list[Any] | None:
    """The items of a list, tuple or array; None for anything else."""
    listed = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    return list(value) if listed else None


def _integer(value: Any, name: str, least: int, most: int) -> int:
    if not _is_number(value) or not least <= value <= most or int(value) != value:
        raise RequestError(f"{name} is {value!r}; allowed: whole numbers {least} to {most}")
    return int(value)


def _number(value: Any, name: str) -> float | int:
    if name in ("top_k", "seed"):
        return _integer(value, name, 0, 2**31 - 1)
    if not _is_number(value):
        raise RequestError(f"{name} is {value!r}; give a number")
    return float(value)


def _is_number(value: Any) -> bool:
    # Neither true and false, which Python counts with, nor more than a float can hold.
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and abs(value) < 2**63


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
