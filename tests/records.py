"""Runs as ``rerun`` reads them, without a tracking server."""

from collections.abc import Mapping
from typing import Any

from mlflow.entities import Param, Run, RunData, RunInfo, RunTag

from slmflow.replay.record import Record


def a_record(
    tags: Mapping[str, str],
    documents: Mapping[str, Any],
    parts: tuple[Record, ...] = (),
    parameters: Mapping[str, str] | None = None,
    status: str = "FINISHED",
) -> Record:
    info = RunInfo("1", "1", "me", status, 0, 1, "active", run_name="one")
    data = RunData(
        tags=[RunTag(key, value) for key, value in tags.items()],
        params=[Param(key, value) for key, value in (parameters or {}).items()],
    )
    return Record(Run(info, data), documents, parts)
