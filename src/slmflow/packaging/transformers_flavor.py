"""MLflow's ``transformers`` flavour of a checkpoint.

``mlflow.transformers.save_model`` writes the same keys, but to find out the tokenizer's class it
imports torch, for four seconds, and it saves the tokenizer anew, with bytes of its own that each
model would add to the store. The files of the checkpoint say all that it takes: ``AutoTokenizer``
finds the class where the model is loaded.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slmflow.errors import SourceError
from slmflow.machine import installed_version
from slmflow.served.transformers_model import WEIGHTS
from slmflow.served.weights import File, Manifest
from slmflow.sources import LocalModel

TOKENIZER = "components/tokenizer"  # where mlflow.transformers looks for it inside a model
OF_THE_MODEL = (".safetensors", ".safetensors.index.json", ".py", "generation_config.json")


def transformers_flavor(weights: LocalModel, dtype: str) -> dict[str, Any]:
    """What MLmodel says of it. ``dtype``: torch's name.

    Raises ``SourceError`` where the checkpoint does not name its class.
    """
    return {
        "task": "text-generation",
        "inference_task": "llm/v1/chat",
        "instance_type": "TextGenerationPipeline",
        "pipeline_model_type": _architecture(weights),
        "source_model_name": weights.source,
        "model_binary": WEIGHTS,
        "components": ["tokenizer"],
        "tokenizer_type": "AutoTokenizer",
        "torch_dtype": f"torch.{dtype}",
        "transformers_version": installed_version("transformers"),
    }


def with_tokenizer(manifest: Manifest) -> Manifest:
    """The large ones of the tokenizer's files are in the model twice."""
    names = [name for name in tokenizer_files(manifest.files) if name in manifest.large]
    return replace(manifest, copies={f"{TOKENIZER}/{name}": name for name in names})


def tokenizer_files(files: Mapping[str, File]) -> list[str]:
    """Names: the tokenizer's own, and config.json, by which ``AutoTokenizer`` finds its class."""
    return [name for name in files if not name.endswith(OF_THE_MODEL)]


def _architecture(weights: LocalModel) -> str:
    config: Any = json.loads((weights.path / "config.json").read_text("utf-8"))
    named = config.get("architectures") if isinstance(config, dict) else None
    if not (isinstance(named, list) and named and isinstance(named[0], str)):
        raise SourceError(
            f"config.json of {weights.source} names no class: MLflow's transformers flavour loads "
            'the one in "architectures", such as ["Phi3ForCausalLM"]; add it there'
        )
    return named[0]
