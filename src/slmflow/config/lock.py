"""Settings of the entry point lock, and the models that conf/model/ configures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slmflow.checkout import PROJECT_ROOT
from slmflow.config.schema import Model
from slmflow.errors import ConfigError, first_line

MODELS = PROJECT_ROOT / "conf" / "model"


@dataclass
class LockConfig:
    """Of the entry point lock."""

    models: list[str] = field(default_factory=list)  # options of conf/model; none: all


def configured_models(options: Sequence[str]) -> dict[str, Model]:
    """The options of conf/model by name, all where none is given. Raises ``ConfigError``."""
    known = sorted(file.stem for file in MODELS.glob("*.yaml"))
    for option in options:
        if option not in known:
            close = get_close_matches(option, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"models: no option {option}{hint}; model has {', '.join(known)}")
    return {option: _read(option) for option in options or known}


def _read(option: str) -> Model:
    file = MODELS / f"{option}.yaml"
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Model), OmegaConf.load(file))
        model = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} is no config of a model: {first_line(error)}") from None
    assert isinstance(model, Model)
    return model
