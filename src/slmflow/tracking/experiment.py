"""The experiment of this project's runs, as the environment has it. Without MLflow, which takes
seconds to be imported."""

import os

EXPERIMENT = "slmflow"


def experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def experiment_id() -> str | None:
    """Where it is set it counts, and not the name."""
    return os.environ.get("MLFLOW_EXPERIMENT_ID")
