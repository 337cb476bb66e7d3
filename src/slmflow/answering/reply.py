"""What a model answered, and how fast: the same for packaged models and endpoints."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """One answer, or why there is none. ``None`` where the model does not tell."""

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Setting:
    """What one measurement of speed asks for."""

    prompt_tokens: int  # of each prompt
    new_tokens: int  # of each answer
    batch_size: int  # prompts at once


@dataclass(frozen=True)
class Measurement:
    """One batch at one setting. Times in seconds, from the call.

    ``prompt_tokens`` (each row's) and ``completion_tokens`` (all rows') are what it really was: a
    model that cannot be held to a length answers shorter.
    """

    setting: Setting
    prompt_tokens: int
    completion_tokens: int
    seconds: float  # to the last token of all rows
    first_token_seconds: float | None  # to the first token of all rows
    step_seconds: tuple[float, ...] = ()  # between tokens, where each one can be seen
