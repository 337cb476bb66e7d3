"""A job for a run, through submitit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths

from slmflow_slurm_backend.config import SlurmConfig
from slmflow_slurm_backend.job import Order, run_in_job


class Refused(Exception):
    """sbatch took no job, and why."""


def log_pattern(folder: Path) -> Path:
    """With %j where the job's number will be."""
    return Path(str(JobPaths(folder).stdout).replace("%t", "0"))


def job_name(run_id: str) -> str:
    """By which a job is found whose number was never told."""
    return f"mlflow-{run_id}"


def submit(order: Order, config: SlurmConfig, folder: Path) -> str:
    """The number of the job, whose script, order and output lie in ``folder``. Raises Refused."""
    executor = SlurmExecutor(folder=folder, python=config.python)
    executor.update_parameters(**_options(order, config))
    try:
        with _environment():
            return str(executor.submit(run_in_job, order).job_id)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        said = str(error).replace("sbatch: error: ", "").split("\n")
        raise Refused("; ".join(filter(None, said)) or type(error).__name__) from None


def _options(order: Order, config: SlurmConfig) -> dict[str, object]:
    chosen = {
        "job_name": job_name(order.run_id),
        "time": config.time,
        "partition": config.partition,
        "cpus_per_task": config.cpus,
        "gpus_per_node": config.gpus or None,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "setup": list(config.setup) or None,
        "comment": order.entry_point,
        "signal_delay_s": config.grace,
        "stderr_to_stdout": True,
        "additional_parameters": _additional(config),
    }
    return {key: value for key, value in chosen.items() if value is not None}


def _additional(config: SlurmConfig) -> dict[str, object]:
    # Without --no-requeue the cluster's default decides, which may mix two attempts in one run.
    options: dict[str, object] = {"requeue" if config.requeue else "no-requeue": True}
    if config.memory:
        options["mem"] = config.memory
    return {**options, **config.additional}


@contextmanager
def _environment() -> Iterator[None]:
    """sbatch hands its environment on: the tracking server and the credentials for it go this way
    and are written nowhere."""
    before = dict(os.environ)
    for name in before:
        # A job that submits another one would hand on its own size and number.
        inner = name.startswith(("SLURM_", "SUBMITIT_")) and name != "SLURM_CONF"
        if inner or name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            del os.environ[name]
    os.environ["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
