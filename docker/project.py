"""A clean copy of this project for a machine that gets it from MLflow: a container, a cluster.

    python docker/project.py FOLDER [--image NAME]

The copy is the working tree as it is, changes and new files included, on the commit that is
checked out. Left out are what git ignores (environments, runs), new files whose names begin with a
dot (.env) and the addresses of remotes; MLflow itself would copy all of them. ``--image``:
MLproject names this image in docker_env in place of conda_env, which MLflow's docker and
kubernetes backends need; nothing else differs.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = "conda_env: conda.yaml\n"


def write_project(folder: Path, image: str | None) -> None:
    """Raises ``SystemExit`` with a message, and leaves no folder then."""
    if folder.exists():
        sys.exit(f"error: {folder} is there already; delete it, or name another")
    try:
        _clone(folder)
        _bring_up_to_date(folder)
        if image is not None:
            name_image(folder / "MLproject", image)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def name_image(mlproject: Path, image: str) -> None:
    """In place of the environment for conda, virtualenv and uv."""
    text = mlproject.read_text("utf-8")
    if text.count(ENVIRONMENT) != 1:
        sys.exit(f"error: {mlproject} has not one line {ENVIRONMENT.strip()}")
    mlproject.write_text(text.replace(ENVIRONMENT, f"docker_env:\n  image: {image}\n"), "utf-8")


def _clone(folder: Path) -> None:
    """The commit alone, so that a run can say it; no history, no remote."""
    try:
        _git("clone", "--quiet", "--depth=1", "--no-tags", ROOT.as_uri(), str(folder))
        _git("-C", str(folder), "remote", "remove", "origin")
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", "") or str(error)
        sys.exit(f"error: {ROOT} cannot be cloned: {told.strip()}")


def _bring_up_to_date(folder: Path) -> None:
    """What is changed, new or deleted here; readable for the user of a container."""
    new = _names(ROOT, "--others", "--exclude-standard")
    here = {*_names(ROOT, "--cached"), *(name for name in new if not f"/{name}".count("/."))}
    # First all of the commit's files go: nothing is written through a link among them.
    for name in _names(folder, "--cached"):
        (folder / name).unlink()
    for name in here:
        source, target = ROOT / name, folder / name
        behind_link = source.parent.resolve() != source.parent
        if not behind_link and (source.is_file() or source.is_symlink()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))


def _names(folder: Path, *options: str) -> list[str]:
    return [
        name for name in _git("-C", str(folder), "ls-files", "-z", *options).split("\0") if name
    ]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image", help="of docker/Dockerfile, as it is called in your registry")
    given = parser.parse_args()
    write_project(given.folder.absolute(), given.image)
    print(f"{given.folder}: mlflow run {given.folder} -e ENTRY_POINT ...")
