"""What a model answered, and how fast: the same for packaged models and endpoints."""

from dataclasses import dataclass

from slmflow.redaction import redacted


@dataclass(frozen=True)
class Reply:
    """One answer, or why there is none. ``None`` where the model does not tell.

    ``error`` without secrets: it is recorded, and a server may repeat the key that it was given.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if self.error is not None:
            object.__setattr__(self, "error", redacted(self.error))


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
