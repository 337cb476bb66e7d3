"""Settings of a rerun, and the config that a run recorded as its dataclass, without Hydra."""

import re
from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slmflow.config.export import ExportConfig
from slmflow.config.lock import LockConfig
from slmflow.config.schema import (
    CustomOnnxConfig,
    EvaluateConfig,
    MainConfig,
    MaterialiseConfig,
    PredictConfig,
    ServeConfig,
    TransformersPipelineConfig,
)
from slmflow.errors import ConfigError

REPEATABLE = {
    "transformers_pipeline": TransformersPipelineConfig,
    "custom_onnx": CustomOnnxConfig,
    "evaluate": EvaluateConfig,
    "main": MainConfig,
    "serve": ServeConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "lock": LockConfig,
    "materialise": MaterialiseConfig,
}
"""Entry points whose runs can be run again."""

PLACES = ("model.source", "model.onnx.source", "data.path", "speed.prompts", "input")
"""Keys that say where something lies, not what it is."""


@dataclass
class Rerun:
    strict: bool = False  # exit 2 where a result or the weights differ
    fresh: bool = False  # build the ONNX model anew, whatever the build cache holds
    # predict, export: the folder that is written; null: beside that of then
    output: str | None = None
    # What lies elsewhere now, key to place; null: nothing does. Of any type, because Hydra refuses
    # to put keys into a dictionary that is empty.
    places: Any = None

    def __post_init__(self) -> None:
        if self.places is not None and not isinstance(self.places, dict):
            raise ValueError(
                f"rerun.places is {self.places!r}; give keys and places: "
                "rerun.places={model.source: FOLDER}"
            )
        unknown = sorted(set(self.moved) - set(PLACES))
        if unknown:
            raise ValueError(
                f"rerun.places names {unknown[0]}, and a rerun changes nothing but where things "
                f"lie; allowed: {', '.join(PLACES)}"
            )

    @property
    def moved(self) -> dict[str, str]:
        return {key: str(place) for key, place in (self.places or {}).items()}


@dataclass
class RerunConfig:
    """Of the entry point rerun."""

    run_id: str = MISSING  # or how it begins, runs:/ID, models:/NAME/3, models:/NAME@ALIAS
    rerun: Rerun = field(default_factory=Rerun)
    trust: str | None = None  # as where models are packaged: who runs it again confirms it again


@dataclass(frozen=True)
class Rebuilt:
    """A recorded config in the schema of today.

    ``values``: the whole of it, plain. ``added``: dotted keys that the record lacks and that have
    their default; ``gone``: those that the schema has no more, which are left out.
    """

    config: Any
    values: Mapping[str, Any]
    added: tuple[str, ...]
    gone: tuple[str, ...]


def rebuilt(entry_point: str, values: Mapping[str, Any]) -> Rebuilt:
    """Every text as it stands: what a record calls ``${oc.env:NAME}`` is no variable of whoever
    runs it again.

    Raises ``ConfigError`` for an entry point whose runs cannot be run again, and where the schema
    of today does not take what was recorded.
    """
    schema = schema_of(entry_point)
    known, gone = _known(schema, values, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), _literal(known))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(
                f"the run recorded no {missing[0]}, which {entry_point} needs by now; it was "
                f"recorded by another version of this project: check out its commit to repeat it"
            )
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError) as error:
        told = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the recorded config of {entry_point} does not go with the schema of today: {told}; "
            "check out the commit of the run to repeat it"
        ) from None
    whole = OmegaConf.to_container(merged, resolve=True, enum_to_str=True)
    assert isinstance(whole, dict)
    plain = {str(key): value for key, value in whole.items()}
    return Rebuilt(config, plain, tuple(_absent(schema, values, "")), tuple(gone))


def schema_of(entry_point: str) -> Any:
    if entry_point not in REPEATABLE:
        raise ConfigError(
            f"a run of {entry_point} cannot be run again; those of {', '.join(REPEATABLE)} can"
        )
    return REPEATABLE[entry_point]


def replaced(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the dotted keys of ``changes`` set."""
    copy = dict(values)
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        copy[head] = replaced(copy.get(head) or {}, {rest: value}) if rest else value
    return copy


def value_of(values: Mapping[str, Any], key: str) -> Any:
    """Of a dotted key; None where it is not there."""
    head, _, rest = key.partition(".")
    value = values.get(head)
    if not rest:
        return value
    return value_of(value, rest) if isinstance(value, Mapping) else None


def _literal(value: Any) -> Any:
    """With every text escaped (OmegaConf, "Escaping in interpolations"): a record is resolved."""
    if isinstance(value, Mapping):
        return {key: _literal(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_literal(child) for child in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", value)
    return value


def _known(schema: Any, values: Mapping[str, Any], path: str) -> tuple[dict[str, Any], list[str]]:
    """The values whose keys the schema has, and the dotted keys of the others."""
    hints = get_type_hints(schema)
    known: dict[str, Any] = {}
    gone: list[str] = []
    for key, value in values.items():
        if key not in hints:
            gone.append(f"{path}{key}")
            continue
        known[key], lost = _known_value(hints[key], value, f"{path}{key}.")
        gone += lost
    return known, gone


def _known_value(hint: Any, value: Any, path: str) -> tuple[Any, list[str]]:
    kind = _dataclass_in(hint)
    if kind is None:
        return value, []
    if isinstance(value, Mapping) and get_origin(hint) is dict:
        parts = {key: _known(kind, child, f"{path}{key}.") for key, child in value.items()}
        return {key: part for key, (part, _) in parts.items()}, _joined(parts.values())
    if isinstance(value, Mapping):
        return _known(kind, value, path)
    if isinstance(value, list):
        items = [_known(kind, child, path) for child in value]
        return [item for item, _ in items], _joined(items)
    return value, []


def _joined(parts: Any) -> list[str]:
    return list(dict.fromkeys(key for _, gone in parts for key in gone))


def _absent(schema: Any, values: Mapping[str, Any], path: str) -> list[str]:
    """Dotted keys that have a default in the schema and are not among the values."""
    hints = get_type_hints(schema)
    absent = []
    for one in fields(schema):
        if one.name not in values:
            if _has_default(one):
                absent.append(f"{path}{one.name}")
            continue
        kind, value = _dataclass_in(hints[one.name]), values[one.name]
        if kind is not None and isinstance(value, Mapping) and get_origin(hints[one.name]) is None:
            absent += _absent(kind, value, f"{path}{one.name}.")
    return absent


def _has_default(one: "Field[Any]") -> bool:
    plain = one.default is not NO_DEFAULT and one.default != MISSING
    return plain or one.default_factory is not NO_DEFAULT


def _dataclass_in(hint: Any) -> Any:
    """The dataclass that a type is or holds: ``X``, ``X | None``, ``list[X]``, ``dict[str, X]``."""
    if is_dataclass(hint):
        return hint
    if get_origin(hint) in (UnionType, Union, list, dict):
        held = [argument for argument in get_args(hint) if argument is not NoneType]
        return _dataclass_in(held[-1]) if held else None
    return None
