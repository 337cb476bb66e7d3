"""What Slurm says of a job, by its own commands.

``squeue`` knows a job until some minutes after its end (MinJobAge), ``sacct`` for ever where the
cluster keeps accounts.
"""

import shutil
import subprocess
from dataclasses import dataclass

ACTIVE = {  # squeue's manual, JOB STATE CODES
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
}
PATIENCE = 60  # seconds; a guard against a command that hangs


class SlurmSilent(Exception):
    """The scheduler cannot be asked now; the job may be well."""


@dataclass(frozen=True)
class JobState:
    name: str  # PENDING, RUNNING, TIMEOUT, ... as Slurm writes it
    why: str = ""  # of a job that waits
    nodes: str = ""

    @property
    def active(self) -> bool:
        return self.name in ACTIVE


def missing_command() -> str | None:
    commands = ("sbatch", "squeue", "scancel", "srun")
    return next((name for name in commands if shutil.which(name) is None), None)


def cluster_name() -> str:
    """Job numbers mean something on one cluster only."""
    for line in _output("scontrol", "show", "config").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "ClusterName":
            return value.strip()
    raise SlurmSilent("scontrol show config names no cluster")


def job_state(job_id: str) -> JobState | None:
    """None where Slurm knows no such job. Raises SlurmSilent."""
    try:
        lines = _output("squeue", "-h", "--states=all", "-j", job_id, "-o", "%T|%r|%N").splitlines()
    except SlurmSilent as error:
        if "invalid job id" not in str(error).lower():
            raise
        lines = []
    return _parsed(lines[0]) if lines else _accounted(job_id)


def cancel_job(job_id: str) -> None:
    """Also ``--name=NAME``. Raises SlurmSilent. A job that has ended is no mistake."""
    _output("scancel", job_id)


def _accounted(job_id: str) -> JobState | None:
    try:
        lines = _output(
            "sacct", "-n", "-X", "-P", "-j", job_id, "-o", "State,NodeList"
        ).splitlines()
    except SlurmSilent as error:
        if "accounting storage is disabled" in str(error).lower():
            return None
        raise
    if not lines:
        return None
    state, _, nodes = lines[-1].partition("|")
    return _parsed(f"{state.split()[0]}||{nodes}")  # CANCELLED by 1000


def _parsed(line: str) -> JobState:
    name, why, nodes = line.strip().split("|")
    return JobState(name, "" if why == "None" else why, nodes)


def _output(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmSilent(str(error)) from None
    if result.returncode != 0:
        raise SlurmSilent(result.stderr.strip() or f"{command[0]}: exit code {result.returncode}")
    return result.stdout
