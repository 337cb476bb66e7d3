"""What the logged model generates to fixed prompts: by this, a rerun knows it again, which asks
those that were recorded.

The artifact ``probe.json``: ``{"format": 1, "new_tokens", "probes": [{"question", "prompt",
"prompt_ids", "answer_ids", "answer"}, ...]}``. Greedy, each prompt alone, whatever the search
options that the model was packaged with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlflow

from slmflow.answering.ask import ModelProcess

PROBE = "probe.json"
NEW_TOKENS = 32
LONGER = (
    "Tell me a short story about a lighthouse keeper and a lost ship.",
    "Count from one to twenty in words, and say which of the numbers are prime.",
)
Probed = Mapping[str, Any]


@dataclass(frozen=True)
class Prompts:
    """The model's own question, which it answers as briefly as it likes; of the answers to the
    longer ones all new tokens, whatever ends them otherwise."""

    own: str
    longer: Sequence[str] = LONGER
    new_tokens: int = NEW_TOKENS

    @classmethod
    def recorded(cls, told: Mapping[str, Any]) -> "Prompts":
        """Of a ``probe.json``."""
        own, *longer = (probe["question"] for probe in told["probes"])
        return cls(own, tuple(longer), told["new_tokens"])


def generate(process: ModelProcess, prompts: Prompts) -> list[Probed]:
    """By the model in that process. Raises ``AskError``."""
    count, longer = prompts.new_tokens, [_row(one) for one in prompts.longer]
    seen = [
        *process.observe([_row(prompts.own)], count, save=None),
        *process.observe(longer, count, save=None, least=count),
    ]
    questions = (prompts.own, *prompts.longer)
    return [{"question": one, **told} for one, told in zip(questions, seen, strict=True)]


def _row(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}]}


def log_probes(probes: Sequence[Probed], new_tokens: int) -> None:
    """Into the active run."""
    told = {"format": 1, "new_tokens": new_tokens, "probes": [dict(probe) for probe in probes]}
    mlflow.log_dict(told, PROBE)
