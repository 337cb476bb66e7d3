"""Turns conversations into token ids with labels, and these into batches."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from conversations import Conversation
from tokenizer import END
from transformers import PreTrainedTokenizerFast

BATCH_SIZE = 64  # conversations
SORTED_BATCHES = 32  # batches whose conversations are sorted by length together
NO_LOSS = -100


@dataclass(frozen=True)
class Example:
    """The token ids of a conversation, and as labels those that the assistant must write."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Batch:
    ids: torch.Tensor
    labels: torch.Tensor


def encode(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> Example:
    """The same ids as the chat template gives, but with the answers marked."""
    ids: list[int] = []
    labels: list[int] = []
    for message in conversation:
        before = tokenizer.encode(f"<|{message['role']}|>\n")
        content = tokenizer.encode(message["content"] + END)
        after = tokenizer.encode("\n")
        answer = content if message["role"] == "assistant" else [NO_LOSS] * len(content)
        ids += before + content + after
        labels += [NO_LOSS] * len(before) + answer + [NO_LOSS] * len(after)
    return Example(ids, labels)


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def make_batches(examples: list[Example], seed: int) -> list[Batch]:
    """Batches of similar lengths, so that little is padding, in an order that stays random."""
    rng = random.Random(seed)
    batches = []
    chunk = BATCH_SIZE * SORTED_BATCHES
    for start in range(0, len(examples), chunk):
        near = sorted(examples[start : start + chunk], key=lambda example: len(example.ids))
        groups = [near[i : i + BATCH_SIZE] for i in range(0, len(near), BATCH_SIZE)]
        rng.shuffle(groups)
        for group in groups:
            ids = pad([example.ids for example in group], 0)
            labels = pad([example.labels for example in group], NO_LOSS)
            batches.append(Batch(ids, labels))
    return batches
