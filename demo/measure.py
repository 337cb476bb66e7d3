"""Exact match of greedy answers on the held-out set."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Phi3ForCausalLM, PreTrainedTokenizerFast

LONGEST_ANSWER = 24  # tokens


def answers(
    model: Phi3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> list[str]:
    prompts = [
        tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        for row in rows
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=LONGEST_ANSWER,
        )
    written = output[:, inputs["input_ids"].shape[1] :]
    texts: list[str] = tokenizer.batch_decode(written, skip_special_tokens=True)
    return texts


def accuracy(
    model: Phi3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> float:
    found = answers(model, tokenizer, rows)
    right = [text in row["references"] for text, row in zip(found, rows, strict=True)]
    return sum(right) / len(right)
