"""Prompts to answers, over either runtime: in batches, in pieces as they are made."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from slmflow.served.answer import Answer, AnswerBuilder
from slmflow.served.runtime import Runtime, SchemaError
from slmflow.served.search import SearchOptions

BATCH_ROWS = 16
BATCH_TOKENS = 16_384
"""Bounds of one batch. The runtimes reserve the key-value cache of a whole batch at once, rows
times padded length, and 16 rows already give most of what batching can give on CPU."""

FREE_PADDING = 256
"""Tokens of padding that a batch may have in any case; above, at most half may be padding."""

Event = tuple[int, str | Answer | SchemaError]
"""A row's index and a piece of its text; at its end its whole answer, or why there is none."""


class PromptError(ValueError):
    """A prompt that cannot be answered: empty, or longer than the model's context."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Prompt:
    """Token ids, the options to answer with, how many tokens the answer may have, the JSON schema
    that it must follow, if any, and whether it must not share a batch."""

    ids: tuple[int, ...]
    options: SearchOptions
    new_tokens: int
    schema: str | None = None
    alone: bool = False


def prepare(
    runtime: Runtime, text: str, options: SearchOptions, rendered: bool, schema: str | None = None
) -> Prompt:
    """Tokenize and bound one prompt; raises ``PromptError``."""
    if not text.strip():
        raise PromptError("the prompt is empty; give at least one word")
    ids = tuple(runtime.encode(text, rendered=rendered))
    if not ids:
        raise PromptError("the model's tokenizer makes no token of the prompt; give another")
    new_tokens = options.new_tokens(len(ids), runtime.context_length)
    if new_tokens < 1:
        limit = min(runtime.context_length, options.max_length or runtime.context_length)
        name = "search.max_length" if limit < runtime.context_length else "the model's context"
        raise PromptError(
            f"the prompt has {len(ids)} tokens and {name} allows {limit} for prompt and answer "
            "together; shorten the prompt",
            "context_length_exceeded",
        )
    # In a batch, a token for padding at the end of a prompt would be taken for padding.
    return Prompt(ids, options, new_tokens, schema, alone=ids[-1] == runtime.pad_id)


class Batch:
    """Prompts that are answered together, token by token."""

    def __init__(self, runtime: Runtime, prompts: Sequence[Prompt]) -> None:
        self._runtime = runtime
        self._prompts = prompts
        self._builders = [_builder(runtime, prompt) for prompt in prompts]
        self._open = set(range(len(prompts)))

    def drop(self, row: int) -> None:
        """Nobody waits for this row any more. A batch without rows ends."""
        self._open.discard(row)

    def steps(self) -> Iterator[list[Event]]:
        """What each step brings, which can be nothing. Closing the iterator stops the work."""
        first = self._prompts[0]
        steps = self._runtime.steps(
            [prompt.ids for prompt in self._prompts],
            first.options,
            max(prompt.new_tokens for prompt in self._prompts),
            first.schema,
        )
        with closing(steps):
            try:
                for tokens in steps:
                    yield [event for row in sorted(self._open) for event in self._push(row, tokens)]
                    if not self._open:
                        return
            except SchemaError as error:  # such a row is alone
                yield [(0, error)]
                return
        yield [event for row in sorted(self._open) for event in self._finish(row)]

    def _push(self, row: int, tokens: Sequence[int]) -> Iterator[Event]:
        builder = self._builders[row]
        if piece := builder.push(tokens[row]):
            yield row, piece
        if builder.finish_reason:
            self._open.discard(row)
            yield row, builder.answer()

    def _finish(self, row: int) -> Iterator[Event]:
        builder = self._builders[row]
        if piece := builder.finish():
            yield row, piece
        self._open.discard(row)
        yield row, builder.answer()


def generate(runtime: Runtime, prompts: Sequence[Prompt]) -> list[Answer | SchemaError]:
    """One answer a prompt, in their order, however they were batched; or why there is none."""
    answers: dict[int, Answer | SchemaError] = {
        index: event for index, event in stream(runtime, prompts) if not isinstance(event, str)
    }
    return [answers[index] for index in range(len(prompts))]


def stream(runtime: Runtime, prompts: Sequence[Prompt]) -> Iterator[Event]:
    """The answers' texts in pieces as they are made, each row's whole ``Answer`` at its end."""
    for indices in plan_batches(prompts, runtime.context_length):
        batch = Batch(runtime, [prompts[index] for index in indices])
        # Closed also when the caller stops listening half-way.
        with closing(batch.steps()) as steps:  # type: ignore[type-var]
            for events in steps:
                for row, event in events:
                    yield indices[row], event


def plan_batches(prompts: Sequence[Prompt], context_length: int) -> list[list[int]]:
    """Indices of the prompts that are generated together: similar lengths, since the shorter
    ones are padded."""
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


def next_batch(prompts: Sequence[Prompt], context_length: int) -> list[int]:
    """Indices of the first prompt and of those behind it that can be generated with it."""
    group = _group(0, prompts[0])
    batch = [0]
    for index in range(1, len(prompts)):
        if _group(index, prompts[index]) == group:
            rows = [prompts[member] for member in (*batch, index)]
            if _fits(rows, context_length):
                batch.append(index)
    return batch


def _fits(rows: Sequence[Prompt], context_length: int) -> bool:
    # The longest prompt and the longest answer need not be of the same row.
    longest = max(len(row.ids) for row in rows)
    width = longest + max(row.new_tokens for row in rows)
    padding = len(rows) * longest - sum(len(row.ids) for row in rows)
    if len(rows) > BATCH_ROWS or width > context_length or len(rows) * width > BATCH_TOKENS:
        return False
    return padding <= max(FREE_PADDING, len(rows) * longest // 2)


def _group(index: int, prompt: Prompt) -> str:
    """Prompts of one group share their options, so that they may be generated together."""
    options = prompt.options
    # In a batch, a seeded row's draws would depend on the others.
    seeded = options.samples and options.seed is not None
    if prompt.alone or seeded or prompt.schema is not None:
        return f"alone {index}"
    # Lengths and stop texts are applied a row at a time, so rows may differ in them, except where
    # the search would take padding, often an end token, for text of the prompt,
    looks_back = options.repetition_penalty != 1 or options.no_repeat_ngram_size > 0
    prompt_length = len(prompt.ids) if looks_back else None
    # and with beams: the best short answer is no piece of the best long one.
    answer_length = prompt.new_tokens if options.num_beams > 1 else None
    search = replace(options, max_new_tokens=None, max_length=2, stop=[])
    return f"{search} {prompt_length} {answer_length}"


def _builder(runtime: Runtime, prompt: Prompt) -> AnswerBuilder:
    return AnswerBuilder(
        runtime.decode, runtime.eos_ids, prompt.options.stop, len(prompt.ids), prompt.new_tokens
    )
