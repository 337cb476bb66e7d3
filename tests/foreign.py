"""Models that this project did not package, saved where a test wants them."""

from pathlib import Path

import mlflow
import pandas as pd
from mlflow.models import infer_signature

MODELS = Path(__file__).with_name("models")


def save_text_model(folder: Path) -> str:
    signature = infer_signature(pd.DataFrame({"question": ["a"]}), ["A"])
    return _save(folder, "foreign_text.py", signature=signature)


def save_chat_model(folder: Path) -> str:
    return _save(folder, "foreign_chat.py")


def _save(folder: Path, name: str, **options: object) -> str:
    mlflow.pyfunc.save_model(
        folder, python_model=str(MODELS / name), pip_requirements=["mlflow"], **options
    )
    return str(folder)
