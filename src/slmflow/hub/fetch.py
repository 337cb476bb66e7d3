"""The story of a download: locked or not, there or not, checked in any case."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from slmflow import lock_file
from slmflow.errors import SourceError
from slmflow.hub import cached, sums
from slmflow.hub.repository import Unreachable, ask
from slmflow.hub.transfer import transfer
from slmflow.hub.wanted import Wanted
from slmflow.lock_file import Contents

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Snapshot:
    """``files``: names of what was wanted, is there and was checked; whatever else lies there is
    none of it. ``others``: names of what the repository holds besides, as far as the hub was asked.
    """

    path: Path
    commit: str
    files: tuple[str, ...]
    others: tuple[str, ...] = ()


def download(source: str, revision: str | None, wanted: Wanted, announce: Announce) -> Snapshot:
    """The folder of a repository's files, at the commit that the revision is locked to or means.

    Fetches what is missing. Where the hub cannot be asked, a complete earlier download serves.
    Raises ``SourceError``, of which ``NoRepository`` and ``Gated`` are some.
    """
    locked = lock_file.pinned(source, revision)
    if locked is not None and not wanted.needed(locked).files:
        raise lock_file.of_others(source, ", ".join(wanted.patterns))
    if locked is not None and not cached.absent(source, _some(source, wanted, locked)):
        announce(f"{source} at {locked.commit[:12]}, as locked")
        return _checked(source, wanted.of(locked), locked)
    try:
        listed = ask(source, locked.commit if locked else revision)
    except Unreachable as why:
        return _without_hub(source, revision, locked, wanted, str(why), announce)
    expected = _some(source, wanted, locked or listed)
    _require_same(source, expected, listed)
    if cached.absent(source, expected):
        total = sum(file.size for file in expected.files.values())
        announce(
            f"{source} at {expected.commit[:12]}: {len(expected.files)} files, {total / 1e9:.2f} GB"
        )
        if wanted.examine is not None:
            transfer(source, wanted.settings(expected), announce)
            wanted.examine(cached.snapshot(source, expected.commit), expected.commit)
        transfer(source, expected, announce)
    found = _checked(source, expected, locked)
    cached.remember(source, revision, found.commit)
    return replace(found, others=tuple(sorted(set(listed.files) - set(expected.files))))


def contents(source: str, revision: str | None, wanted: Wanted) -> Contents:
    """What would be fetched now, whatever is locked. Raises ``SourceError``."""
    return _some(source, wanted, ask(source, revision))


def _some(source: str, wanted: Wanted, listed: Contents) -> Contents:
    found = wanted.of(listed)
    if not wanted.needed(listed).files:
        raise SourceError(
            f"{source} at {listed.commit} holds none of the files {', '.join(wanted.patterns)}; "
            "check model.source, and model.onnx.prebuilt for ready ONNX models"
        )
    return found


def _without_hub(
    source: str,
    revision: str | None,
    locked: Contents | None,
    wanted: Wanted,
    why: str,
    announce: Announce,
) -> Snapshot:
    try:
        found = cached.find(source, revision, locked, wanted)
    except SourceError as error:
        raise SourceError(f"{why}, and {error}") from None
    # Said, because the hub may have a newer one by now.
    announce(f"{why}: taking the earlier download of {source} at {found.commit[:12]}")
    return Snapshot(cached.snapshot(source, found.commit), found.commit, tuple(found.files))


def _require_same(source: str, expected: Contents, listed: Contents) -> None:
    """The lock against the hub, before gigabytes are fetched."""
    for name, about in expected.files.items():
        if listed.files.get(name) != about:
            raise SourceError(
                f"{source} at {expected.commit}: the hub has another {name} than "
                f"{lock_file.place().name} says, which a commit cannot change; ask who maintains "
                "the lock, and type ./run lock once it is known why"
            )


def _checked(source: str, expected: Contents, locked: Contents | None) -> Snapshot:
    folder = cached.snapshot(source, expected.commit)
    if absent := cached.absent(source, expected):
        raise SourceError(f"{source}: the hub did not give {', '.join(absent)}; repeat the command")
    by = lock_file.place().name if locked else "the hub"
    sums.check(folder, expected.files, source, by)
    return Snapshot(folder, expected.commit, tuple(expected.files))
