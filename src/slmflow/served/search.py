"""Search options: one vocabulary for both runtimes, and its translation into each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass
class SearchOptions:
    """How an answer is searched for. Zero temperature is greedy search, as in OpenAI's API.

    Lengths count tokens. At least one of ``max_new_tokens`` and ``max_length`` bounds the
    answer; with both, the tighter one holds, and the model's context bounds them in any case.
    """

    max_new_tokens: int | None = 64
    max_length: int | None = None  # prompt and answer together
    min_new_tokens: int = 0  # tokens before which no end token is chosen; stop texts still end
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: every token
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0  # 0: off
    frequency_penalty: float = 0.0  # taken from a token's logit for each time it was generated
    presence_penalty: float = 0.0  # taken once from the logit of every token generated so far
    num_beams: int = 1
    length_penalty: float = 1.0  # only between beams
    seed: int | None = None
    stop: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise ``ValueError`` naming the option, its value and what is allowed."""
        _check(self)

    @property
    def samples(self) -> bool:
        return self.temperature > 0

    @property
    def penalises(self) -> bool:
        return self.frequency_penalty != 0 or self.presence_penalty != 0

    def new_tokens(self, prompt_tokens: int, context_length: int) -> int:
        """Tokens that an answer to a prompt of this length may have; 0 or less: no room."""
        bounds = [context_length - prompt_tokens]
        if self.max_new_tokens is not None:
            bounds.append(self.max_new_tokens)
        if self.max_length is not None:
            bounds.append(self.max_length - prompt_tokens)
        return min(bounds)

    def changed(self, changes: Mapping[str, Any]) -> "SearchOptions":
        """A checked copy with some options replaced, as one request asks."""
        return replace(self, **changes)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "SearchOptions":
        unknown = sorted(set(values) - set(SEARCH_OPTIONS))
        if unknown:
            raise ValueError(f"search has no option {unknown}; it has {sorted(SEARCH_OPTIONS)}")
        return cls(**values)


SEARCH_OPTIONS = tuple(option.name for option in fields(SearchOptions))


def _check(options: SearchOptions) -> None:
    new_tokens, length, stop = options.max_new_tokens, options.max_length, options.stop
    ranges: list[tuple[str, bool, str]] = [
        ("max_new_tokens", new_tokens is None or new_tokens >= 1, "1 or more, or null"),
        ("max_length", length is None or length >= 2, "2 or more, or null"),
        ("min_new_tokens", options.min_new_tokens >= 0, "0 (none) or more"),
        ("temperature", 0 <= options.temperature <= 100, "0 (greedy) to 100"),
        ("top_p", 0 < options.top_p <= 1, "above 0, up to 1 (every token)"),
        ("top_k", options.top_k >= 0, "0 (every token) or more"),
        ("repetition_penalty", options.repetition_penalty > 0, "above 0; 1 changes nothing"),
        ("no_repeat_ngram_size", options.no_repeat_ngram_size >= 0, "0 (off) or more"),
        ("frequency_penalty", abs(options.frequency_penalty) <= 2, "-2 to 2; 0 changes nothing"),
        ("presence_penalty", abs(options.presence_penalty) <= 2, "-2 to 2; 0 changes nothing"),
        ("num_beams", options.num_beams >= 1, "1 (no beams) or more"),
        ("seed", options.seed is None or 0 <= options.seed < 2**31, "0 to 2147483647, or null"),
        ("stop", not isinstance(stop, str) and all(stop), "a list of texts, none of them empty"),
    ]
    for name, valid, allowed in ranges:
        if not valid:
            value = getattr(options, name)
            raise ValueError(f"search.{name} is {value!r}; allowed: {allowed}")
    if new_tokens is None and length is None:
        raise ValueError("search.max_new_tokens and search.max_length are both null; set one")
    if new_tokens is not None and options.min_new_tokens > new_tokens:
        raise ValueError(
            f"search.min_new_tokens is {options.min_new_tokens} and search.max_new_tokens is "
            f"{new_tokens}; allowed: as many as search.max_new_tokens, or fewer"
        )
    if options.num_beams > 1 and options.samples:
        raise ValueError(
            f"search.num_beams is {options.num_beams} and search.temperature is "
            f"{options.temperature}: beams do not sample; use num_beams=1 or temperature=0"
        )
    if options.num_beams > 1 and options.penalises:
        raise ValueError(
            f"search.frequency_penalty and search.presence_penalty need search.num_beams 1; it is "
            f"{options.num_beams}"
        )


def to_genai(options: SearchOptions, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """Options for ``GeneratorParams.set_search_options`` of onnxruntime-genai.

    ``max_length`` counts the (padded) prompt and is always given: without it the runtime reserves
    a key-value cache for the model's whole context. ``min_length`` counts it, too. Without
    ``do_sample`` the runtime ignores temperature. Stop texts are not the runtime's business, see
    ``served/answer.py``.
    """
    values = {
        "max_length": prompt_tokens + new_tokens,
        "min_length": prompt_tokens + min(options.min_new_tokens, new_tokens),
        **_shared(options),
    }
    if options.samples and options.seed is not None:
        values["random_seed"] = options.seed
    return values


def to_transformers(options: SearchOptions, new_tokens: int) -> dict[str, Any]:
    """Options for ``generate`` of transformers, complete: nothing is left to the checkpoint's own
    generation config but the special tokens. The seed is set around the call."""
    lengths = {"max_new_tokens": new_tokens}
    if options.min_new_tokens:  # it would cost every step, also where it is 0
        lengths["min_new_tokens"] = min(options.min_new_tokens, new_tokens)
    return {**lengths, **_shared(options)}


def _shared(options: SearchOptions) -> dict[str, Any]:
    """What both runtimes spell alike."""
    values: dict[str, Any] = {
        "do_sample": options.samples,
        "repetition_penalty": options.repetition_penalty,
        "no_repeat_ngram_size": options.no_repeat_ngram_size,
        "num_beams": options.num_beams,
    }
    if options.samples:
        values |= {"temperature": options.temperature, "top_p": options.top_p}
        values["top_k"] = options.top_k
    if options.num_beams > 1:
        values |= {"length_penalty": options.length_penalty, "early_stopping": True}
    return values
