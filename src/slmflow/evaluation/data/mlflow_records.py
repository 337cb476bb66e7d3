"""MLflow's evaluation datasets (mlflow.genai.datasets): records with inputs and expectations."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.genai.datasets import EvaluationDataset, get_dataset, search_datasets

from slmflow.errors import DataError
from slmflow.evaluation.data.check import ASKS, refuse_unknown
from slmflow.evaluation.data.raw import RawRow
from slmflow.tracking.reason import reason

DATASET_ID = re.compile(r"d-[0-9a-f]{32}")
ANSWERS = {"expected_response": "reference", "expected_answer": "reference"}
CHECKS = ("references", "reference", "regex", "json_schema", "number")
FOR_JUDGES = ("expected_facts", "guidelines", "expected_retrieved_context", "expected_tool_calls")
"""What MLflow's own scorers expect; no metric here reads it."""
SHOWN_NAMES = 10


class Records:
    """The records as they were when fetched, in a temporary file.

    MLflow hands out all of them at once, so they are asked for once.
    """

    def __init__(self, wanted: str) -> None:
        """``wanted`` is a name or an id. Raises ``DataError``."""
        dataset = _find(wanted)
        self.dataset_id: str = dataset.dataset_id
        self._folder = TemporaryDirectory(prefix="slmflow-")
        self._file = Path(self._folder.name) / "records.jsonl"
        columns = ["dataset_record_id", "inputs", "expectations", "tags"]
        frame = dataset.to_df()
        with self._file.open("w", encoding="utf-8") as file:
            for values in frame.reindex(columns=columns).itertuples(index=False, name=None):
                file.write(json.dumps(dict(zip(columns, values, strict=True))) + "\n")

    def read(self) -> Iterator[RawRow]:
        with self._file.open(encoding="utf-8") as file:
            for line in file:
                yield _row(json.loads(line))


def _find(wanted: str) -> EvaluationDataset:
    by_id = DATASET_ID.fullmatch(wanted) is not None
    try:
        return get_dataset(dataset_id=wanted) if by_id else get_dataset(name=wanted)
    except MlflowException as error:
        raise DataError(f"data.path=mlflow:{wanted}: {reason(error)}; {_known()}") from None


def _known() -> str:
    try:
        found = search_datasets(max_results=SHOWN_NAMES)
    except MlflowException:
        return "the tracking store does not list its datasets"
    if not found:
        return "the tracking store has no dataset"
    names = [f"mlflow:{dataset.name}" for dataset in found]
    more = ["..."] if len(names) == SHOWN_NAMES else []
    return f"the tracking store has {', '.join(names + more)} (ids, mlflow:d-..., do as well)"


def _row(record: Mapping[str, Any]) -> RawRow:
    name = record["dataset_record_id"]
    place = f"record {name}"
    try:
        return RawRow(place, name, _fields(record))
    except ValueError as error:
        return RawRow(place, name, problem=str(error))


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    inputs = record["inputs"] or {}
    expectations = record["expectations"] or {}
    refuse_unknown("input", inputs, ASKS)
    refuse_unknown("expectation", expectations, (*CHECKS, *ANSWERS, *FOR_JUDGES))
    fields = {**inputs, "tags": _own_tags(record["tags"] or {})}
    for name, value in expectations.items():
        field = ANSWERS.get(name, name)
        if field in fields:
            raise ValueError("has more than one expected answer; list them as references")
        if name not in FOR_JUDGES:
            fields[field] = value
    return fields


def _own_tags(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that MLflow sets itself."""
    return {name: value for name, value in tags.items() if not name.startswith("mlflow.")}
