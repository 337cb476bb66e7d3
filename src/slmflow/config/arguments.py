"""Arguments of ``mlflow run`` to overrides of Hydra."""

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


LEFT_TO_CONFIG = "=default"
"""What MLproject passes for a group that nobody chose: defaults list or experiment decide."""


def to_overrides(arguments: Sequence[str]) -> list[str]:
    """Translate ``--key value``, which MLflow appends for ``-P key=value``, into ``key=value``.

    Everything in Hydra's own syntax passes unchanged. ``group=default`` is dropped.
    """
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag = argument.split("=", 1)[0]
        if flag in HYDRA_FLAGS_WITH_VALUE and "=" not in argument and rest:
            overrides += [argument, rest.pop(0)]
        elif argument.startswith("--") and flag not in HYDRA_FLAGS and rest:
            overrides.append(quoted(argument[2:], rest.pop(0)))
        elif argument and not argument.endswith(LEFT_TO_CONFIG):
            overrides.append(_requoted(argument))
    return overrides


def quoted(key: str, value: str) -> str:
    """``key=value`` in Hydra's grammar: a value that the grammar refuses is quoted as a text."""
    override = f"{key}={value}"
    try:
        OverridesParser.create().parse_override(override)
        return override
    except HydraException:
        escaped = value.replace("\\", "\\\\") if value.endswith("\\") else value
        return f"{key}='" + escaped.replace("'", "\\'") + "'"


def _requoted(argument: str) -> str:
    # MLproject's own `group={group}` arrives in this form, its value as the user typed it.
    key, separator, value = argument.partition("=")
    plain = separator and not argument.startswith(("-", "+", "~"))
    return quoted(key, value) if plain else argument
