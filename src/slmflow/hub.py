"""Downloads from the Hugging Face hub: pinned to a commit, complete or not used.

The files lie in the hub client's own cache, shared with every other tool. What a complete download
holds is recorded beside this project's cache, so that half a download is never used.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slmflow import cache
from slmflow.errors import SourceError

Announce = Callable[[str], None]


class NoRepository(SourceError):
    """The hub has no repository of that name, or hides it."""


def download(
    source: str, revision: str | None, patterns: Sequence[str], announce: Announce
) -> tuple[Path, str]:
    """The folder and the commit of a repository's files that match the patterns.

    Fetches what is missing. Offline, a complete earlier download serves. Raises ``SourceError``, of
    which ``NoRepository`` is one.
    """
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
    return Path(path), commit


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
        raise NoRepository(f"the hub shows no repository {source}") from None
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
) -> tuple[Path, str]:
    try:
        record_file = _record_file(source, revision or "", patterns)
        record: dict[str, Any] = json.loads(record_file.read_text())
        path = Path(record["path"])
        _check_complete(path, source, record["files"])
    except (OSError, ValueError, KeyError, SourceError):
        raise SourceError(
            f"{why}, and no complete download of {source} with this revision is on this machine; "
            "run once with a connection, or set model.source (model.onnx.source) to a folder"
        ) from None
    # Said, because the hub may have a newer one by now.
    announce(f"{why}: taking the earlier download of {source} at {record['commit'][:12]}")
    return path, str(record["commit"])


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
