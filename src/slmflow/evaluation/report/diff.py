"""Two texts side by side, with what only one of them has."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile

from slmflow.drawing import units

LONGEST = 4000  # characters of each that are compared
SPACES = str.maketrans(
    {
        " ": "\N{MIDDLE DOT}",
        "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n",
        "\t": "\N{RIGHTWARDS ARROW TO BAR}",
    }
)


@dataclass(frozen=True)
class Piece:
    text: str
    differs: bool


def diff(one: str, other: str) -> tuple[list[Piece], list[Piece]]:
    """Each text in pieces, word by word. White space that differs is made visible."""
    words, others = (_words(units.clip(text, LONGEST)) for text in (one, other))
    # Both ends first. What lies between is matched by its rarer words once it is long (difflib's
    # autojunk): a model that repeats itself would otherwise take minutes.
    head = _common(words, others)
    tail = _common(words[head:][::-1], others[head:][::-1])
    ends = len(words) - tail, len(others) - tail
    left, right = _piece(words[:head], False), _piece(others[:head], False)
    matcher = SequenceMatcher(None, words[head : ends[0]], others[head : ends[1]])
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        left += _piece(words[head + start : head + end], kind != "equal")
        right += _piece(others[head + other_start : head + other_end], kind != "equal")
    return left + _piece(words[ends[0] :], False), right + _piece(others[ends[1] :], False)


def _common(words: list[str], others: list[str]) -> int:
    """Words that both begin with."""
    pairs = zip(words, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _words(text: str) -> list[str]:
    return re.findall(r"<\|\w+\|>|\w+|\s|[^\w\s]", text.replace("\r\n", "\n"))


def _piece(words: list[str], differs: bool) -> list[Piece]:
    text = "".join(words)
    if not text:
        return []
    blank = not text.strip()
    return [Piece(text.translate(SPACES) if differs and blank else text, differs)]
