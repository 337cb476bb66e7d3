"""What a runtime must offer so that both runtimes answer alike."""

from collections.abc import Generator, Sequence
from typing import Protocol

from slmflow.served.search import SearchOptions
from slmflow.served.template import ChatTemplate


class Runtime(Protocol):
    """A loaded model: tokenizer, template and the loop that makes tokens."""

    context_length: int
    """Tokens that prompt and answer may have together."""

    eos_ids: frozenset[int]
    """Tokens that end an answer; none of them is part of its text."""

    def template(self) -> ChatTemplate:
        """The model's chat template; raises ``TemplateError`` where it has none."""

    def encode(self, text: str, rendered: bool) -> list[int]:
        """Token ids. ``rendered``: the text comes from the chat template, which has already
        written every special token that belongs there."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""

    def steps(
        self, prompts: Sequence[Sequence[int]], options: SearchOptions, new_tokens: int
    ) -> Generator[Sequence[int], None, None]:
        """Yield one token a prompt and step, at most ``new_tokens`` times.

        Ends early when every prompt has met an end token; what a prompt yields after its own end
        token means nothing. Closing the iterator stops the work.
        """
