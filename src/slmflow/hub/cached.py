"""What the hub client's cache holds, whichever tool put it there.

Its layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from slmflow.errors import SourceError
from slmflow.hub import sums
from slmflow.hub.wanted import Wanted
from slmflow.listing import first
from slmflow.lock_file import Contents, Sum
from slmflow.served.digests import replace_whole

COMMIT = re.compile(r"[0-9a-f]{40}")
DEFAULT = "main"
NAMED = 4  # files in a message


def storage(source: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{source.replace('/', '--')}"


def snapshot(source: str, commit: str) -> Path:
    return storage(source) / "snapshots" / commit


def absent(source: str, contents: Contents) -> list[str]:
    """Names of files that are not there; a file is put there whole or not at all."""
    folder = snapshot(source, contents.commit)
    return [name for name in contents.files if not (folder / name).is_file()]


def remember(source: str, revision: str | None, commit: str) -> None:
    """What the branch or tag means, once all is there: offline, every tool reads it."""
    if revision is None or not COMMIT.fullmatch(revision):
        ref = storage(source) / "refs" / (revision or DEFAULT)
        with suppress(OSError):  # a cache that others filled may be read-only
            replace_whole(ref, commit)


def find(source: str, revision: str | None, locked: Contents | None, wanted: Wanted) -> Contents:
    """What is wanted of a repository, from the cache alone, complete and checked.

    Raises ``SourceError`` that names what is missing, in words to follow "..., and ".
    """
    commit = locked.commit if locked else _commit(source, revision)
    folder = None if commit is None else snapshot(source, commit)
    if commit is None or folder is None or not folder.is_dir():
        raise SourceError(
            f"nothing of {source} at revision {commit or revision or DEFAULT} is on this machine "
            f"(needed: {', '.join(wanted.lacks(snapshot(source, commit or '')))}); "
            f"{_type(source, revision, wanted)}"
        )
    listed = locked or _listed(source, commit)
    needed = wanted.needed(listed).files if listed else {}
    lacking = [name for name in needed if not (folder / name).is_file()]
    lacking = lacking or wanted.lacks(folder)
    if lacking:
        raise SourceError(
            f"the download of {source} at revision {commit} lacks {first(lacking, NAMED)}; "
            f"{_type(source, commit, wanted)}"
        )
    there = wanted.of(_held(folder, commit, listed))
    expected = {name: _expected(folder / name, name, listed, locked) for name in there.files}
    sums.check(folder, expected, source, "the lock" if locked else "the hub")
    return there


def _commit(source: str, revision: str | None) -> str | None:
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    try:
        return (storage(source) / "refs" / (revision or DEFAULT)).read_text().strip()
    except OSError:
        return None


def _listed(source: str, commit: str) -> Contents | None:
    """All files of the commit with their sizes, where the client noted them."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(source, revision=commit)
    except CachedRepoTreeNotFoundError:
        return None
    return Contents(commit, {file.path: Sum(file.size) for file in tree})


def _held(folder: Path, commit: str, listed: Contents | None) -> Contents:
    """Of what is listed, where that is known: others may have put files beside it."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    known = (
        names if listed is None else {name: names[name] for name in listed.files if name in names}
    )
    return Contents(commit, {name: sums.named(path) for name, path in known.items()})


def _expected(path: Path, name: str, listed: Contents | None, locked: Contents | None) -> Sum:
    if locked is not None:
        return locked.files[name]
    named = sums.named(path)
    return replace(named, size=listed.files[name].size) if listed else named


def _type(source: str, revision: str | None, wanted: Wanted) -> str:
    at = f" --revision {revision}" if revision else ""
    below = "".join(f" --include '{folder}/*'" for folder in wanted.folders() if folder)
    chosen = below or " --exclude '*/*' --exclude '*.bin'"  # other forms of the same weights
    return (
        f"with a connection repeat the command (HF_HUB_OFFLINE=0) or type: "
        f"hf download {source}{at}{chosen}; or set model.source (model.onnx.source) to a folder"
    )
