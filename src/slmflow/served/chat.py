"""The chat contract: OpenAI's Chat Completions request and response, as plain dictionaries.

https://platform.openai.com/docs/api-reference/chat
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmflow.served.answer import Answer
from slmflow.served.request import (
    UNSUPPORTED,
    Asked,
    Fields,
    RequestError,
    is_absent,
    items,
    whole_text,
)
from slmflow.served.search import SearchOptions

ROLES = ("system", "user", "assistant")
SAME_ROLE = {"developer": "system"}  # OpenAI's newer word for it, which templates do not know


@dataclass(frozen=True)
class ChatRequest:
    messages: tuple[dict[str, str], ...]
    asked: Asked


def parse_request(row: Mapping[str, Any], defaults: SearchOptions) -> ChatRequest:
    """One request over the model's own search options. Fields that are None count as absent.

    Raises ``RequestError``: nothing that a caller asks for is silently ignored.
    """
    fields = Fields(row)
    messages = _messages(fields.take("messages"))
    return ChatRequest(messages, fields.asked(defaults))


class ChatReply:
    """The responses to one request: whole, or in chunks that share its id."""

    def __init__(self, model: str, asked: Asked) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._include_usage = asked.include_usage
        self._begun: set[int] = set()

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """A ``chat.completion`` object of all choices."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        return self._object("chat.completion", choices) | {"usage": usage(answers, len(answers))}

    def piece(self, index: int, text: str) -> dict[str, Any]:
        return self._chunk(index, {"content": text}, None)

    def end(self, index: int, answer: Answer) -> dict[str, Any]:
        return self._chunk(index, {}, answer.finish_reason)

    def total(self, answers: Sequence[Answer]) -> dict[str, Any] | None:
        """The last chunk, where ``stream_options.include_usage`` asks for it."""
        if not self._include_usage:
            return None
        return self._object("chat.completion.chunk", []) | {"usage": usage(answers, len(answers))}

    def _chunk(
        self, index: int, delta: dict[str, str], finish_reason: str | None
    ) -> dict[str, Any]:
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant"} | delta
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._object("chat.completion.chunk", [choice])
        return chunk | {"usage": None} if self._include_usage else chunk

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }


def usage(answers: Sequence[Answer], choices: int) -> dict[str, int]:
    """Token counts of all answers; ``choices`` answers in a row share one prompt."""
    prompt = sum(answer.prompt_tokens for answer in answers[::choices])
    made = sum(answer.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
    }


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    given = items(value)
    if not given:
        raise RequestError(
            'messages is missing or empty; give [{"role": "user", "content": "..."}]', "messages"
        )
    messages = tuple(_message(index, message) for index, message in enumerate(given))
    if not any(message["content"].strip() for message in messages):
        raise RequestError("messages hold no text; give at least one word", "messages")
    return messages


def _message(index: int, message: Any) -> dict[str, str]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise RequestError(f'{where} is not {{"role": ..., "content": ...}}', "messages")
    given = {name: value for name, value in message.items() if not is_absent(value)}
    role = given.pop("role", None)
    role = SAME_ROLE.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise RequestError(
            f"{where}.role is {role!r}; allowed: {', '.join((*ROLES, *SAME_ROLE))}", "messages"
        )
    content = whole_text(_content(given.pop("content", None), where), "messages")
    given.pop("name", None)  # who speaks: allowed by the protocol, no part of any prompt
    for name, asks in given.items():
        if items(asks) != []:
            raise RequestError(f"{where}.{name} {UNSUPPORTED}", "messages")
    return {"role": role, "content": content}


def _content(value: Any, where: str) -> str:
    """A text, or the texts of OpenAI's content parts, a line each."""
    if isinstance(value, str):
        return value
    parts = items(value)
    if not parts:
        raise RequestError(f"{where}.content is {value!r}; give a text", "messages")
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if kind == "text" else None
        if not isinstance(text, str) or set(part) > {"type", "text"}:
            raise RequestError(
                f'{where}.content[{index}] is not {{"type": "text", "text": "..."}}, the only '
                "kind of part that this model reads",
                "messages",
            )
        texts.append(text)
    return "\n".join(texts)
