"""A runtime without a model: tokens are bytes of UTF-8, answers are made from the prompt."""

from collections.abc import Callable, Generator, Sequence

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


def decode(ids: Sequence[int]) -> str:
    return bytes(token for token in ids if token != EOS).decode("utf-8", "replace")


class FakeRuntime:
    """Says ``reply`` of each prompt; ``batches`` records the prompts of every batch."""

    def __init__(self, reply: Reply = backwards, context_length: int = 1_000) -> None:
        self.context_length = context_length
        self.eos_ids = frozenset([EOS])
        self.batches: list[list[str]] = []
        self._reply = reply

    def template(self) -> ChatTemplate:
        return ChatTemplate(CHAT_TEMPLATE, {})

    def encode(self, text: str, rendered: bool) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return decode(ids)

    def steps(
        self, prompts: Sequence[Sequence[int]], options: SearchOptions, new_tokens: int
    ) -> Generator[Sequence[int], None, None]:
        width = max(len(ids) for ids in prompts) + new_tokens
        if width > self.context_length:  # as the ONNX runtime does
            raise RuntimeError(f"{width} tokens are more than the context has")
        texts = [decode(ids) for ids in prompts]
        self.batches.append(texts)
        # Rows that sample share one random generator, so each one's draws depend on the others.
        suffix = f" beside {len(texts) - 1}" if options.samples else ""
        answers = [[*(self._reply(text, options) + suffix).encode(), EOS] for text in texts]
        for step in range(min(new_tokens, max(len(answer) for answer in answers))):
            yield [answer[step] if step < len(answer) else AFTER_THE_END for answer in answers]
