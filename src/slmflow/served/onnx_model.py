"""The MLflow Python model around an ONNX model, logged as code (no pickle)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from slmflow.served.onnx_runtime import OnnxRuntime
from slmflow.served.packaged import PackagedModel
from slmflow.served.weights import ready

WEIGHTS = "artifacts/model"  # where MLflow keeps the artifact inside a model


class OnnxModel(PythonModel):  # type: ignore[misc]
    """Loads the artifact ``model``; settings as for ``PackagedModel``, with provider, threads.

    Any of them can be changed when the model is loaded:
    ``mlflow.pyfunc.load_model(uri, model_config={"threads": 4})``.
    """

    def load_context(self, context: Any) -> None:
        settings = context.model_config
        model = Path(context.artifacts["model"]).parents[1]
        runtime = OnnxRuntime.load(ready(model, WEIGHTS), settings["provider"], settings["threads"])
        self.packaged = PackagedModel(runtime, settings)

    # MLflow reads the type hint: a frame says that the signature alone describes the input.
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[Any]:
        return self.packaged.predict(model_input)

    def predict_stream(
        self, context: Any, model_input: pd.DataFrame, params: Any = None
    ) -> Iterator[Any]:
        return self.packaged.predict_stream(model_input)


set_model(OnnxModel())
