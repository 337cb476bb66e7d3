"""Runs of a tracking store, run again from this process, and what was said of them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run

from slmflow import workflows
from slmflow.config.rerun import Rerun, RerunConfig
from tests.conftest import Workplace
from tests.trees import runs


def seen_here(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    for name in ("MLFLOW_EXPERIMENT_NAME", "SLMFLOW_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, workplace.environment[name])
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(workplace.tracking_uri)
    yield workplace
    mlflow.set_tracking_uri(before)


def named(workplace: Workplace, name: str) -> Run:
    return next(run for run in runs(workplace) if run.info.run_name == name)


def again(run_id: str, **settings: Any) -> None:
    """``rerun`` as the door calls it."""
    config = RerunConfig(run_id, Rerun(**settings))
    workflows.rerun(workflows.Invocation(config, {"run_id": run_id, "rerun": settings}, {}))


def report_of(workplace: Workplace, run: Run) -> dict[str, Any]:
    place = workplace.client.download_artifacts(run.info.run_id, "rerun.json")
    told: dict[str, Any] = json.loads(Path(place).read_text())
    return told


def last_rerun(workplace: Workplace) -> Run:
    found = [run for run in runs(workplace) if run.data.tags.get("slmflow.entry_point") == "rerun"]
    return max(found, key=lambda run: int(run.info.start_time))


def verdicts(report: Mapping[str, Any]) -> dict[str, str]:
    return {f"{one['part']}: {one['what']}": one["sameness"] for one in report["findings"]}


def counted(report: Mapping[str, Any]) -> set[str]:
    """Verdicts of what is no noise."""
    return {one["sameness"] for one in report["findings"]} - {"varies"}
