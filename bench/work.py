"""What the benchmarks share: options, the work folder, its models, processes, run stores."""

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.checkpoint import Shape, write_checkpoint
from slmflow import cache, console
from slmflow.checkout import PROJECT_ROOT
from slmflow.cli import QUIET
from slmflow.config.schema import Device, Dtype, Hardware, Precision, Provider, Target
from slmflow.packaging.onnx_build import build
from slmflow.sources import LocalModel, find_checkpoint

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
LISTENING = re.compile(r"listening on http://([^\s:;]+):(\d+)")
START_SECONDS = 120.0


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
        built, _ = build(checkpoint, INT4, console.note)
        return built


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


@dataclass(frozen=True)
class Served:
    """A server that listens: its own process, and the one that holds the model."""

    host: str
    port: int
    front: psutil.Process
    worker: psutil.Process

    @property
    def cpu_seconds(self) -> tuple[float, float]:
        """Used so far: by its own process, by the worker's."""
        times = (process.cpu_times() for process in (self.front, self.worker))
        front, worker = (used.user + used.system for used in times)
        return front, worker


@contextmanager
def served(place: Path, *arguments: str) -> Iterator[Served]:
    """The entry point serve, as it is typed, on a free port. It ends by SIGTERM."""
    command = [sys.executable, "-m", "entrypoints.serve", "serve.port=0", *arguments]
    with tempfile.NamedTemporaryFile("w+", prefix="served-", dir=place) as told:
        process = psutil.Popen(
            command, cwd=PROJECT_ROOT, stdout=told, stderr=subprocess.STDOUT, text=True
        )
        try:
            host, port = _address(process, Path(told.name))
            (worker,) = (child for child in process.children() if _is_worker(child))
            yield Served(host, port, psutil.Process(process.pid), worker)
        finally:
            process.terminate()
            process.wait()


def _address(process: psutil.Popen, told: Path) -> tuple[str, int]:
    """What the server says when it listens."""
    until = time.monotonic() + START_SECONDS
    while not (found := LISTENING.search(told.read_text("utf-8"))):
        if process.poll() is not None or time.monotonic() > until:
            lines = told.read_text("utf-8").strip().splitlines()[-LAST_LINES:]
            sys.exit("\n".join(["the server did not start:", *lines]))
        time.sleep(0.1)
    return found[1], int(found[2])


def _is_worker(process: psutil.Process) -> bool:
    return any(Path(part).name == "worker.py" for part in process.cmdline())


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
