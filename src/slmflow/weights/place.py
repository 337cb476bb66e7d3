"""Where the large files of a packaged model lie: in its folder as links, or with a logged model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from slmflow.served.digests import link
from slmflow.served.weights import Manifest, kept, link_or_copy
from slmflow.weights import shared


def place(manifest: Manifest, location: str, staging: Path, own: bool) -> Manifest:
    """Put the large files where the model will find them, and tell where in the manifest.

    ``location`` is the artifact location of the packaged model, ``staging`` the folder that MLflow
    will copy there. Links come first: they cost nothing and leave the model whole. Where the
    artifact store is not on this file system, the files are stored once, in a logged model of their
    own. ``own``: copies, always.
    """
    if own:
        for path, about in manifest.places.items():
            link_or_copy(kept(about.sha256), staging / path)
        return manifest
    folder = shared.local_folder(location)
    if folder is not None and _linked(manifest, kept, folder):
        return manifest
    uri, files = shared.ensure(manifest)
    if folder is not None and files is not None:
        names = {about.sha256: files / name for name, about in manifest.large.items()}
        if _linked(manifest, names.__getitem__, folder):
            return manifest
    return replace(manifest, shared=uri)


def _linked(manifest: Manifest, source: Callable[[str], Path], model: Path) -> bool:
    """Whether the file system could. ``source``: where the file of a SHA-256 is."""
    for path, about in manifest.places.items():
        target = model / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            link(source(about.sha256), target)
        except OSError:
            return False
    return True
