"""A metric of the user's own: ``module:function``, imported and looked at before anything runs."""

import importlib
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from slmflow.errors import ConfigError


def import_metric(asked: str) -> Callable[..., Any]:
    """The function that ``asked`` names, from the current folder or PYTHONPATH.

    Raises ``ConfigError`` where there is none or it does not take an answer and an example.
    """
    module_name, _, name = asked.partition(":")
    if not all(map(str.isidentifier, [*module_name.split("."), name])):
        raise ConfigError(f"metrics: {asked!r} is not module:function, as in my_metrics:politeness")
    module = _import(module_name, asked)
    function: Any = getattr(module, name, None)
    if not callable(function):
        close = get_close_matches(name, [key for key in vars(module) if key[0] != "_"], n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        where = getattr(module, "__file__", None) or module_name
        raise ConfigError(f"metrics: {asked}: no function {name} in {where}{hint}")
    _require_two_arguments(function, asked)
    return cast(Callable[..., Any], function)


def _import(module_name: str, asked: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise _not_imported(error, module_name, asked) from None
        raise ConfigError(
            f"metrics: {asked}: no module {error.name} in {here} nor on PYTHONPATH; run from the "
            "folder that holds it, or put that folder on PYTHONPATH"
        ) from None
    except Exception as error:  # of code that is not ours
        raise _not_imported(error, module_name, asked) from None


def _not_imported(error: Exception, module_name: str, asked: str) -> ConfigError:
    said = f"{type(error).__name__}: {error}"
    return ConfigError(f"metrics: {asked}: {module_name} cannot be imported: {said}")


def _require_two_arguments(function: Callable[..., Any], asked: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin that tells none
        return
    try:
        signature.bind("answer", "example")
    except TypeError:
        raise ConfigError(
            f"metrics: {asked} takes {signature}; a metric takes (answer: str, example: Example) "
            "and returns a score from 0 to 1, or None where it does not apply"
        ) from None
