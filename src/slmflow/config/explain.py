"""Hydra's and OmegaConf's errors in one message: the key, the value, what is allowed."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

BARE_ERRORS = {
    "Config group override must be a string or a list": (
        "a group needs the name of an option, not null; leave it out for its default"
    ),
    "Unexpected type for root: NoneType": (
        "a key below null cannot be set; choose an option of its group with it, "
        "as in search=greedy search.temperature=0.5"
    ),
}
"""How Hydra and OmegaConf begin what they raise as plain ValueError or AssertionError."""


def explain(error: Exception) -> str:
    """The message for a person. Falls back on the error's own first lines."""
    if (bare := _bare_error(error)) is not None:
        return bare
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} is not KEY=VALUE in Hydra's grammar; put quotes around a value "
            f"with special characters: KEY=\"'a, b'\""
        )
    cause = _omegaconf_error(error)
    if cause is not None and cause.full_key:
        return _value_or_key(cause)
    return _plain(str(error))


def is_config_error(error: BaseException) -> bool:
    known = isinstance(error, HydraException | OmegaConfBaseException)
    return known or _bare_error(error) is not None


def suggestion(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _missing_option(error: MissingConfigException) -> str:
    config = error.missing_cfg_file or "config"
    group, _, option = str(config).rpartition("/")
    options = [option for option in error.options or [] if option]
    if not group:
        return _plain(str(error))
    hint = suggestion(option, options)
    return f"{group}={option}: no such option{hint}; {group} has {', '.join(options)}"


def _value_or_key(error: OmegaConfBaseException) -> str:
    key = str(error.full_key)
    message = _plain(str(error.msg or error))
    node = error.parent_node
    if re.match(r"Key '.*' (is )?not in ", message) and node is not None:
        name = key.rpartition(".")[2]
        known = [str(known) for known in node if known != "hydra"]
        return (
            f"{key}: no such key{suggestion(name, known)}; "
            f"{key.rpartition('.')[0] or 'this config'} has {', '.join(known)}"
        )
    if "is not a ListConfig" in message:
        return f"{key}: a list is needed: {key}=[A,B], or {key}=\"['A, with a comma']\""
    return f"{key}: {message}"


def _bare_error(error: BaseException) -> str | None:
    message = str(error)
    found = (told for begin, told in BARE_ERRORS.items() if message.startswith(begin))
    return next(found, None)


def _omegaconf_error(error: BaseException) -> OmegaConfBaseException | None:
    while error is not None:
        if isinstance(error, OmegaConfBaseException):
            return error
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return None


def _plain(message: str) -> str:
    lines = [line.strip() for line in message.splitlines()]
    kept = [
        line
        for line in lines
        if line and not re.match(r"(full_key|object_type|reference_type)[:=]", line)
    ]
    return "; ".join(kept)
