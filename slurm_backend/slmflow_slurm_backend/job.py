"""What runs on the node: an inner ``mlflow run``, and whoever ends its run when Slurm ends it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from types import FrameType

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_BACKEND

from slmflow_slurm_backend.ending import ERROR, JOB, LOG, NODE, end_children, end_run, log_output

WARNING = signal.SIGUSR2  # what submitit asks Slurm to send before the time limit


@dataclass(frozen=True)
class Order:
    """All that the node is told; it is written to the shared folder, so no secrets."""

    run_id: str
    experiment_id: str
    project: Path
    entry_point: str
    parameters: Mapping[str, str]
    env_manager: str
    patience: float  # seconds for the entry point to end by itself once it is told to
    log: Path  # of this job, with %j for its number


def run_in_job(order: Order) -> None:
    """The process's exit code is that of the entry point, so Slurm's accounts tell it, too.

    The run is ended here and not by who submitted, who may be gone.
    """
    client = MlflowClient()
    job_id = os.environ["SLURM_JOB_ID"]
    log = Path(str(order.log).replace("%j", job_id))
    _begin(client, order, job_id, log)
    code, told = _run(order)
    client.set_tag(order.run_id, MLFLOW_PROJECT_BACKEND, "slurm")  # the inner one said local
    run = client.get_run(order.run_id)
    if told is not None and run.info.status != "FINISHED":
        end_run(client, run, "KILLED", _told_by(told, job_id))
    elif code != 0:
        said = run.data.tags.get(ERROR)
        end_run(client, run, "FAILED", said or f"the entry point ended with exit code {code}")
    end_children(client, run, "its parent's job has ended")
    log_output(client, order.run_id, log)
    raise SystemExit(code if 0 <= code < 256 else 1)


def _begin(client: MlflowClient, order: Order, job_id: str, log: Path) -> None:
    client.set_tag(order.run_id, LOG, str(log))
    client.set_tag(order.run_id, JOB, job_id)  # who submitted may have died before it knew
    client.set_tag(order.run_id, NODE, os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":  # an earlier attempt left its traces
        end_children(client, client.get_run(order.run_id), "its parent's job was started again")
        with suppress(MlflowException):
            client.delete_tag(order.run_id, ERROR)


def _run(order: Order) -> tuple[int, int | None]:
    """Exit code, and the signal by which Slurm told the job to end."""
    told: list[int] = []
    process = subprocess.Popen(
        _command(order), cwd=order.project, env=_environment(), start_new_session=True
    )
    timer = Timer(order.patience, _send, [process.pid, signal.SIGKILL])
    timer.daemon = True

    def end(number: int, _: FrameType | None) -> None:
        told.append(number)
        if len(told) == 1:
            _send(process.pid, signal.SIGINT)  # as Ctrl-C: it can still record how it ended
            timer.start()

    _on_signals(end)
    code = process.wait()
    timer.cancel()
    _send(process.pid, signal.SIGKILL)  # what it left behind
    if not told and -code in (signal.SIGTERM, WARNING):
        told.append(-code)  # Slurm's signal reached it before it reached this process
    return code, told[0] if told else None


def _command(order: Order) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "run", str(order.project), "-e", order.entry_point]
    command += ["--run-id", order.run_id, "--experiment-id", order.experiment_id]
    command += ["--env-manager", order.env_manager]
    for key, value in order.parameters.items():
        command += ["-P", f"{key}={value}"]
    return command


def _environment() -> dict[str, str]:
    """`--env-manager local` runs the ``python`` of the PATH: that of this process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_EXPERIMENT_NAME"}
    quiet = {"MLFLOW_LOGGING_LEVEL": "WARNING"}  # its INFO repeats what was typed, secrets too
    return {**quiet, **kept, "PATH": path}


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, WARNING):
        signal.signal(number, handler)


def _send(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _told_by(number: int, job_id: str) -> str:
    if number == WARNING:
        return f"job {job_id} was told to end shortly before its time limit"
    return f"job {job_id} was told to end ({signal.Signals(number).name}): cancelled or preempted"
