"""What the benchmarks share: options, the work folder, its models, processes, run stores."""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.checkpoint import Shape, write_checkpoint
from slmflow import cache, console
from slmflow.cli import QUIET
from slmflow.config.schema import Device, Dtype, Hardware, Precision, Provider, Target
from slmflow.packaging.onnx_build import build
from slmflow.sources import PROJECT_ROOT, LocalModel, find_checkpoint

INT4 = Hardware(
    target=Target.cpu,
    device=Device.cpu,
    dtype=Dtype.float32,
    provider=Provider.cpu,
    precision=Precision.int4,
    block_size=32,
    accuracy_level=4,
)
EXPERIMENT = "slmflow"
LAST_LINES = 20


def parser(name: str, about: str | None, rounds: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    work = Path.home() / ".cache" / "slmflow-bench"
    made.add_argument("--work", type=Path, default=work, help="models are kept here (%(default)s)")
    made.add_argument("--rounds", type=int, default=rounds, help="(default: %(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return made


def prepare(work: Path) -> Path:
    """Make the work folder the cache of this process and of all that it starts; keep all quiet."""
    work = work.expanduser().resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.update(QUIET)
    os.environ["MLFLOW_LOGGING_LEVEL"] = "ERROR"
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # where it is imported already
    os.environ["SLMFLOW_CACHE"] = str(work)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)
    return work


def int4_model(shape: Shape) -> LocalModel:
    """The shape's ONNX model, int4 in blocks of 32 with 8-bit activations; made at first use."""
    key = {name: str(value) for name, value in asdict(shape).items()} | {"seed": "0"}
    with console.step(f"int4 model of {shape.parameters / 1e6:.0f} M parameters"):
        folder, _ = cache.entry("checkpoint", key, lambda path: write_checkpoint(path, shape))
        checkpoint = find_checkpoint(str(folder), None, console.note)
        return build(checkpoint, INT4, console.note)


def measured_by(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``python -m bench.NAME ...`` in a process of its own: its one JSON object."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True
    )
    check(result)
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measured


def check(result: "subprocess.CompletedProcess[str]") -> None:
    if result.returncode != 0:
        lines = (result.stdout + result.stderr).strip().splitlines()[-LAST_LINES:]
        command = " ".join(result.args)
        sys.exit("\n".join([f"{command} ended with exit code {result.returncode}:", *lines]))


@contextmanager
def run_store(place: Path) -> Iterator[str]:
    """An empty tracking store for this process and all that it starts; its URI.

    It goes at the end, with all that was logged.
    """
    import mlflow

    with tempfile.TemporaryDirectory(prefix="store-", dir=place) as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        with _environment({"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": EXPERIMENT}):
            # Its artifacts lie beside it: a sqlite store would leave them in the working folder.
            mlflow.create_experiment(EXPERIMENT, artifact_location=f"{folder}/artifacts")
            yield uri


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
