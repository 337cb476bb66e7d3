"""Runs end in the state that is true, with the reason, and all that is below them with them."""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from slmflow_slurm_backend.scheduler import JobState

ERROR = "slmflow.error"
JOB = "slmflow.slurm.job"
CLUSTER = "slmflow.slurm.cluster"
NODE = "slmflow.slurm.node"
LOG = "slmflow.slurm.log"
LONGEST = 5000  # characters of a tag, which MLflow cuts or refuses
# Ended from outside; in every other state the job failed.
KILLED_STATES = {"CANCELLED", "DEADLINE", "PREEMPTED", "TIMEOUT"}
REASONS = {
    "CANCELLED": "was cancelled",
    "DEADLINE": "could not end before its deadline",
    "NODE_FAIL": "was lost when its node failed",
    "BOOT_FAIL": "never began: its node did not start",
    "OUT_OF_MEMORY": 'needed more memory than it asked for; give a larger "memory"',
    "PREEMPTED": "had to make room for another job",
    "TIMEOUT": 'ran into its time limit; give a larger "time"',
}


def settle(
    client: MlflowClient, run_id: str, job_id: str, state: JobState | None, log: Path
) -> bool:
    """End the run of a job that has ended, where it did not do so itself.

    Whether both the job and the run came to a good end. The job's output becomes an artifact.
    """
    run = client.get_run(run_id)
    name = state.name if state else "unknown"
    # A job that only failed has said why, if its run has a reason; Slurm knows no better one.
    if run.info.status != "FINISHED" and not (name == "FAILED" and ERROR in run.data.tags):
        why = reason(job_id, state, log)
        end_run(client, run, "KILLED" if name in KILLED_STATES else "FAILED", why)
    end_children(client, run, "its parent's job has ended")
    log_output(client, run_id, log)
    return run.info.status == "FINISHED" and name in ("COMPLETED", "unknown")


def end_run(client: MlflowClient, run: Run, status: str, why: str) -> None:
    """What the run said of its own failure stays; what Slurm did to it is added."""
    said = run.data.tags.get(ERROR, "")
    if why not in said:
        client.set_tag(run.info.run_id, ERROR, f"{said}\n{why}".strip()[:LONGEST])
    if not _ended(run):
        client.set_terminated(run.info.run_id, status)


def end_children(client: MlflowClient, parent: Run, why: str) -> None:
    token: str | None = None
    below = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'"
    while True:
        page = client.search_runs([parent.info.experiment_id], below, page_token=token)
        for child in page:
            end_children(client, child, why)
            if not _ended(child):
                end_run(client, child, "KILLED", why)
        token = page.token
        if not token:
            return


def log_output(client: MlflowClient, run_id: str, log: Path) -> None:
    """The job's output so far; without it the run is still true."""
    try:
        if log.exists():
            client.log_artifact(run_id, str(log), "slurm")
    except (OSError, MlflowException) as error:
        print(f"slurm: {log} is not on the tracking server: {error}", flush=True)


def reason(job_id: str, state: JobState | None, log: Path) -> str:
    if state is None:
        return f"Slurm knows no job {job_id} any more, and it did not end its run"
    where = f" on {state.nodes}" if state.nodes else ""
    if state.name in REASONS:
        return f"job {job_id}{where} {REASONS[state.name]}"
    return f"job {job_id}{where} ended as {state.name}; the last line of its output: {_last(log)}"


def _last(log: Path) -> str:
    """Of the program, if it said anything; else of Slurm."""
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return "none"
    said = [line.strip() for line in lines if line.strip()]
    own = [line for line in said if not line.startswith(("srun:", "slurmstepd", "submitit INFO"))]
    return (own or said or ["none"])[-1]


def _ended(run: Run) -> bool:
    return bool(RunStatus.is_terminated(RunStatus.from_string(run.info.status)))
