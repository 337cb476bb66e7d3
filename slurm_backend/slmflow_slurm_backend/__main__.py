"""python -m slmflow_slurm_backend [RUN_ID ...]

Ends the runs whose jobs have ended without a word, because their submitter was gone and Slurm or a
failing node killed them. Without ids: all runs of this cluster's jobs that have not ended. A run
without a job, because its submitter died before it had one, is ended when its id is given.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from slmflow_slurm_backend.ending import CLUSTER, JOB, LOG, end_run, settle
from slmflow_slurm_backend.follow import clean, say
from slmflow_slurm_backend.scheduler import SlurmSilent, cluster_name, job_state


def main(run_ids: Sequence[str]) -> int:
    if any(word.startswith("-") for word in run_ids):
        print(__doc__)
        return 2
    client = MlflowClient()
    try:
        cluster = cluster_name()
        runs = [client.get_run(run_id) for run_id in run_ids] or list(_open_runs(client, cluster))
        for run in runs:
            say(f"run {run.info.run_id}: {_reconcile(client, run, cluster, bool(run_ids))}")
    except SlurmSilent as error:
        print(f"Slurm does not answer: {error}", file=sys.stderr)
        return 1
    return 0


def _reconcile(client: MlflowClient, run: Run, cluster: str, named: bool) -> str:
    run_id, tags = run.info.run_id, run.data.tags
    if tags.get(CLUSTER) != cluster:
        return f"not of this cluster, {cluster}"
    if JOB not in tags and not named:
        return f"no job yet; if its submitter is gone: python -m slmflow_slurm_backend {run_id}"
    if JOB not in tags:
        end_run(client, run, "FAILED", "its submitter ended before it had a job")
        return "ended as FAILED"
    state, log = job_state(tags[JOB]), Path(tags[LOG])
    if state is not None and state.active:
        return f"job {tags[JOB]} {state.name.lower()}"
    settle(client, run_id, tags[JOB], state, log)
    clean(log.parent.parent)
    return f"ended as {client.get_run(run_id).info.status}"


def _open_runs(client: MlflowClient, cluster: str) -> Iterator[Run]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for status in ("RUNNING", "SCHEDULED"):
        where = f"tags.`{CLUSTER}` = '{cluster}' AND attributes.status = '{status}'"
        yield from client.search_runs(experiments, where, max_results=1000)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
