"""Where weights come from: a folder, or a repository of the Hugging Face hub.

Downloads lie in the hub client's own cache, shared with every other tool. What a complete
download holds is recorded beside this project's cache, so that half a download is never used.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmflow import cache
from slmflow.errors import SourceError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*", "*.md")
ONNX_FILES = ("*.onnx", "*.onnx.data", "*.onnx_data", "*.json", "*.jinja", "*.txt", "*.model")
Announce = Callable[[str], None]


@dataclass(frozen=True)
class LocalModel:
    """Weights on this machine. ``revision``: the hub's commit, or sha256:... of a folder."""

    path: Path
    source: str
    revision: str


def find_checkpoint(source: str, revision: str | None, announce: Announce) -> LocalModel:
    """A transformers checkpoint: configuration, tokenizer, safetensors.

    Raises ``SourceError`` where it is incomplete or cannot be fetched.
    """
    model = _find(source, revision, CHECKPOINT_FILES, "", announce)
    for pattern in ("config.json", "tokenizer_config.json", "*.safetensors"):
        if not list(model.path.glob(pattern)):
            raise SourceError(
                f"{source} has no {pattern}: a transformers checkpoint holds config.json, "
                "tokenizer_config.json and *.safetensors (other weight formats are not loaded)"
            )
    return model


def find_onnx(source: str, revision: str | None, folder: str, announce: Announce) -> LocalModel:
    """A folder of ready ONNX files. Raises ``SourceError``."""
    patterns = [f"{folder}/{pattern}" for pattern in ONNX_FILES]
    model = _find(source, revision, [*patterns, "LICENSE*", "README.md"], folder, announce)
    path = model.path / folder
    if not (path / "genai_config.json").is_file():
        raise SourceError(
            f"{source} has no {folder}/genai_config.json, so it is no model of the ONNX Runtime "
            "generate() API; see model.onnx.prebuilt"
        )
    return LocalModel(path, f"{source}/{folder}", model.revision)


def _find(
    source: str, revision: str | None, patterns: Sequence[str], folder: str, announce: Announce
) -> LocalModel:
    local = Path(source).expanduser()
    local = local if local.is_absolute() else PROJECT_ROOT / local
    if local.is_dir():
        if revision is not None:
            raise SourceError(
                f"model revision {revision!r} was given for the folder {source}; folders have no "
                "revisions: leave it null"
            )
        return LocalModel(local, source, f"sha256:{cache.folder_digest(local / folder)}")
    if Path(source).is_absolute() or source.startswith(("./", "../", "~")):
        raise SourceError(f"there is no folder {source}")
    return _download(source, revision, patterns, announce)


def _download(
    source: str, revision: str | None, patterns: Sequence[str], announce: Announce
) -> LocalModel:
    """Fetch what is missing. Offline, a complete earlier download serves."""
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError

    if constants.HF_HUB_OFFLINE:
        return _recorded(source, revision, patterns, "HF_HUB_OFFLINE is set", announce)
    wanted = _ask_hub(source, revision, patterns)
    if isinstance(wanted, str):
        return _recorded(source, revision, patterns, wanted, announce)
    commit, files = wanted
    if not files:
        raise SourceError(f"{source} at {commit} holds none of the files {', '.join(patterns)}")
    try:
        total = sum(files.values())
        announce(f"{source} at {commit[:12]}: {len(files)} files, {total / 1e9:.2f} GB")
        path = snapshot_download(
            source, revision=commit, allow_patterns=sorted(files), max_workers=4
        )
    except GatedRepoError:  # the hub lists the files of a gated repository to everybody
        raise _gated(source) from None
    except (httpx.HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # disk full and the like have their own message
        raise SourceError(
            f"the download of {source} broke off ({_first_line(error)}); the files that arrived "
            "whole are kept, repeat the command to go on with the others"
        ) from None
    _check_complete(Path(path), source, files)
    record = {"source": source, "commit": commit, "path": str(path), "files": files}
    for name in {revision or "", commit}:  # for those, too, who later pin what was recorded
        cache.write_json(_record_file(source, name, patterns), record)
    return LocalModel(Path(path), source, commit)


def _ask_hub(
    source: str, revision: str | None, patterns: Sequence[str]
) -> tuple[str, dict[str, int]] | str:
    """The commit that the revision means now and its files with their sizes in bytes.

    A string says why the hub could not be asked. What it refuses raises ``SourceError``.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils._paths import filter_repo_objects

    try:
        info = HfApi().model_info(source, revision=revision, files_metadata=True, timeout=30)
    except RevisionNotFoundError:
        raise SourceError(
            f"{source} has no revision {revision!r}; give a branch, a tag or a full commit "
            "(model.revision=...), or null for the default branch"
        ) from None
    except GatedRepoError:
        raise _gated(source) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise SourceError(
            f"{source} is neither a folder (looked in {PROJECT_ROOT}) nor a repository that the "
            "hub shows to you; check model.source, or set HF_TOKEN for a private one"
        ) from None
    except (httpx.HTTPError, OSError, ValueError) as error:  # ValueError: it answers no JSON
        return f"the hub does not answer ({_first_line(error)})"
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    depth = max(pattern.count("/") for pattern in patterns)
    names = [name for name in sizes if name.count("/") <= depth]
    return str(info.sha), {
        name: sizes[name] for name in filter_repo_objects(names, allow_patterns=list(patterns))
    }


def _record_file(source: str, revision: str, patterns: Sequence[str]) -> Path:
    key = {"source": source, "revision": revision, "patterns": " ".join(patterns)}
    return cache.root() / "hub" / f"{cache.key_digest(key)}.json"


def _recorded(
    source: str, revision: str | None, patterns: Sequence[str], why: str, announce: Announce
) -> LocalModel:
    try:
        record_file = _record_file(source, revision or "", patterns)
        record: dict[str, Any] = json.loads(record_file.read_text())
        path = Path(record["path"])
        _check_complete(path, source, record["files"])
    except (OSError, ValueError, KeyError, SourceError):
        raise SourceError(
            f"{why}, and no complete download of {source} with this revision is on this machine; "
            "run once with a connection, or set model.source to a folder"
        ) from None
    # Said, because the hub may have a newer one by now.
    announce(f"{why}: taking the earlier download of {source} at {record['commit'][:12]}")
    return LocalModel(path, source, record["commit"])


def _check_complete(path: Path, source: str, files: dict[str, int]) -> None:
    for name, size in files.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            # The client keeps the bytes elsewhere and links to them: a link alone comes back.
            raise SourceError(
                f"{source}: {name} has {found} bytes, the hub says {size}; delete "
                f"{file.resolve()} and repeat the command"
            )


def _gated(source: str) -> SourceError:
    return SourceError(f"{source} is gated: accept its licence on its page, then set HF_TOKEN")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
