"""What lies beside the model, by the format."""

import json
import re
from pathlib import Path
from typing import Any

from slmflow.config.export import Format, FormatName
from slmflow.export import pins, texts
from slmflow.export.model import Model
from slmflow.export.server import PORT, demand_servable, write_context


def write_format(folder: Path, model: Model, settings: Format) -> None:
    """Beside ``folder/model``, which is there. Raises ``ExportError``."""
    {
        FormatName.folder: _folder,
        FormatName.docker: _docker,
        FormatName.azureml: _azureml,
    }[settings.name](folder, model, settings)


def _folder(folder: Path, model: Model, settings: Format) -> None:
    (folder / "constraints.txt").write_text(pins.constraints(model), "utf-8")
    texts.write(
        folder / "README.md",
        "folder.md.j2",
        model=model,
        request=_request(model) if model.ours else None,
    )


def _docker(folder: Path, model: Model, settings: Format) -> None:
    assert settings.base_image is not None
    demand_servable(model, settings.base_image)
    write_context(folder, model, settings, mounted=False)
    texts.write(
        folder / "README.md",
        "docker.md.j2",
        model=model,
        image=f"{image_name(model.name)}:{model.version or 'latest'}",
        cuda="cuda" in (model.settings.get("provider"), model.settings.get("device")),
        port=PORT,
        route=_route(model),
        request=_request(model),
    )


def _azureml(folder: Path, model: Model, settings: Format) -> None:
    assert settings.base_image is not None
    demand_servable(model, settings.base_image)
    write_context(folder / "environment", model, settings, mounted=True)
    values = {
        "model": model,
        "name": azure_name(model.name),
        "version": model.version or "1",
        "endpoint": settings.endpoint or _endpoint_name(model.name),
        "settings": settings,
        "port": PORT,
        "route": _route(model),
    }
    for name in ("model.yml", "endpoint.yml", "deployment.yml"):
        texts.write(folder / name, f"azureml/{name}.j2", **values)
    texts.write(folder / "README.md", "azureml/README.md.j2", **values)
    (folder / "request.json").write_text(json.dumps(_request(model), indent=1) + "\n", "utf-8")


def _request(model: Model) -> dict[str, Any]:
    """One that the model answers: the example that it was packaged with."""
    example = model.folder / "input_example.json"
    if example.is_file():
        told: dict[str, Any] = json.loads(example.read_text("utf-8"))
        return told
    return {"messages": [{"role": "user", "content": "Hello"}]}


def _route(model: Model) -> str:
    prompt = model.settings.get("task") == "prompt"
    return "/v1/completions" if prompt else "/v1/chat/completions"


def image_name(name: str) -> str:
    """Docker's rules: small letters and digits, with one of ".", "_", "-" between them."""
    return (
        re.sub(r"[^a-z0-9]*([^a-z0-9])", r"\1", _ascii(name.lower(), "._-")).strip("._-") or "model"
    )


def azure_name(name: str) -> str:
    """Azure's rules for models: 255 letters, digits, ".", "_", "-", a letter or digit first."""
    return _ascii(name, "._-").lstrip("._-")[:255] or "model"


def _ascii(name: str, others: str) -> str:
    """Letters, digits and ``others`` of it, with "-" for each that is none of these."""
    spelt = (
        char if char.isascii() and (char.isalnum() or char in others) else "-" for char in name
    )
    return "".join(spelt)


def _endpoint_name(name: str) -> str:
    """Azure's rules: 3 to 32 letters, digits and "-", a letter first, neither "-" nor "." last."""
    spelt = _ascii(name.lower(), "")
    spelt = spelt if spelt[:1].isalpha() else f"m-{spelt}"
    return spelt[:32].strip("-").ljust(3, "0")
