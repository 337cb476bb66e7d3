"""The loader of a transformers model's ``python_function`` flavour.

The model keeps MLflow's ``transformers`` flavour; only what answers ``pyfunc`` calls is this
project's, because MLflow's own wrapper ignores temperature, applies row 0's parameters to every
row and leaves stop texts in the answer.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmflow.served.packaged import PackagedModel
from slmflow.served.transformers_runtime import TransformersRuntime
from slmflow.served.weights import ready

WEIGHTS = "model"  # where mlflow.transformers keeps the checkpoint inside a model


class TransformersModel:
    def __init__(self, packaged: PackagedModel) -> None:
        self.packaged = packaged

    def predict(self, model_input: Any, params: Any = None) -> list[Any]:
        return self.packaged.predict(model_input)

    def predict_stream(self, model_input: Any, params: Any = None) -> Iterator[Any]:
        return self.packaged.predict_stream(model_input)

    def get_raw_model(self) -> PackagedModel:
        return self.packaged


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> TransformersModel:
    """Called by MLflow; ``model_config`` as for ``PackagedModel``, with device, dtype, threads."""
    settings = model_config or {}
    runtime = TransformersRuntime.load(
        ready(Path(path), WEIGHTS),
        settings["device"],
        settings["dtype"],
        settings["threads"],
        settings.get("trust_remote_code", False),
    )
    return TransformersModel(PackagedModel(runtime, settings))
