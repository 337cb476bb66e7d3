"""An MLflow model of somebody else: one text column in, texts out. It dies of the word DIE."""

import os

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Shouting(PythonModel):
    def predict(self, context, model_input, params=None):
        texts = list(model_input["question"])
        if any("DIE" in text for text in texts):
            os._exit(7)
        return [text.upper() for text in texts]


set_model(Shouting())
