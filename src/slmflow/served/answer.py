"""From tokens to an answer: text in pieces, stop texts, the reason why it ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Answer:
    """``completion_tokens`` counts what was generated, without the token that ended it."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


class AnswerBuilder:
    """Collects one row's tokens into an answer.

    ``push`` returns the text that is safe to show: nothing that could still turn out to be the
    beginning of a stop text, and no half of a character that spans tokens.
    """

    def __init__(
        self,
        decode: Decode,
        eos_ids: frozenset[int],
        stop: Sequence[str],
        prompt_tokens: int,
        new_tokens: int,
    ) -> None:
        self._detokenizer = Detokenizer(decode)
        self._eos_ids = eos_ids
        self._stop = StopTexts(stop)
        self._prompt_tokens = prompt_tokens
        self._new_tokens = new_tokens
        self._count = 0
        self._pieces: list[str] = []
        self.finish_reason: FinishReason | None = None

    def push(self, token: int) -> str:
        if self.finish_reason is not None:
            return ""
        if token in self._eos_ids:
            return self._finish("stop")
        self._count += 1
        piece = self._stop.push(self._detokenizer.push(token))
        if self._stop.met:
            self.finish_reason = "stop"
        elif self._count >= self._new_tokens:
            return self._keep(piece) + self._finish("length")
        return self._keep(piece)

    def finish(self) -> str:
        """End the answer where the runtime ended; returns the text that was still held back."""
        return self._finish("length") if self.finish_reason is None else ""

    def answer(self) -> Answer:
        assert self.finish_reason is not None
        return Answer("".join(self._pieces), self.finish_reason, self._prompt_tokens, self._count)

    def _finish(self, reason: FinishReason) -> str:
        piece = self._stop.push(self._detokenizer.flush())
        self.finish_reason = "stop" if self._stop.met else reason
        return self._keep(piece + self._stop.flush())

    def _keep(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece


class Detokenizer:
    """Text of a growing token sequence, in pieces that join to the text of the whole.

    A token's text can depend on its predecessor (leading spaces) and a character can span tokens,
    so each piece is the difference of two decodings that start a few tokens back.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # where the current window begins
        self._shown = 0  # tokens whose text is out

    def push(self, token: int) -> str:
        self._ids.append(token)
        return self._advance(complete=False)

    def flush(self) -> str:
        return self._advance(complete=True)

    def _advance(self, complete: bool) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        if not complete and after.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        if after == before:  # a special token, say: no window may begin at a token without text
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return after[len(before) :]


class StopTexts:
    """Cuts a text, given in pieces, before the stop text that is complete first.

    Not before the one that begins first: whether that one gets complete would depend on how much
    text comes after the other, and so on where the pieces end.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.met = False

    def push(self, piece: str) -> str:
        if not self._stop or self.met:
            return "" if self.met else piece
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.met, self._held = True, ""
            _, start = min(found)
            return text[:start]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
