"""OpenAI's names for what this project has: search options out, replies in."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from slmflow.answering.endpoint_http import Failed
from slmflow.answering.reply import Reply
from slmflow.errors import ConfigError
from slmflow.served.search import SearchOptions

T = TypeVar("T")
CHAT, COMPLETIONS = "/chat/completions", "/completions"
SENT = {
    "max_new_tokens": "max_tokens",
    **{name: name for name in ("temperature", "top_p", "seed", "stop")},
    **{name: name for name in ("frequency_penalty", "presence_penalty")},
}
"""Search options that OpenAI's API has, and what they are called there."""


def sent_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Search options under OpenAI's names. Raises ``ConfigError`` for what cannot be sent.

    An option that the API does not have may be given where it changes nothing.
    """
    neutral = {
        option.name: getattr(SearchOptions(), option.name) for option in fields(SearchOptions)
    }
    impossible = {
        name: value
        for name, value in parameters.items()
        if name not in SENT and (name not in neutral or value != neutral[name])
    }
    if impossible:
        given = ", ".join(f"search.{name}={value}" for name, value in impossible.items())
        raise ConfigError(
            f"{given} cannot be sent to an OpenAI-compatible server; allowed there: "
            f"{', '.join(SENT)}. Leave the others out, or compare packaged models only"
        )
    return {
        sent: list(parameters[name]) if name == "stop" else parameters[name]
        for name, sent in SENT.items()
        if parameters.get(name) not in (None, [], ())
    }


def request_of(
    row: Mapping[str, Any], options: Mapping[str, Any], completes: bool
) -> tuple[str, dict[str, Any]]:
    """Path and body. A prompt is a user's message, except where the server ``completes``."""
    if row.get("messages"):
        return CHAT, {**options, "messages": list(row["messages"])}
    if completes:
        return COMPLETIONS, {**options, "prompt": row["prompt"]}
    return CHAT, {**options, "messages": [{"role": "user", "content": row["prompt"]}]}


def reply_of(response: Mapping[str, Any]) -> Reply:
    """Of a whole chat completion or completion. Raises ``Failed``."""

    def read() -> Reply:
        choice = response["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        usage = response.get("usage") or {}
        return Reply(
            text or "",
            choice.get("finish_reason"),
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
        )

    return _well_formed(read)


def names_of(listed: Mapping[str, Any]) -> list[str]:
    """Of GET /models. Raises ``Failed``."""
    return _well_formed(lambda: [str(model["id"]) for model in listed["data"]])


def _well_formed(read: Callable[[], T]) -> T:
    try:
        return read()
    except (AttributeError, KeyError, IndexError, TypeError):
        raise Failed("it answers, but not in OpenAI's form; is the path right?") from None
