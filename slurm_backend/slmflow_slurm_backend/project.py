"""The project as it is now, copied to where the nodes see it."""

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname


def local_folder(project_uri: str) -> Path | None:
    """None where MLflow fetches the project from elsewhere: git or a zip file."""
    uri = project_uri.strip("'\"").partition("#")[0]
    path = Path(url2pathname(urlparse(uri).path) if uri.startswith("file://") else uri)
    return path if path.is_dir() else None


def copy_project(project: Path, target: Path) -> Path:
    """The copy of ``project``, inside ``target``, which must not exist yet.

    Of a git checkout: what is tracked, as it is now, and what is new and not ignored, beside a
    repository of the one commit, so that runs record where their code is from. A folder outside of
    git is copied whole.
    """
    root = git_root(project)
    if root is None:
        shutil.copytree(project, target, symlinks=True)
        copy = target
    else:
        _clone_commit(root, target)
        _copy_files(root, target)
        copy = target / project.resolve().relative_to(root)
    _list_of(target).write_text(json.dumps(_files(target)))
    return copy


def remove_copy(target: Path) -> list[str]:
    """Removes it, unless the run wrote files into it: their names."""
    copied = set(json.loads(_list_of(target).read_text()))
    written = [name for name in _files(target) if name not in copied]
    if not written:
        shutil.rmtree(target, ignore_errors=True)
        _list_of(target).unlink()
    return written


def git_root(folder: Path) -> Path | None:
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel").strip()).resolve()
    except (OSError, subprocess.CalledProcessError):
        return None


def _clone_commit(root: Path, target: Path) -> None:
    try:
        _git(root, "clone", "-q", "--depth=1", "--no-checkout", root.as_uri(), str(target))
        _git(target, "reset", "-q")
    except subprocess.CalledProcessError:  # a repository without a commit, or of another user
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)


def _copy_files(root: Path, target: Path) -> None:
    tracked = _git(root, "ls-files", "-z", "--recurse-submodules")
    new = _git(root, "ls-files", "-z", "--others", "--exclude-standard")
    for name in (tracked + new).split("\0"):
        source, copy = root / name, target / name
        # A tracked file may be deleted; a submodule that was not fetched is an empty folder.
        if name and (source.is_symlink() or source.is_file()):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)


def _files(target: Path) -> list[str]:
    """Without git's own and Python's caches."""
    names = (path.relative_to(target) for path in target.rglob("*") if not path.is_dir())
    return [name.as_posix() for name in names if not {".git", "__pycache__"} & set(name.parts)]


def _list_of(target: Path) -> Path:
    return target.with_suffix(".files.json")


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout
