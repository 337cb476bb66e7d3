"""Code that comes with a checkpoint, which loading it would run.

A checkpoint names its classes in ``auto_map``, as ``module.Class`` of its own folder or
``owner/name--module.Class`` of another repository. Many popular ones still name code that
transformers has taken over since; that code is never run, and those checkpoints are no matter.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slmflow.errors import SourceError

ELSEWHERE = "--"


def named(folder: Path) -> list[str]:
    """Every class that the checkpoint brings for a causal language model and its tokenizer."""
    return [*_of_model(_read(folder / "config.json")), *_of_tokenizer(_tokenizer(folder))]


def needed(folder: Path) -> list[str]:
    """Those that transformers lacks, so that the checkpoint cannot be loaded without them."""
    config = _read(folder / "config.json")
    model = _of_model(config)
    return [*([] if not model or _has_model(config) else model), *needed_tokenizer(folder)]


def needed_tokenizer(folder: Path) -> list[str]:
    about = _tokenizer(folder)
    classes = _of_tokenizer(about)
    return [] if not classes or _has_tokenizer(folder, about) else classes


def modules(references: list[str]) -> list[str]:
    """Their files: ``modeling_small.SmallModel`` is in ``modeling_small.py``."""
    return sorted({f"{reference.rpartition('.')[0]}.py" for reference in references})


def _of_model(config: Mapping[str, Any]) -> list[str]:
    classes = config.get("auto_map") or {}
    if not isinstance(classes, Mapping):
        raise _unreadable("config.json", "its auto_map is no mapping")
    named = [classes.get(name) for name in ("AutoConfig", "AutoModelForCausalLM")]
    return _texts("config.json", named)


def _of_tokenizer(about: Mapping[str, Any]) -> list[str]:
    classes = about.get("auto_map") or {}
    # Slow and fast; an older form is the list alone.
    both = classes.get("AutoTokenizer") if isinstance(classes, Mapping) else classes
    return _texts("tokenizer_config.json", both if isinstance(both, list) else [both])


def _texts(file: str, classes: Sequence[Any]) -> list[str]:
    """Without those that are null, which transformers cannot load either."""
    named = [one for one in classes if one]
    if not all(isinstance(one, str) for one in named):
        raise _unreadable(file, "its auto_map names what is no class")
    return named


def _has_model(config: Mapping[str, Any]) -> bool:
    """Both by its type, as transformers looks for it, and by its class, as MLflow does: what MLflow
    does not find there it loads with trust in remote code."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    named = (config.get("architectures") or [""])[0]
    return config.get("model_type") in CONFIG_MAPPING and named in dir(transformers)


def _has_tokenizer(folder: Path, about: Mapping[str, Any]) -> bool:
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    named = str(about.get("tokenizer_class") or "")
    kind = _read(folder / "config.json").get("model_type")
    return named in dir(transformers) or bool(TOKENIZER_MAPPING_NAMES.get(kind))


def _tokenizer(folder: Path) -> dict[str, Any]:
    return _read(folder / "tokenizer_config.json")


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        told = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise _unreadable(str(file), str(error)) from None
    if not isinstance(told, dict):
        raise _unreadable(str(file), "it holds no JSON object")
    return told


def _unreadable(file: str, why: str) -> SourceError:
    return SourceError(
        f"{file} of the checkpoint cannot be read ({why}); mend it, or get the checkpoint again"
    )
