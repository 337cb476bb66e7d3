"""Arguments of ``mlflow run`` to overrides of Hydra."""

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

HYDRA_FLAGS_WITH_VALUE = {
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun"),
}
HYDRA_FLAGS = HYDRA_FLAGS_WITH_VALUE | {
    *("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--info", "-i"),
}


LIST_OF_URIS = "models"
"""The key that MLproject passes in brackets: a URI may hold # and =, which the grammar refuses."""

RUN_ID = re.compile(r"[0-9a-fA-F]+")
"""Of the key ``run_id`` a text, also where the grammar would read a number: 0012, 12e7."""

LEFT_TO_CONFIG = re.compile(r"\w+=default")
"""What MLproject passes for a group that nobody chose: defaults list or experiment decide."""


def to_overrides(arguments: Sequence[str]) -> list[str]:
    """Translate ``--key value``, which MLflow appends for ``-P key=value``, into ``key=value``.

    Everything in Hydra's own syntax passes unchanged. ``group=default`` is dropped.
    """
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, separator, value = argument.partition("=")
        if flag in HYDRA_FLAGS_WITH_VALUE and not separator and rest:
            overrides += [argument, rest.pop(0)]
        elif argument.startswith("--") and flag not in HYDRA_FLAGS and (separator or rest):
            overrides.append(quoted(flag[2:], value if separator else rest.pop(0)))
        elif argument:
            overrides.append(_requoted(argument))
    return [override for override in overrides if not LEFT_TO_CONFIG.fullmatch(override)]


def sweeps(overrides: Sequence[str]) -> bool:
    """Whether they ask for more than one point: a list of values, a preset, a sweep to go on with.

    Not where Hydra is told what to do: to show the config, or to sweep in so many words.
    """
    if any(override.startswith("-") for override in overrides):
        return False
    return any(map(_sweeps, overrides))


def _sweeps(override: str) -> bool:
    key, _, value = override.partition("=")
    if key == "sweep":
        return value != "null"
    if key == "sweep.resume":
        return value not in ("auto", "never")
    try:
        return bool(OverridesParser.create().parse_override(override).is_sweep_override())
    except HydraException:  # told when it is composed
        return False


def quoted(key: str, value: str) -> str:
    """``key=value`` in Hydra's grammar: a value that the grammar refuses is quoted as a text, or,
    where it is a list of URIs, each of them."""
    override = f"{key}={value}"
    if key == "run_id" and RUN_ID.fullmatch(value):
        return f"{key}={_as_text(value)}"
    try:
        OverridesParser.create().parse_override(override)
        return override
    except HydraException:
        if key == LIST_OF_URIS and value.startswith("[") and value.endswith("]"):
            return f"{key}=[{','.join(_as_text(uri.strip()) for uri in value[1:-1].split(','))}]"
        return f"{key}={_as_text(value)}"


def _as_text(value: str) -> str:
    # Between quotes a backslash stands for itself, but before a quote for half of a pair.
    doubled = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value)
    return "'" + doubled.replace("'", "\\'") + "'"


def _requoted(argument: str) -> str:
    # MLproject's own `group={group}` arrives in this form, its value as the user typed it.
    key, separator, value = argument.partition("=")
    plain = separator and not argument.startswith(("-", "+", "~"))
    return quoted(key, value) if plain else argument
