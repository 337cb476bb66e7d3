"""The text contract: OpenAI's Completions request and response, as plain dictionaries.

https://platform.openai.com/docs/api-reference/completions
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slmflow.served.answer import Answer
from slmflow.served.chat import usage
from slmflow.served.request import Asked, Fields, RequestError, items, whole_text
from slmflow.served.search import SearchOptions


@dataclass(frozen=True)
class TextRequest:
    prompts: tuple[str, ...]
    asked: Asked


def parse_request(row: Mapping[str, Any], defaults: SearchOptions) -> TextRequest:
    """One request over the model's own search options. Raises ``RequestError``."""
    fields = Fields(row)
    if fields.has("response_format"):
        raise RequestError(
            "response_format belongs to /v1/chat/completions; leave it out", "response_format"
        )
    given = fields.take("prompt")
    prompts = [given] if isinstance(given, str) else items(given)
    if not prompts:
        raise RequestError("prompt is missing or empty; give a text, or a list of texts", "prompt")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise RequestError(
                f"prompt holds {prompt!r}; give a text, or a list of texts", "prompt"
            )
        whole_text(prompt, "prompt")
    return TextRequest(tuple(prompts), fields.asked(defaults))


class TextReply:
    """The responses to one request: whole, or in chunks that share its id.

    Choice ``index`` belongs to prompt ``index // n``.
    """

    def __init__(self, model: str, asked: Asked) -> None:
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._n = asked.n
        self._include_usage = asked.include_usage

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """A ``text_completion`` object of all choices."""
        choices = [
            _choice(index, answer.text, answer.finish_reason)
            for index, answer in enumerate(answers)
        ]
        return self._object(choices) | {"usage": usage(answers, self._n)}

    def piece(self, index: int, text: str) -> dict[str, Any]:
        return self._chunk(_choice(index, text, None))

    def end(self, index: int, answer: Answer) -> dict[str, Any]:
        return self._chunk(_choice(index, "", answer.finish_reason))

    def total(self, answers: Sequence[Answer]) -> dict[str, Any] | None:
        """The last chunk, where ``stream_options.include_usage`` asks for it."""
        if not self._include_usage:
            return None
        return self._object([]) | {"usage": usage(answers, self._n)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = self._object([choice])
        return chunk | {"usage": None} if self._include_usage else chunk

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }


def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
