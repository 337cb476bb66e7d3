"""Sweeps as the tracking server shows them, for tests."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from tests.conftest import Workplace

PATIENCE = 120  # seconds; a guard against hanging, no promise of speed
PARENT = "mlflow.parentRunId"
POINT = "slmflow.sweep.point"


def runs(workplace: Workplace) -> list[Run]:
    client = workplace.client
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found: list[Run] = client.search_runs(experiments, max_results=1000)
    return found


def of_main(workplace: Workplace) -> list[Run]:
    """All that began before the store's first run, main, had ended: other tests use its models
    later, which makes runs, too."""
    found = sorted(runs(workplace), key=lambda run: int(run.info.start_time))
    main = found[0]
    assert main.info.run_name == "main phi3-demo"
    return [run for run in found if run.info.start_time <= main.info.end_time]


def parents(workplace: Workplace) -> list[Run]:
    """The sweeps, oldest first."""
    sweeps = [run for run in runs(workplace) if "slmflow.sweep.key" in run.data.tags]
    return sorted(sweeps, key=lambda run: run.info.start_time)


def points(workplace: Workplace, parent: Run) -> list[Run]:
    """Its children, all of them, by their place in the sweep."""
    below = [run for run in runs(workplace) if run.data.tags.get(PARENT) == parent.info.run_id]
    return sorted(below, key=lambda run: int(run.data.tags[POINT]))


def overrides(point: Run) -> list[str]:
    read: list[str] = json.loads(point.data.tags["slmflow.sweep.overrides"])
    return read


def states(workplace: Workplace, parent: Run) -> list[str]:
    return [point.info.status for point in points(workplace, parent)]


def artifact(workplace: Workplace, run: Run, name: str) -> str:
    place: str = workplace.client.download_artifacts(run.info.run_id, name)
    return Path(place).read_text()


def table(workplace: Workplace, parent: Run) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(artifact(workplace, parent, "sweep.json"))
    return read


def wait_for(what: Callable[[], Any]) -> Any:
    """What it gives, once that is something."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {PATIENCE} s in vain")
