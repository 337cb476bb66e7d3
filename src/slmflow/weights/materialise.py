"""A packaged model made self-contained: every file in its own folder."""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mlflow.tracking import MlflowClient

from slmflow.answering.ask import AskError
from slmflow.answering.model_files import about, fetch, fetch_part, is_here, listed
from slmflow.errors import SourceError
from slmflow.served import weights
from slmflow.served.weights import (
    MANIFEST,
    Manifest,
    WeightsError,
    kept,
    link_or_copy,
    staging,
)


@dataclass(frozen=True)
class Materialised:
    """``added``: the number of files; 0: it was whole. ``manifest``: None where another project,
    or an earlier slmflow, packaged the model."""

    added: int
    manifest: Manifest | None


def materialise(uri: str) -> Materialised:
    """Upload what the model's folder lacks; the version and its digest stay what they are.

    Raises ``AskError`` for a URI that names no model, ``SourceError`` where its files cannot be had
    or are not those that were packaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        downloads = Path(folder)
        found = fetch_part(uri, "MLmodel", downloads)
        if found is None:
            raise AskError(f"{uri} holds no MLmodel file: it is no MLflow model")
        fetch_part(uri, MANIFEST, downloads)  # beside it
        manifest = Manifest.read(found.parent)
        if manifest is None:
            return Materialised(0, None)
        lacking = _lacking(uri, manifest)
        if lacking:
            try:
                weights.fetch(manifest)
            except WeightsError as error:
                raise SourceError(str(error)) from None
            _add(str(about(found.parent)["model_id"]), manifest, lacking)
        return Materialised(len(lacking), replace(manifest, shared=None))


def _lacking(uri: str, manifest: Manifest) -> list[str]:
    """Paths of large files that the model does not have.

    Those that it has are held against the manifest: their contents where they lie on this machine,
    else their sizes, as nobody wants 2 GB fetched for that. Raises ``SourceError``.
    """
    folders = {str(PurePosixPath(path).parent) for path in manifest.places}
    there = {path: size for one in folders for path, size in listed(uri, one).items()}
    have = {path: of for path, of in manifest.places.items() if path in there}
    try:
        if is_here(uri):
            model = fetch(uri, Path())
            weights.verify(model, have)
            weights.verify(model / manifest.folder, manifest.small)
    except WeightsError as error:
        raise SourceError(str(error)) from None
    wrong = [path for path, of in have.items() if there[path] != of.size]
    if wrong:
        raise SourceError(
            f"{uri} has {', '.join(wrong)} of another size than {MANIFEST} says: they are not "
            "those that were packaged; package the model again"
        )
    return [path for path in manifest.places if path not in have]


def complete(folder: Path, into: Path) -> None:
    """Copy a packaged model's folder with every one of its files, each verified.

    Raises ``WeightsError``.
    """
    shutil.copytree(folder, into)
    manifest = Manifest.read(into)
    if manifest is None:
        return
    lacking = lacking_files(into, manifest)
    if lacking:
        weights.fetch(manifest)
        for path in lacking:
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            weights.copy(kept(manifest.places[path].sha256), into / path)
        replace(manifest, shared=None).write(into)
    weights.verify(into / manifest.folder, manifest.files)
    weights.verify(into, manifest.places)


def lacking_files(model: Path, manifest: Manifest) -> list[str]:
    """Paths in the model."""
    return [path for path in manifest.places if not (model / path).is_file()]


def _add(model_id: str, manifest: Manifest, lacking: list[str]) -> None:
    """The manifest last: until then it names where the files are, which stays true."""
    client = MlflowClient()
    with staging() as folder:
        for path in lacking:
            link_or_copy(kept(manifest.places[path].sha256), folder / "files" / path)
        client.log_model_artifacts(model_id, str(folder / "files"))
        replace(manifest, shared=None).write(folder)
        client.log_model_artifact(model_id, str(folder / MANIFEST))
