"""Prompts to answers, over either runtime: many in batches, or one in pieces."""

from collections.abc import Iterator, Sequence
from contextlib import closing
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
    for batch in plan_batches(prompts, runtime.context_length):
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
    # Closed also when the caller stops listening half-way.
    with closing(runtime.steps([prompt.ids], prompt.options, prompt.new_tokens)) as steps:
        for (token,) in steps:
            if piece := builder.push(token):
                yield piece
            if builder.finish_reason:
                break
    if piece := builder.finish():
        yield piece
    yield builder.answer()


def plan_batches(prompts: Sequence[Prompt], context_length: int) -> list[list[int]]:
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
            rows = [prompts[member] for member in (*batch, index)]
            if batch and not _fits(rows, context_length):
                batches.append(batch)
                batch = []
            batch.append(index)
        batches.append(batch)
    return batches


def _fits(rows: Sequence[Prompt], context_length: int) -> bool:
    # The longest prompt and the longest answer need not be of the same row.
    width = max(len(row.ids) for row in rows) + max(row.new_tokens for row in rows)
    tokens = len(rows) * width
    return len(rows) <= BATCH_ROWS and width <= context_length and tokens <= BATCH_TOKENS


def _group(index: int, prompt: Prompt) -> str:
    options = prompt.options
    if options.samples and options.seed is not None:
        return f"alone {index}"
    # Lengths and stop texts are applied a row at a time, so rows may differ in them, except where
    # the search would take padding, often an end token, for text of the prompt,
    looks_back = options.repetition_penalty != 1 or options.no_repeat_ngram_size > 0
    prompt_length = len(prompt.ids) if looks_back else None
    # and with beams: the best short answer is no piece of the best long one.
    answer_length = prompt.new_tokens if options.num_beams > 1 else None
    search = replace(options, max_new_tokens=1, max_length=None, stop=[])
    return f"{search} {prompt_length} {answer_length}"


def _builder(runtime: Runtime, prompt: Prompt) -> AnswerBuilder:
    return AnswerBuilder(
        runtime.decode, runtime.eos_ids, prompt.options.stop, len(prompt.ids), prompt.new_tokens
    )
