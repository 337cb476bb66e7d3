"""Where weights come from: a folder, or a repository of the Hugging Face hub."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slmflow import cache, hub
from slmflow.errors import SourceError
from slmflow.hub import Announce

PROJECT_ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
ONNX_FILES = ("*.onnx", "*.onnx.data", "*.onnx_data", "*.json", "*.jinja", "*.txt", "*.model")
NOTICES = ("LICENSE*", "README.md")
SHARD_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class LocalModel:
    """Weights on this machine.

    ``source`` is the hub id or folder that was configured, ``revision`` the hub's commit or
    sha256:... of a folder's files. ``files`` are names in ``path``: what belongs to the model,
    whatever else lies there. ``notices`` are its licence and card.
    """

    path: Path
    source: str
    revision: str
    files: tuple[str, ...]
    notices: tuple[Path, ...] = ()


def find_checkpoint(source: str, revision: str | None, announce: Announce) -> LocalModel:
    """A transformers checkpoint: configuration, tokenizer, safetensors.

    Raises ``SourceError`` where it is incomplete or cannot be fetched.
    """
    path, commit = _locate(source, revision, [*CHECKPOINT_FILES, *NOTICES], announce)
    for pattern in ("config.json", "tokenizer_config.json", "*.safetensors"):
        if not list(path.glob(pattern)):
            raise SourceError(
                f"{source} has no {pattern}: a transformers checkpoint holds config.json, "
                "tokenizer_config.json and *.safetensors (other weight formats are not loaded)"
            )
    _require_shards(path, source)
    return _local_model(path, source, commit, CHECKPOINT_FILES, path)


def find_onnx(source: str, revision: str | None, folder: str, announce: Announce) -> LocalModel:
    """A folder of ready ONNX files. Raises ``SourceError``."""
    patterns = [f"{folder}/{pattern}" for pattern in ONNX_FILES]
    path, commit = _locate(source, revision, [*patterns, *NOTICES], announce)
    if not (path / folder / "genai_config.json").is_file():
        raise SourceError(
            f"{source} has no {folder}/genai_config.json, so it is no model of the ONNX Runtime "
            "generate() API; see model.onnx.prebuilt"
        )
    return _local_model(path / folder, f"{source}/{folder}", commit, ONNX_FILES, path)


def built_model(path: Path, checkpoint: LocalModel) -> LocalModel:
    """What was built from a checkpoint: every file of the folder, under the same licence."""
    return LocalModel(
        path,
        checkpoint.source,
        checkpoint.revision,
        _matching(path, ["*"]),
        checkpoint.notices,
    )


def _locate(
    source: str, revision: str | None, patterns: Sequence[str], announce: Announce
) -> tuple[Path, str | None]:
    """The folder, and the commit where it comes from the hub."""
    local = Path(source).expanduser()
    local = local if local.is_absolute() else PROJECT_ROOT / local
    if local.is_dir():
        if revision is not None:
            raise SourceError(
                f"model revision {revision!r} was given for the folder {source}; folders have no "
                "revisions: leave it null"
            )
        return local, None
    if Path(source).is_absolute() or source.startswith(("./", "../", "~")):
        raise SourceError(f"there is no folder {source}; check model.source and model.onnx.source")
    try:
        return hub.download(source, revision, patterns, announce)
    except hub.NoRepository:
        raise SourceError(
            f"{source} is neither a folder (looked in {PROJECT_ROOT}) nor a repository that the "
            "hub shows to you; check model.source, or set HF_TOKEN for a private one"
        ) from None


def _local_model(
    path: Path, source: str, commit: str | None, patterns: Sequence[str], notices: Path
) -> LocalModel:
    files = _matching(path, patterns)
    revision = commit or f"sha256:{cache.files_digest(path, files)}"
    found = tuple(file for pattern in NOTICES for file in sorted(notices.glob(pattern)))
    return LocalModel(path, source, revision, files, found)


def _matching(folder: Path, patterns: Sequence[str]) -> tuple[str, ...]:
    names = {file.name for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return tuple(sorted(names))


def _require_shards(path: Path, source: str) -> None:
    index = path / SHARD_INDEX
    if not index.is_file():
        return
    shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    absent = sorted(shard for shard in shards if not (path / shard).is_file())
    if absent:
        raise SourceError(f"{source} lacks {absent[0]}, which its {SHARD_INDEX} names")
