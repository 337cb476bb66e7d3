"""Staged parts for engines, and what came of them."""

import json
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from slmflow.config.prediction import Engine
from slmflow.prediction.engines import local
from slmflow.prediction.model import ModelSpec
from slmflow.prediction.part import PartJob
from tests.conftest import ROOT, Packaged

ROWS = 12  # of each part
STAGED = pa.schema(
    [
        ("row", pa.int64()),
        ("own", pa.string()),
        ("slmflow.request", pa.string()),
        ("slmflow.problem", pa.string()),
    ]
)


def stage_parts(folder: Path, parts: int) -> list[PartJob]:
    """Every sixth row has no prompt."""
    return [_stage(folder, number) for number in range(parts)]


def answered_here(jobs: Iterable[PartJob], spec: ModelSpec) -> None:
    """By engine=local, with which the others are compared."""
    assert list(local.run(jobs, spec, Engine()))


def outputs(jobs: Iterable[PartJob]) -> list[pa.Table]:
    return [pq.read_table(job.output) for job in jobs]


def model_spec(packaged: Packaged) -> ModelSpec:
    """The ONNX model, by its URI alone: other nodes do not see folders of this one."""
    return ModelSpec(
        "models:/phi3-demo/2",
        model_config={"threads": 1, "max_new_tokens": 8},
        tracking_uri=packaged.workplace.tracking_uri,
        registry_uri=packaged.workplace.tracking_uri,
    )


def missing_model(packaged: Packaged) -> ModelSpec:
    return ModelSpec("models:/phi3-demo/99", tracking_uri=packaged.workplace.tracking_uri)


def started_here() -> list[psutil.Process]:
    """Processes below this one, but for its own."""
    return psutil.Process().children(recursive=True)


def held(by: str) -> list[tuple[psutil.Process, psutil.Process]]:
    """The processes that hold a model, each with the nearest one of that name above it. They run
    the code that was sent to their node."""
    found = []
    for process in started_here():
        with suppress(psutil.Error):  # it ended meanwhile
            command = " ".join(process.cmdline())
            if "answering/worker.py" in command:
                assert str(ROOT / "src") not in command  # .venv may lie in ROOT
                above = (parent for parent in process.parents() if parent.name().startswith(by))
                found += [(process, parent) for parent in islice(above, 1)]
    return found


def gone(processes: Iterable[psutil.Process], seconds: float = 30) -> bool:
    """Whether they end within that time."""
    _, alive = psutil.wait_procs(list(processes), timeout=seconds)
    return not alive


def _stage(folder: Path, number: int) -> PartJob:
    rows = []
    for row in range(number * ROWS, (number + 1) * ROWS):
        asked = {"prompt": "What is the capital of Spain? " * (1 + row % 3)}
        whole = row % 6 != 5
        rows.append(
            {
                "row": row,
                "own": f"row {row}",
                "slmflow.request": json.dumps(asked) if whole else None,
                "slmflow.problem": None if whole else "it has no prompt",
            }
        )
    staged = folder / "input" / f"{number}.parquet"
    staged.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, STAGED), staged)
    output, done = folder / f"part-{number:05}.parquet", folder / "done" / f"{number:05}.json"
    return PartJob(number, ROWS, str(staged), str(output), str(done))
