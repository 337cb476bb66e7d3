"""An evaluation set as MLflow's input of a run: what it is, not its rows."""

import json
from pathlib import Path
from typing import Any

from mlflow.data.dataset import Dataset as MlflowDataset
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.data.evaluation_dataset_source import EvaluationDatasetSource

from slmflow.checkout import PROJECT_ROOT
from slmflow.evaluation.data.dataset import Dataset
from slmflow.evaluation.data.origin import Origin

DIGEST_LENGTH = 36  # MLflow refuses more


class LoggedDataset(MlflowDataset):  # type: ignore[misc]
    """``mlflow.data.from_pandas`` would need the rows, and ``MetaDataset`` has no profile."""

    def __init__(self, dataset: Dataset) -> None:
        self._profile = {"num_rows": dataset.rows, "num_rows_in_source": dataset.of}
        if dataset.seed is not None:
            self._profile["seed"] = dataset.seed
        source = _source(dataset.origin)
        super().__init__(source, dataset.name, dataset.digest[:DIGEST_LENGTH])

    @property
    def profile(self) -> dict[str, int]:
        return self._profile

    @property
    def schema(self) -> None:
        """None is known."""

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "profile": json.dumps(self._profile)}


def as_mlflow(dataset: Dataset) -> MlflowDataset:
    """For ``mlflow.log_input``. The whole digest is in ``dataset.digest``."""
    return LoggedDataset(dataset)


def _source(origin: Origin) -> DatasetSource:
    if origin.path is None:
        return EvaluationDatasetSource(origin.dataset_id)
    return get_dataset_source_from_json(json.dumps({"uri": _shown(origin.path)}), "local")


def _shown(path: Path) -> str:
    inside = path.is_relative_to(PROJECT_ROOT)
    return (path.relative_to(PROJECT_ROOT) if inside else path).as_posix()
