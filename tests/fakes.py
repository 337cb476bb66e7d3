"""A runtime without a model, and requests as anybody may write them.

The runtime's tokens are bytes of UTF-8, its answers are made from the prompt.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from slmflow.served.runtime import LogitsUnavailable, SchemaError, check_logits
from slmflow.served.search import SearchOptions
from slmflow.served.template import ChatTemplate

EOS = 256
AFTER_THE_END = ord("!")  # a real runtime yields anything here

Reply = Callable[[str, SearchOptions], str]

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('system must come first') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
)


def backwards(prompt: str, options: SearchOptions) -> str:
    return prompt[::-1]


def last_user_text(prompt: str, options: SearchOptions) -> str:
    """Answers a chat with its last question, so that rows can be told apart."""
    return prompt.removesuffix("\nassistant: ").rpartition(": ")[2]


def decode(ids: Sequence[int]) -> str:
    return bytes(token for token in ids if token != EOS).decode("utf-8", "replace")


class FakeRuntime:
    """Says ``reply`` of each prompt.

    ``batches`` records the prompts of every batch, ``schemas`` what each was held to, ``made``
    the steps that each has made, ``closed`` how many are over. ``on_step`` is called before every
    step. Penalties change nothing. ``pruned``: logits are there for the last token only.
    """

    def __init__(
        self,
        reply: Reply = backwards,
        context_length: int = 1_000,
        refused_schemas: Collection[str] = (),
        pruned: bool = False,
    ) -> None:
        self.context_length = context_length
        self.eos_ids = frozenset([EOS])
        self.pad_id = EOS
        self.batches: list[list[str]] = []
        self.schemas: list[str | None] = []
        self.made: list[int] = []
        self.closed = 0
        self.on_step: Callable[[], None] = lambda: None
        self._reply = reply
        self._refused_schemas = refused_schemas
        self._pruned = pruned

    def template(self) -> ChatTemplate:
        return ChatTemplate(CHAT_TEMPLATE, {})

    def encode(self, text: str, rendered: bool) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return decode(ids)

    def check_schema(self, schema: str) -> None:
        if schema in self._refused_schemas:
            raise SchemaError("the JSON schema cannot be followed: the fake refuses it")

    def steps(
        self,
        prompts: Sequence[Sequence[int]],
        options: SearchOptions,
        new_tokens: int,
        schema: str | None = None,
    ) -> Generator[Sequence[int], None, None]:
        width = max(len(ids) for ids in prompts) + new_tokens
        if width > self.context_length:  # as the ONNX runtime does
            raise RuntimeError(f"{width} tokens are more than the context has")
        if schema is not None and (schema in self._refused_schemas or len(prompts) > 1):
            raise RuntimeError("a schema was not checked, or its prompt does not come alone")
        texts = [decode(ids) for ids in prompts]
        self.batches.append(texts)
        self.schemas.append(schema)
        self.made.append(0)
        try:
            # Rows that sample share one random generator: each one's draws depend on the others.
            suffix = f" beside {len(texts) - 1}" if options.samples else ""
            answers = [[*(self._reply(text, options) + suffix).encode(), EOS] for text in texts]
            for step in range(min(new_tokens, max(len(answer) for answer in answers))):
                self.made[-1] += 1
                self.on_step()
                yield [answer[step] if step < len(answer) else AFTER_THE_END for answer in answers]
        finally:
            self.closed += 1

    def logits(self, ids: Sequence[int], last: int) -> np.ndarray[Any, Any]:
        """The likeliest token after each one is what begins the answer to all up to there."""
        check_logits(len(ids), last, self.context_length)
        if self._pruned and last > 1:
            raise LogitsUnavailable("the fake gives the logits of the last token only")
        logits = np.zeros((last, EOS + 1), dtype=np.float32)
        for row in range(last):
            read = decode(ids[: len(ids) - last + row + 1])
            answer = [*self._reply(read, SearchOptions()).encode(), EOS]
            logits[row, answer[0]] = 3.0
        return logits


WORDS = (
    *("role", "content", "user", "system", "developer", "assistant", "name", "type", "text"),
    *("json_object", "json_schema", "schema", "include_usage", "none", "auto", "Hi"),
)
JSON_TEXTS = st.sampled_from(WORDS) | st.text(max_size=3) | st.text(st.characters(), max_size=2)
"""Also with halves of surrogate pairs, which JSON can write and UTF-8 cannot."""

ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | JSON_TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_TEXTS, inner, max_size=3),
    max_leaves=6,
)

MESSAGE = {"role": "user", "content": "Hi"}
SENSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["system", "developer", "user", "assistant"]) | ANY_JSON,
                "content": st.just("Hi") | st.just([{"type": "text", "text": "Hi"}]) | ANY_JSON,
            },
            optional={"name": ANY_JSON, "tool_calls": ANY_JSON, "refusal": ANY_JSON},
        ),
        max_size=2,
    ),
    "prompt": st.just("Hi") | st.lists(st.just("Ho") | ANY_JSON, max_size=2),
    "n": st.integers(1, 3),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans() | ANY_JSON}),
    "stop": st.lists(st.sampled_from(["i", "o"]), max_size=2),
    "max_tokens": st.integers(1, 3),
    "max_completion_tokens": st.integers(1, 3),
    "temperature": st.sampled_from([0, 0.5]),
    "top_p": st.sampled_from([1, 0.5]),
    "top_k": st.integers(0, 2),
    "seed": st.integers(0, 2),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema"]) | ANY_JSON},
        optional={"json_schema": st.fixed_dictionaries({"schema": ANY_JSON}) | ANY_JSON},
    ),
    "user": ANY_JSON,
    "logprobs": st.just(False),
    "logit_bias": st.just({}),
    "tools": st.just([]),
    "tool_choice": st.sampled_from(["none", "auto"]),
    "best_of": st.just(1),
    "echo": st.just(False),
    "suffix": st.just(""),
}


@st.composite
def any_requests(draw: st.DrawFn) -> dict[str, Any]:
    """Any JSON object, often with a question in it that can be answered."""
    names = draw(st.lists(st.sampled_from(sorted(SENSIBLE)), max_size=4, unique=True))
    request = {"messages": [MESSAGE], "prompt": "Hi", **{n: draw(SENSIBLE[n]) for n in names}}
    if draw(st.booleans()):
        changed = st.dictionaries(st.sampled_from(sorted(SENSIBLE)) | JSON_TEXTS, ANY_JSON)
        request |= draw(changed)
    for name in draw(st.just([]) | st.just([]) | st.lists(st.sampled_from(sorted(request)))):
        request.pop(name, None)
    return request
