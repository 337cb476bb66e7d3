"""A composed config to its dataclass, once, at the edge: below, nothing knows Hydra."""

from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue

from slmflow.config.explain import suggestion
from slmflow.errors import ConfigError


def typed(config: DictConfig) -> Any:
    """The dataclass that the config's schema names, checked.

    Raises ``ConfigError`` for a mandatory value that is missing, for a key that the schema does
    not have (``+foo=1`` slips past OmegaConf) and for values that do not go together.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{missing[0]} is not set; type {missing[0]}=...")
    try:
        OmegaConf.resolve(config)
        converted = OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise ConfigError(str(error)) from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _reject_unknown(config, converted, "")
    return converted


def without_hydra(config: DictConfig) -> DictConfig:
    """The application's own part of what Hydra composed."""
    own = config.copy()
    with open_dict(own):
        own.pop("hydra", None)
    return own


def _reject_unknown(config: Any, converted: Any, path: str) -> None:
    if isinstance(converted, dict):
        for key, child in converted.items():
            _reject_unknown(config[key], child, f"{path}{key}.")
    if not is_dataclass(converted):
        return
    known = [field.name for field in fields(converted)]
    for key in config:
        where = f"{path}{key}"
        if key not in known:
            hint = suggestion(str(key), known)
            raise ConfigError(f"{where} is no key of this config{hint}; it has {', '.join(known)}")
        child = config[key]
        if isinstance(child, DictConfig):
            _reject_unknown(child, getattr(converted, key), f"{where}.")
