"""Which files of a repository a model is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmflow.lock_file import Contents

SETTINGS = "config.json"


@dataclass(frozen=True)
class Wanted:
    """``patterns`` of names (in the form of fnmatch) and of ``notices``, which may be absent.

    ``lacks`` says what a folder lacks to be used, from what lies there alone. ``examine`` gets the
    folder and the commit when the settings have come, and may refuse the rest (``SourceError``).
    """

    patterns: Sequence[str]
    notices: Sequence[str]
    lacks: Callable[[Path], list[str]]
    examine: Callable[[Path, str], object] | None = None

    def of(self, contents: Contents) -> Contents:
        """The files of them that are to be fetched."""
        names = self._matching(contents, [*self.patterns, *self.notices])
        return Contents(contents.commit, {name: contents.files[name] for name in names})

    def needed(self, contents: Contents) -> Contents:
        """The same without notices."""
        names = self._matching(contents, self.patterns)
        return Contents(contents.commit, {name: contents.files[name] for name in names})

    def settings(self, contents: Contents) -> Contents:
        """Those few of them that say what the others are."""
        names = [name for name in self.of(contents).files if name.endswith(SETTINGS)]
        return Contents(contents.commit, {name: contents.files[name] for name in names})

    def folders(self) -> list[str]:
        """Of the repository, in which they lie; the empty text is the repository's own."""
        return sorted({pattern.rpartition("/")[0] for pattern in self.patterns})

    def _matching(self, contents: Contents, patterns: Sequence[str]) -> list[str]:
        from huggingface_hub.utils._paths import filter_repo_objects

        # fnmatch's * goes over slashes: copies in folders below are none of these files.
        depth = max(pattern.count("/") for pattern in patterns)
        names = [name for name in contents.files if name.count("/") <= depth]
        return sorted(filter_repo_objects(names, allow_patterns=list(patterns)))
