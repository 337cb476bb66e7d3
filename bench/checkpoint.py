"""Random weights of the Phi-3 architecture, of any size: python -m bench.checkpoint FOLDER

Speed and memory depend on shapes, not on what the weights say. A tensor is drawn, written and
forgotten a few rows at a time, so that a checkpoint may be larger than the memory.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slmflow.checkout import PROJECT_ROOT

DEMO = PROJECT_ROOT / "demo" / "phi3_demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
VALUE_BYTES = 2  # bfloat16
SHARD_BYTES = 1_000_000_000
CHUNK_VALUES = 4_000_000  # drawn at once
SPREAD = 0.02  # standard deviation of the weights, Phi-3's initializer_range


@dataclass(frozen=True)
class Shape:
    """Of 271 million parameters by default: Phi-3's vocabulary, a third of its width."""

    layers: int = 16
    hidden: int = 1024
    intermediate: int = 2816
    heads: int = 16
    vocabulary: int = 32_064
    context: int = 4096

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name to size, in the order of the files."""
        wide = self.hidden
        named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, wide)}
        for index in range(self.layers):
            layer = f"model.layers.{index}"
            named[f"{layer}.self_attn.qkv_proj.weight"] = (3 * wide, wide)
            named[f"{layer}.self_attn.o_proj.weight"] = (wide, wide)
            named[f"{layer}.mlp.gate_up_proj.weight"] = (2 * self.intermediate, wide)
            named[f"{layer}.mlp.down_proj.weight"] = (wide, self.intermediate)
            named[f"{layer}.input_layernorm.weight"] = (wide,)
            named[f"{layer}.post_attention_layernorm.weight"] = (wide,)
        return named | {"model.norm.weight": (wide,), "lm_head.weight": (self.vocabulary, wide)}

    @property
    def parameters(self) -> int:
        return sum(prod(size) for size in self.tensors().values())

    def of_bytes(self, count: int) -> "Shape":
        """As many layers as come nearest to that size on disk."""
        empty, one = (replace(self, layers=n).parameters * VALUE_BYTES for n in (0, 1))
        return replace(self, layers=max(1, round((count - empty) / (one - empty))))


def write_checkpoint(
    folder: Path, shape: Shape, seed: int = 0, shard_bytes: int = SHARD_BYTES
) -> None:
    """A folder that transformers loads: the same bytes for the same shape and seed.

    The model writes plain text and never ends an answer by itself, so that every answer has the
    length that was asked for: only rows of plain text in the head are not zero.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(DEMO / name, folder / name)
    demo = _read_json(DEMO / "config.json")
    _write_json(folder / "config.json", demo | _config(shape))
    generation = _read_json(DEMO / "generation_config.json")
    _write_json(folder / "generation_config.json", generation)
    shards = _shards(shape.tensors(), shard_bytes)
    plain = plain_tokens()
    total = 0
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        one = len(shards) == 1
        name = "model" if one else f"model-{number:05}-of-{len(shards):05}"
        total += _write_shard(folder / f"{name}.safetensors", shard, seed, plain)
        index |= dict.fromkeys(shard, f"{name}.safetensors")
    if len(shards) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        _write_json(folder / "model.safetensors.index.json", content)


def plain_tokens() -> list[int]:
    """Ids of the demo tokenizer whose text is ASCII: no special token, no piece of a character."""
    tokenizer = _read_json(DEMO / "tokenizer.json")
    special = {token["id"] for token in tokenizer["added_tokens"]}
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    return sorted(
        token
        for text, token in vocabulary.items()
        if token not in special and text.replace("Ġ", "").isascii()  # Ġ: how BPE files write space
    )


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "initializer_range": SPREAD,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context,
        "original_max_position_embeddings": shape.context,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "vocab_size": shape.vocabulary,
    }


def _shards(
    tensors: dict[str, tuple[int, ...]], shard_bytes: int
) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, size in tensors.items():
        count = prod(size) * VALUE_BYTES
        if shards[-1] and filled + count > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = size
        filled += count
    return shards


def _write_shard(
    path: Path, tensors: dict[str, tuple[int, ...]], seed: int, plain: Sequence[int]
) -> int:
    """One safetensors file (8 bytes of header length, JSON header, values); its values' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensors.items():
        start, end = end, end + prod(size) * VALUE_BYTES
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, size in tensors.items():
            for values in _drawn(name, size, seed, plain):
                file.write(_bfloat16(values))
    return end


def _drawn(
    name: str, size: tuple[int, ...], seed: int, plain: Sequence[int]
) -> Iterator[npt.NDArray[np.float32]]:
    """A tensor's rows, some at a time."""
    if len(size) == 1:  # a norm
        yield np.ones(size, dtype=np.float32)
        return
    rows, width = size
    random = np.random.default_rng([seed, *name.encode()])
    step = max(1, CHUNK_VALUES // width)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        values = SPREAD * random.standard_normal((count, width), dtype=np.float32)
        if name == "lm_head.weight":
            values[~np.isin(np.arange(start, start + count), plain)] = 0
        yield values


def _bfloat16(values: npt.NDArray[np.float32]) -> bytes:
    # The upper half of a float32.
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, help="size on disk (default: 0.54)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shape = Shape()
    if options.gigabytes is not None:
        shape = shape.of_bytes(int(options.gigabytes * 1e9))
    write_checkpoint(options.folder, shape, options.seed)
    print(f"{options.folder}: {shape.layers} layers, {shape.parameters / 1e6:.0f} M parameters")


if __name__ == "__main__":
    main()
