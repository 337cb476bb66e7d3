"""What an exported model needs installed: its own exact versions, the server's, the tested rest."""

from collections.abc import Iterable
from contextlib import suppress

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from slmflow.checkout import PROJECT_ROOT
from slmflow.export.model import Model

SERVER = (
    *("hydra-core", "omegaconf", "fastapi", "uvicorn", "prometheus-client", "psutil", "pyyaml"),
    *("filelock", "rich", "tenacity", "jsonschema", "referencing"),
)
"""What ``serve`` imports beside the packaged model's own packages."""

OTHERS = "# The model pins other versions than those that were tested together: pip decides.\n"


def server_requirements(model: Model) -> str:
    """requirements.txt of an image: the model's lines, then the server's with their ranges."""
    ranges = {_name(line): line for line in _lines("requirements.txt")}
    pinned = _names(model.requirements)
    server = [ranges[name] for name in map(canonicalize_name, SERVER) if name not in pinned]
    return "\n".join([*model.requirements, *server]) + "\n"


def constraints(model: Model) -> str:
    """The versions that this project is tested with, for what the model does not pin.

    Where it pins others, packages that belong together (mlflow, mlflow-skinny) would exclude each
    other: then there are none.
    """
    tested = [(line, Requirement(line)) for line in _lines("constraints.txt")]
    for pin in _parsed(model.requirements):
        name = canonicalize_name(pin.name)
        known = [one.specifier for _, one in tested if canonicalize_name(one.name) == name]
        if known and pin.specifier not in known:  # several: each for another platform
            return OTHERS
    pinned = _names(model.requirements)
    return "\n".join(line for line, _ in tested if _name(line) not in pinned) + "\n"


def _lines(file: str) -> list[str]:
    """Requirements alone: no options, no comments."""
    text = (PROJECT_ROOT / file).read_text("utf-8")
    lines = [line.split(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def _parsed(lines: Iterable[str]) -> list[Requirement]:
    """Without those of other models that are options or paths."""
    found = []
    for line in lines:
        with suppress(InvalidRequirement):
            found.append(Requirement(line))
    return found


def _names(lines: Iterable[str]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in _parsed(lines)}


def _name(line: str) -> str:
    return canonicalize_name(Requirement(line).name)
