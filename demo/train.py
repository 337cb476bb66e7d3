"""Trains phi3_demo, the small Phi-3 model of this project, on the facts in this folder."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from a hub

import torch
from batches import encode, make_batches
from conversations import training_conversations
from data import HERE, heldout_rows, write_rows
from fit import fit
from measure import accuracy
from outliers import spread_channels
from tokenizer import END, train_tokenizer
from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

PASSES = 40  # over all facts
VOCAB_SIZE = 2048
CONTEXT = 1024


@dataclass(frozen=True)
class Options:
    out: Path
    heldout: Path
    seed: int
    threads: int


def read_options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "phi3_demo", help="checkpoint folder")
    parser.add_argument("--heldout", type=Path, default=HERE / "heldout.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return Options(**vars(parser.parse_args()))


def build_model(tokenizer: PreTrainedTokenizerFast) -> Phi3ForCausalLM:
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": [tokenizer.convert_tokens_to_ids(END), tokenizer.eos_token_id],
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=CONTEXT,
        initializer_range=0.05,
        dtype="float32",
        **special,
    )
    model = Phi3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, **special)
    return model


def save(model: Phi3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, card: str) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # the library leaves it to its owner alone
    (out / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    started = time.monotonic()

    conversations = list(training_conversations(PASSES, options.seed))
    texts = (message["content"] for talk in conversations for message in talk)
    tokenizer = train_tokenizer(texts, VOCAB_SIZE, CONTEXT)
    examples = [encode(tokenizer, talk) for talk in conversations]
    model = build_model(tokenizer)
    fit(model, make_batches(examples, options.seed))
    spread_channels(model, options.seed)
    seconds = time.monotonic() - started

    rows = heldout_rows()
    score = accuracy(model, tokenizer, rows)
    card = (HERE / "card.md").read_text(encoding="utf-8")
    card = card.format(
        parameters=f"{model.num_parameters():,}", context=CONTEXT, accuracy=score, rows=len(rows)
    )
    save(model, tokenizer, options.out, card)
    write_rows(rows, options.heldout)
    print(f"{score:.1%} of {len(rows)} held-out questions right, trained in {seconds:.0f} s")
    print(f"wrote {options.out} and {options.heldout}")


if __name__ == "__main__":
    main()
