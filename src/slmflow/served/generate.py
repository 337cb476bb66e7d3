"""Prompts to answers, over either runtime: many in batches, or one in pieces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from slmflow.served.answer import Answer, AnswerBuilder
from slmflow.served.runtime import Runtime
from slmflow.served.search import SearchOptions

BATCH_ROWS = 16
BATCH_TOKENS = 16_384
"""Bounds of one batch. The runtimes reserve the key-value cache of a whole batch at once, rows
times padded length, and 16 rows already give most of what batching can give on CPU."""


class PromptError(ValueError):
    """A prompt that cannot be answered: empty, or longer than the model's context."""


@dataclass(frozen=True)
class Prompt:
    """Token ids, the options to answer with, and how many tokens the answer may have."""

    ids: tuple[int, ...]
    options: SearchOptions
    new_tokens: int


def prepare(runtime: Runtime, text: str, options: SearchOptions, rendered: bool) -> Prompt:
    """Tokenize and bound one prompt; raises ``PromptError``."""
    if not text.strip():
        raise PromptError("the prompt is empty; give at least one word")
    ids = tuple(runtime.encode(text, rendered=rendered))
    new_tokens = options.new_tokens(len(ids), runtime.context_length)
    if new_tokens < 1:
        limit = min(runtime.context_length, options.max_length or runtime.context_length)
        name = "search.max_length" if limit < runtime.context_length else "the model's context"
        raise PromptError(
            f"the prompt has {len(ids)} tokens and {name} allows {limit} for prompt and answer "
            "together; shorten the prompt"
        )
    return Prompt(ids, options, new_tokens)


def generate(runtime: Runtime, prompts: Sequence[Prompt]) -> list[Answer]:
    """One answer a prompt, in their order, however they were batched."""
    answers: list[Answer | None] = [None] * len(prompts)
    for batch in plan_batches(prompts):
        rows = [prompts[index] for index in batch]
        builders = [_builder(runtime, row) for row in rows]
        steps = runtime.steps(
            [row.ids for row in rows], rows[0].options, max(row.new_tokens for row in rows)
        )
        for tokens in steps:
            for builder, token in zip(builders, tokens, strict=True):
                builder.push(token)
            if all(builder.finish_reason for builder in builders):
                break
        steps.close()
        for index, builder in zip(batch, builders, strict=True):
            builder.finish()
            answers[index] = builder.answer()
    return [answer for answer in answers if answer is not None]


def stream(runtime: Runtime, prompt: Prompt) -> Iterator[str | Answer]:
    """Yield the answer's text in pieces as it is made, then the whole ``Answer``."""
    builder = _builder(runtime, prompt)
    steps = runtime.steps([prompt.ids], prompt.options, prompt.new_tokens)
    for (token,) in steps:
        if piece := builder.push(token):
            yield piece
        if builder.finish_reason:
            break
    steps.close()
    if piece := builder.finish():
        yield piece
    yield builder.answer()


def plan_batches(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Indices of the prompts that are generated together.

    Rows of a batch share their options and are of similar length, since the shorter ones are
    padded. A seeded, sampled row stays alone: in a batch its draws would depend on the others.
    """
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(_group(index, prompt), []).append(index)
    batches: list[list[int]] = []
    for indices in groups.values():
        batch: list[int] = []
        for index in sorted(indices, key=lambda index: len(prompts[index].ids)):
            longest = len(prompts[index].ids) + prompts[index].new_tokens
            full = len(batch) == BATCH_ROWS or (len(batch) + 1) * longest > BATCH_TOKENS
            if batch and full:
                batches.append(batch)
                batch = []
            batch.append(index)
        batches.append(batch)
    return batches


def _group(index: int, prompt: Prompt) -> str:
    options = prompt.options
    if options.samples and options.seed is not None:
        return f"alone {index}"
    # Lengths and stop texts are applied a row at a time, so rows may differ in them.
    return repr(replace(options, max_new_tokens=1, max_length=None, stop=[]))


def _builder(runtime: Runtime, prompt: Prompt) -> AnswerBuilder:
    return AnswerBuilder(
        runtime.decode, runtime.eos_ids, prompt.options.stop, len(prompt.ids), prompt.new_tokens
    )
