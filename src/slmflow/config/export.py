"""Settings of export: what is written beside the model, and for whom."""

import re
from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from slmflow.config.schema import Versions


class FormatName(StrEnum):
    folder = "folder"  # the model, a manifest, its check: for MLflow without a network
    docker = "docker"  # and the context of an image that serves it
    azureml = "azureml"  # and a managed online endpoint of Azure Machine Learning


IMAGE = re.compile(r"[a-z0-9][\w.:/@-]*", re.ASCII)
ENDPOINT = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")
INSTANCE = re.compile(r"Standard_\w+", re.ASCII)
OF_FORMATS = {
    "base_image": (FormatName.docker, FormatName.azureml),
    "endpoint": (FormatName.azureml,),
    "instance_type": (FormatName.azureml,),
    "instance_count": (FormatName.azureml,),
}


@dataclass
class Format:
    """Of the group ``format``."""

    name: FormatName = FormatName.folder
    base_image: str | None = None  # docker, azureml: with Python 3.11
    endpoint: str | None = None  # azureml: unique in its region; null: after the model
    instance_type: str | None = None  # azureml: the size of the machine
    instance_count: int | None = None  # azureml

    def __post_init__(self) -> None:
        """Raise ``ValueError`` naming the key, its value and what is allowed."""
        for key, formats in OF_FORMATS.items():
            value = getattr(self, key)
            if value is not None and self.name not in formats:
                raise ValueError(
                    f"format.{key}={value} says nothing to format={self.name}; type "
                    f"format={formats[0]}, or leave format.{key} out"
                )
        self._match("base_image", IMAGE, "the name of an image, as python:3.11-slim")
        self._match("endpoint", ENDPOINT, "3 to 32 letters, digits and '-', a letter first")
        self._match("instance_type", INSTANCE, "a size of Azure's, as Standard_DS3_v2")
        if self.instance_count is not None and self.instance_count < 1:
            raise ValueError(f"format.instance_count is {self.instance_count}; allowed: 1 or more")

    def _match(self, key: str, pattern: re.Pattern[str], allowed: str) -> None:
        value = getattr(self, key)
        if value is not None and not pattern.fullmatch(value):
            raise ValueError(f"format.{key} is {value!r}; allowed: {allowed}")


@dataclass
class ExportConfig(Versions):
    """Of the entry point export."""

    output: str = MISSING  # folder; relative: from the repository's root
    format: Format = field(default_factory=Format)
    model_uri: str | None = None  # null: the current version of the model, custom_onnx first
