"""What a folder lacks to be a model, judged by what lies there: its own files name the others."""

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WEIGHTS = "*.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt")
# onnx.proto, StringStringEntryProto: key "location" (field 1), value (field 2) of < 128 bytes.
EXTERNAL_DATA = re.compile(rb"\n\x08location\x12([\x01-\x7f])")


def lacks_of_checkpoint(folder: Path) -> list[str]:
    """Names or patterns of files that a transformers checkpoint must have, and this has not."""
    lacking = [name for name in ("config.json", "tokenizer_config.json") if not _is(folder / name)]
    if not any(_some(folder, pattern) for pattern in VOCABULARIES):
        lacking.append(VOCABULARIES[0])
    index = folder / SHARD_INDEX
    if _is(index):
        try:
            shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            return lacking + sorted(shard for shard in shards if not _is(folder / shard))
        except (ValueError, KeyError, TypeError, AttributeError):
            return [*lacking, f"readable {index.name}"]
    return lacking if _some(folder, WEIGHTS) else [*lacking, WEIGHTS]


def lacks_of_onnx(folder: Path) -> list[str]:
    """The same of a model of the ONNX Runtime generate() API."""
    config = folder / "genai_config.json"
    if not _is(config):
        return [config.name]
    try:
        graphs = sorted(set(_file_names(json.loads(config.read_text("utf-8"))["model"])))
    except (ValueError, KeyError, TypeError):
        return [f"readable {config.name}"]
    lacking = [name for name in graphs if not _is(folder / name)]
    data = {name for graph in graphs if _is(folder / graph) for name in _data(folder / graph)}
    return lacking + sorted(name for name in data if not _is(folder / name))


def _file_names(about: Any) -> Iterator[str]:
    """Every ``filename`` of the decoder and of whatever else the model has."""
    for key, value in about.items() if isinstance(about, dict) else enumerate(about):
        if key == "filename" and isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            yield from _file_names(value)


def _data(graph: Path) -> set[str]:
    """The files that hold an ONNX graph's weights, read from the graph without parsing it."""
    if graph.stat().st_size == 0:
        return set()
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        matches = EXTERNAL_DATA.finditer(view)
        found = {view[match.end() : match.end() + match[1][0]] for match in matches}
    return {name.decode("utf-8", "replace") for name in found}


def _some(folder: Path, pattern: str) -> bool:
    return any(_is(file) for file in folder.glob(pattern))


def _is(file: Path) -> bool:
    return file.is_file()
