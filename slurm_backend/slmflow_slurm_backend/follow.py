"""A submitted job, watched until it and its run have ended."""

import time
from pathlib import Path

from mlflow import MlflowClient
from mlflow.projects.submitted_run import SubmittedRun

from slmflow_slurm_backend.ending import settle
from slmflow_slurm_backend.project import remove_copy
from slmflow_slurm_backend.scheduler import JobState, SlurmSilent, cancel_job, job_state

TICK = 1.0  # seconds between looks into the log
LONGEST_WAIT = 15.0  # seconds between questions to the scheduler
UNKNOWN_FOR = 30.0  # seconds; squeue forgets a job before sacct has heard of its end
CANCEL_PATIENCE = 90.0  # seconds; a node that is gone never says that its job has ended


class SlurmRun(SubmittedRun):  # type: ignore[misc]
    """``folder`` holds the copy of the project, ``log`` the output of the job."""

    def __init__(self, run_id: str, job_id: str, folder: Path, log: Path) -> None:
        self._run_id = run_id
        self._job_id = job_id
        self._folder = folder
        self._log = log
        self._shown = 0  # bytes of the log
        self._said = ""
        self._ended: bool | None = None

    @property
    def run_id(self) -> str:
        return self._run_id

    def wait(self) -> bool:
        """Shows states and output; returns whether the run has FINISHED."""
        if self._ended is None:
            self._end(self._follow(None))
        assert self._ended is not None
        return self._ended

    def cancel(self) -> None:
        """The job ends first, then the run, as KILLED where the job did not say it."""
        if self._ended is None:
            say(f"cancelling job {self._job_id}")
            try:
                cancel_job(self._job_id)
                state = self._follow(CANCEL_PATIENCE)
            except SlurmSilent as error:
                say(f"job {self._job_id} may still run, end it by scancel: {error}")
                state = None
            self._end(state if state and not state.active else JobState("CANCELLED"))

    def get_status(self) -> str:
        return str(MlflowClient().get_run(self._run_id).info.status)

    def _follow(self, patience: float | None) -> JobState | None:
        """Until the job has ended, or Slurm knows nothing of it, or patience (seconds) is over."""
        began = known = asked = time.monotonic()
        state = self._ask()
        while state is None or state.active:
            now = time.monotonic()
            known = now if state else known
            if now - known > UNKNOWN_FOR or (patience and now - began > patience):
                break
            time.sleep(TICK)
            self._show_log()
            # Short jobs are noticed at once, long ones are no burden to the scheduler.
            if now - asked >= min(LONGEST_WAIT, (now - began) / 10):
                state, asked = self._ask(), now
        self._show_log()
        return state

    def _ask(self) -> JobState | None:
        try:
            state = job_state(self._job_id)
        except SlurmSilent as error:
            self._say_once(f"Slurm does not answer, asking again: {error}")
            return JobState("RUNNING")  # nothing is known, so nothing is ended
        if state:
            detail = f" ({state.why or state.nodes})" if state.why or state.nodes else ""
            self._say_once(f"job {self._job_id} {state.name.lower()}{detail}")
        return state

    def _end(self, state: JobState | None) -> None:
        self._ended = settle(MlflowClient(), self._run_id, self._job_id, state, self._log)
        clean(self._folder)

    def _show_log(self) -> None:
        try:
            with self._log.open("rb") as file:
                file.seek(self._shown)
                new = file.read()
        except OSError:  # not there before the job begins
            return
        whole = new.rpartition(b"\n")[0]
        if whole:
            self._shown += len(whole) + 1
            print(whole.decode(errors="replace"), flush=True)

    def _say_once(self, text: str) -> None:
        if text != self._said:
            say(text)
        self._said = text


def clean(folder: Path) -> None:
    """The copy of the project goes, what the run wrote beside it stays."""
    project = folder / "project"
    if project.exists() and (written := remove_copy(project)):
        more = f" and {len(written) - 3} more" if len(written) > 3 else ""
        say(f"kept in {project}, as the run wrote it: {', '.join(written[:3])}{more}")


def say(text: str) -> None:
    print(f"slurm: {text}", flush=True)
