"""A Docker context with this project's server, for one model."""

import shutil
from pathlib import Path

from slmflow.checkout import PROJECT_ROOT
from slmflow.config.export import Format
from slmflow.export import pins, texts
from slmflow.export.errors import ExportError
from slmflow.export.model import Model

PORT = 8000
USER_ID = 10001
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def demand_servable(model: Model, base_image: str) -> None:
    """Raises ``ExportError`` for a model that the image could not serve."""
    if not model.ours:
        raise ExportError(
            f"{model.uri} was not packaged by this project, whose server the image starts; type "
            f"mlflow models generate-dockerfile -m {model.uri}, or export it with format=folder"
        )
    if model.settings.get("provider") == "dml":
        raise ExportError(
            f"{model.uri} runs on DirectML, which Windows alone has; export it with format=folder, "
            "or package it again with hardware=cpu or hardware=cuda"
        )
    if model.settings.get("provider") == "cuda" and base_image.startswith("python:"):
        raise ExportError(
            f"{model.uri} needs NVIDIA's CUDA and cuDNN libraries, which {base_image} lacks; name "
            "an image that has them and Python 3.11: format.base_image=..."
        )


def write_context(folder: Path, model: Model, settings: Format, mounted: bool) -> None:
    """``mounted``: the model comes as the container starts, and is no part of the image."""
    folder.mkdir(exist_ok=True)
    texts.write(
        folder / "Dockerfile",
        "Dockerfile.j2",
        base_image=settings.base_image,
        mounted=mounted,
        port=PORT,
        user_id=USER_ID,
    )
    texts.write(folder / ".dockerignore", "dockerignore.j2", mounted=mounted)
    (folder / "requirements.txt").write_text(pins.server_requirements(model), "utf-8")
    (folder / "constraints.txt").write_text(pins.constraints(model), "utf-8")
    _copy_server(folder / "server", mounted)


def _copy_server(server: Path, mounted: bool) -> None:
    """The code that ``python -m entrypoints.serve`` needs, laid out as in the repository."""
    shutil.copytree(PROJECT_ROOT / "src" / "slmflow", server / "src" / "slmflow", ignore=LEFT_OUT)
    conf = shutil.ignore_patterns("local", "__pycache__", ".*")  # local: settings of one checkout
    shutil.copytree(PROJECT_ROOT / "conf", server / "conf", ignore=conf)
    (server / "entrypoints").mkdir()
    for name in ("__init__.py", "serve.py"):
        shutil.copyfile(PROJECT_ROOT / "entrypoints" / name, server / "entrypoints" / name)
    shutil.copyfile(PROJECT_ROOT / "LICENSE", server / "LICENSE")
    shutil.copyfile(texts.TEMPLATES / "healthcheck.py", server / "healthcheck.py")
    if mounted:
        shutil.copyfile(texts.TEMPLATES / "start.py", server / "start.py")
