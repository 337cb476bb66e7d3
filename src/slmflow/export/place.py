"""The output folder: there whole, or not at all."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slmflow.checkout import PROJECT_ROOT
from slmflow.export import verify
from slmflow.export.errors import ExportError
from slmflow.listing import first

ABANDONED = 24 * 3600  # seconds; no export takes as long
NAMED = 3  # files that are not as they were written; the others are counted


def output_folder(output: str) -> Path:
    """Absolute; relative ones begin at the repository's root, where ``mlflow run`` works, too.

    Raises ``ExportError`` for what is no folder of this machine.
    """
    if "://" in output or not output.strip():
        raise ExportError(
            f"output={output} is no folder of this machine; give a path, and copy the folder on "
            "when it is written"
        )
    folder = PROJECT_ROOT / Path(output).expanduser()
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ExportError(f"{folder} is no folder; give another output")
    return folder


def demand_free(folder: Path) -> None:
    """Raises ``ExportError`` where something else than an export is there.

    Whether an export there is the same is known only when this one is made: ``move_into_place``.
    """
    if _is_filled(folder) and not (folder / verify.MANIFEST).is_file():
        raise _occupied(folder)


@contextmanager
def staging_beside(folder: Path) -> Iterator[Path]:
    """An empty folder on the same disk, gone in the end. Raises ``ExportError``.

    Those of the same output that a killed export left are deleted after a day.
    """
    prefix = f".{folder.name}.export-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _delete_left(folder.parent, prefix)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    except OSError as error:
        raise ExportError(
            f"{folder.parent} cannot be written ({error.strerror}); give another output"
        ) from None
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def move_into_place(made: Path, folder: Path) -> bool:
    """Whether it had to be moved: False where the same files are there already.

    Raises ``ExportError`` where others are; nothing is overwritten.
    """
    if _is_filled(folder):
        _demand_equal(made, folder)
        return False
    _open_to_readers(made)
    try:
        made.replace(folder)
    except OSError as error:
        raise ExportError(
            f"{folder} cannot be written ({error.strerror}); give another output"
        ) from None
    return True


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _delete_left(parent: Path, prefix: str) -> None:
    for left in parent.iterdir():
        if left.name.startswith(prefix) and left.is_dir() and not left.is_symlink():
            with suppress(OSError):  # of another user, or gone by now
                if time.time() - left.stat().st_mtime > ABANDONED:
                    shutil.rmtree(left)


def _open_to_readers(folder: Path) -> None:
    """Whatever the umask: a container reads the files as another user."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def _demand_equal(made: Path, folder: Path) -> None:
    if (folder / verify.MANIFEST).is_file():
        try:
            same = verify.read_files(folder) == verify.read_files(made)
            differing = verify.faults(folder)
        except ValueError as error:
            same, differing = False, [str(error)]
        if same and not differing:
            return
        if same:
            raise ExportError(
                f"{folder} holds this export, but not as it was written "
                f"({first(differing, NAMED, '; ')}); delete it, or give another output"
            )
    raise _occupied(folder)


def _occupied(folder: Path) -> ExportError:
    return ExportError(
        f"{folder} is there and holds something else; nothing is overwritten: delete it, or give "
        "another output"
    )
