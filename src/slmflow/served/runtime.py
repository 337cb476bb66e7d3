"""What a runtime must offer so that both runtimes answer alike."""

from collections.abc import Generator, Sequence
from typing import Any, Protocol

import numpy as np

from slmflow.served.search import SearchOptions
from slmflow.served.template import ChatTemplate


class SchemaError(ValueError):
    """A JSON schema that this runtime cannot hold an answer to."""


class LogitsUnavailable(RuntimeError):
    """Logits that this model does not give: of these tokens, or of more than the last one."""


class Runtime(Protocol):
    """A loaded model: tokenizer, template and the loop that makes tokens."""

    context_length: int
    """Tokens that prompt and answer may have together."""

    eos_ids: frozenset[int]
    """Tokens that end an answer; none of them is part of its text."""

    pad_id: int
    """What fills up the shorter prompts of a batch."""

    def template(self) -> ChatTemplate:
        """The model's chat template; raises ``TemplateError`` where it has none."""

    def encode(self, text: str, rendered: bool) -> list[int]:
        """Token ids. ``rendered``: the text comes from the chat template, which has already
        written every special token that belongs there."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""

    def check_schema(self, schema: str) -> None:
        """Raise ``SchemaError`` where answers cannot be held to this JSON schema."""

    def steps(
        self,
        prompts: Sequence[Sequence[int]],
        options: SearchOptions,
        new_tokens: int,
        schema: str | None = None,
    ) -> Generator[Sequence[int], None, None]:
        """Yield one token a prompt and step, at most ``new_tokens`` times.

        ``schema`` holds the answer to a JSON schema that passed ``check_schema``; such a prompt
        comes alone.

        Ends early when every prompt has met an end token; what a prompt yields after its own end
        token means nothing. Closing the iterator stops the work.
        """

    def logits(self, ids: Sequence[int], last: int) -> np.ndarray[Any, Any]:
        """The logits after each of the last ``last`` tokens of ``ids``, read in one pass.

        float32, ``last`` rows, one column a token of the vocabulary. Raises ``LogitsUnavailable``.
        """


def check_logits(tokens: int, last: int, context_length: int) -> None:
    """Raise ``LogitsUnavailable`` where a model cannot read so many tokens at once."""
    if not 1 <= last <= tokens:
        raise ValueError(f"logits of the last {last} of {tokens} tokens; allowed: 1 to {tokens}")
    if tokens > context_length:
        raise LogitsUnavailable(
            f"{tokens} tokens are more than the model's context, {context_length}"
        )
