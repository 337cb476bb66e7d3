"""How fast a server streams, seen from outside: prompts of a length, and when each text came."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from threading import Event
from typing import Any

from slmflow.answering.endpoint_http import Failed
from slmflow.answering.in_threads import as_they_come
from slmflow.answering.reply import Measurement, Setting

LengthOf = Callable[[int], int]
"""Tokens of a prompt to characters of its text."""

Stream = Callable[[str, Mapping[str, Any]], Iterator[tuple[float, dict[str, Any]]]]
"""Prompt and options to a request's events, each with the time when it came."""

SHORT, LONG = 100, 500  # characters
APART = 1e-3  # seconds; tokens that come closer may have waited for each other on their way


@dataclass(frozen=True)
class Streamed:
    """One answer: when each piece of its text came, and what the server counted."""

    times: tuple[float, ...]
    ended: float
    prompt_tokens: int
    completion_tokens: int

    @property
    def steps(self) -> tuple[float, ...]:
        return tuple(later - earlier for earlier, later in pairwise(self.times))

    @property
    def alone(self) -> bool:
        """Whether every token came in a piece of its own, so that steps are those of tokens."""
        each = len(self.times) == self.completion_tokens
        return each and all(step > APART for step in self.steps)


def learn_length(text: str, ask: Callable[[str], Mapping[str, Any]]) -> LengthOf:
    """How long a text makes how many tokens, from two prompts that the server counts.

    Two, because a chat template adds tokens of its own to every prompt. Raises ``Failed``.
    """

    def tokens(length: int) -> int:
        return _count(ask(fresh_prompt(text, length)).get("usage"), "prompt_tokens")

    fewer, more = tokens(SHORT), tokens(LONG)
    if more <= fewer:
        raise Failed(f"it counts {fewer} tokens in {SHORT} characters and {more} in {LONG}")
    a_token = (LONG - SHORT) / (more - fewer)
    return lambda wanted: max(round(SHORT + (wanted - fewer) * a_token), 1)


def fresh_prompt(text: str, length: int) -> str:
    """``length`` characters of the text, over and over where it is shorter, after a number that no
    earlier prompt began with."""
    number = f"{secrets.randbelow(10**8):08d}. "
    return (number + f"{text} " * (length // (len(text) + 1) + 1))[: max(length, len(number))]


def timed(text: str, length: int, setting: Setting, stream: Stream) -> Measurement:
    """One batch, all of its requests at once. Raises ``Failed``."""
    options = {
        "max_tokens": setting.new_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    prompts = [fresh_prompt(text, length) for _ in range(setting.batch_size)]

    def row(index: int, given_up: Event) -> Streamed:
        return _streamed(stream(prompts[index], options), given_up)

    started = time.perf_counter()
    rows = [streamed for _, streamed in as_they_come(row, len(prompts), len(prompts))]
    firsts = [row.times[0] for row in rows if row.times]
    return Measurement(
        setting,
        round(sum(row.prompt_tokens for row in rows) / len(rows)),
        sum(row.completion_tokens for row in rows),
        max(row.times[-1] if row.times else row.ended for row in rows) - started,
        max(firsts) - started if len(firsts) == len(rows) else None,
        tuple(step for row in rows for step in row.steps) if all(row.alone for row in rows) else (),
    )


def _streamed(events: Iterator[tuple[float, dict[str, Any]]], given_up: Event) -> Streamed:
    times: list[float] = []
    usage: Any = None
    for now, event in events:
        if given_up.is_set():  # another row failed: leave the server free for the next try
            break
        if any(_text(choice) for choice in event.get("choices") or ()):
            times.append(now)
        usage = event.get("usage") or usage
    ended = time.perf_counter()
    prompt, made = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    return Streamed(tuple(times), ended, prompt, made)


def _text(choice: Mapping[str, Any]) -> str:
    """Of a chunk of either kind; what a model thinks aloud is made of tokens, too."""
    delta = choice.get("delta") or {}
    told = (choice.get("text"), *(delta.get(name) for name in ("content", "reasoning_content")))
    return "".join(text for text in told if text)


def _count(usage: Any, name: str) -> int:
    if not isinstance(usage, Mapping) or not isinstance(usage.get(name), int):
        raise Failed(f"it does not tell how many tokens it counted (usage.{name})")
    return int(usage[name])
