"""What becomes of the jobs of a sweep: asked about many at once, cancelled, waited for.

A job is named ``slurm:123``, ``slurm:123_4`` (task 4 of the array 123) or, of submitit's local
launcher, ``local:HOST:PID``.
"""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import psutil

from slmflow.errors import UserError

# https://slurm.schedmd.com/job_state_codes.html
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = (
    *("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING"),
    *("STAGE_OUT", "RESIZING"),
)
NEVER_TO_START = (
    *("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "DependencyNeverSatisfied"),
    *("QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit", "InvalidAccount"),
    *("InvalidQOS", "AccountNotAllowed", "QOSNotAllowed"),
)
TO_END = 120.0  # seconds for a cancelled job: Slurm kills what has not ended after KillWait (30 s)
POLL = 1.0
ANSWER = 60.0  # seconds for one command of Slurm's


class SchedulerError(UserError):
    """The scheduler refuses, or does not answer."""


class JobLost(UserError):
    """A job that was killed, ran out of time or memory, was cancelled or never started."""


class Stage(StrEnum):
    waiting = "waiting"
    running = "running"
    ended = "ended"
    unknown = "unknown"  # the scheduler answers, and has no such job


@dataclass(frozen=True)
class JobState:
    stage: Stage
    word: str = ""  # Slurm's own: PENDING, TIMEOUT, CANCELLED by 1000, NODE_FAIL
    reason: str = ""  # Slurm's own: Resources, BeginTime
    node: str = ""

    @property
    def alive(self) -> bool:
        return self.stage in (Stage.waiting, Stage.running)

    @property
    def hopeless(self) -> bool:
        """It waits for what will not come while it is asked for as it is."""
        return self.stage is Stage.waiting and self.reason in NEVER_TO_START


HINTS = {
    "TIMEOUT": " (for more time: hydra.launcher.timeout_min=MINUTES)",
    "OUT_OF_MEMORY": " (for more memory: hydra.launcher.mem_gb=GB)",
    "PartitionTimeLimit": " (hydra.launcher.timeout_min is above the partition's limit)",
    "BadConstraints": " (no node has what hydra.launcher asks for: constraint, gpus, cores, mem)",
}
UNKNOWN = JobState(Stage.unknown)


def job_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """Of every job. Raises ``SchedulerError`` where Slurm is asked and does not answer.

    The queue goes before the accounting, which calls a job whose node died NODE_FAIL also while
    it waits to run again, and COMPLETED a job that ended itself as its time ran out.
    """
    wanted = list(jobs)
    numbers = {job: job.removeprefix("slurm:") for job in wanted if job.startswith("slurm:")}
    states = _queue(numbers.values()) if numbers else {}
    ended = [number for number in numbers.values() if not states.get(number, UNKNOWN).alive]
    if ended:
        states |= _accounting(ended, states)
    return {
        job: states.get(numbers[job], UNKNOWN) if job in numbers else _process_state(job)
        for job in wanted
    }


def job_state(job: str) -> JobState:
    return job_states([job])[job]


def alive(jobs: Iterable[str]) -> list[str]:
    """Those that wait or run. Raises ``SchedulerError`` as ``job_states`` does."""
    return [job for job, state in job_states(jobs).items() if state.alive]


def cancel(jobs: Iterable[str]) -> None:
    """Returns when each has ended. Raises ``SchedulerError`` where one does not."""
    left = alive(jobs)
    numbers = [job.removeprefix("slurm:") for job in left if job.startswith("slurm:")]
    if numbers:
        _slurm("scancel", "--quiet", *numbers)
    for job in left:
        if job.startswith("local:") and (process := _process(job)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)  # submitit's controller ends its task
    until = time.monotonic() + TO_END
    while left := alive(left):
        if time.monotonic() > until:
            raise SchedulerError(f"cancelled, and not ended after {TO_END:.0f} s: {' '.join(left)}")
        time.sleep(POLL)


def why_lost(job: str, state: JobState, log: str) -> JobLost:
    """Of a job that ended without a result, or cannot start: what Slurm says, and what to do."""
    if state.hopeless:
        return JobLost(f"{job} cannot start: {state.reason}{HINTS.get(state.reason, '')}")
    where = f" on {state.node}" if state.node not in ("", "None assigned") else ""
    word = state.word or "Slurm has no record of it, as when it was cancelled before it began"
    return JobLost(
        f"{job} ended without a result: {word}{where}{HINTS.get(word, '')}; its log: {log}"
    )


def largest_array() -> int:
    """How many tasks an array of this cluster may have."""
    for line in _slurm("scontrol", "show", "config").splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize":
            return max(1, int(value))  # indices end below it, and begin at 0
    return 1000


def _queue(numbers: Iterable[str]) -> dict[str, JobState]:
    """Of the jobs that squeue still knows."""
    whole = sorted({number.partition("_")[0] for number in numbers})
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N"]
    try:
        told = _slurm(*command, f"--jobs={','.join(whole)}")
    except SchedulerError as error:
        if "Invalid job id" in str(error):  # it has forgotten all of them
            return {}
        raise
    rows = (line.split("|") for line in told.splitlines())
    return {number: _state(word, reason, node) for number, word, reason, node in rows}


def _accounting(numbers: Sequence[str], queue: Mapping[str, JobState]) -> dict[str, JobState]:
    """Of jobs that have ended: it knows who cancelled them, and those that the queue forgot."""
    from submitit.slurm.slurm import SlurmInfoWatcher  # late: of use only with Slurm

    whole = sorted({number.partition("_")[0] for number in numbers})
    command = ["sacct", "--allocations", "--parsable2", "--format=JobID,State,NodeList"]
    try:
        told = _slurm(*command, f"--jobs={','.join(whole)}")
    except SchedulerError:  # a cluster without accounting: the queue must do
        return {}
    rows = SlurmInfoWatcher().read_info(told)  # also tasks that it writes as 123_[4-7]
    states = {
        number: _state(rows[number]["State"], "", rows[number]["NodeList"])
        for number in numbers
        if number in rows
    }
    # It is told later than the queue: then that knows better.
    return {n: one for n, one in states.items() if not (one.alive and n in queue)}


def _state(word: str, reason: str, node: str) -> JobState:
    known = "" if reason == "None" else reason
    stage = Stage.ended
    if word in WAITING or word in RUNNING:
        stage = Stage.waiting if word in WAITING else Stage.running
    return JobState(stage, word, known, node)


def _slurm(*command: str) -> str:
    if shutil.which(command[0]) is None:
        raise SchedulerError(
            f"{command[0]} is not on this machine's PATH, so Slurm cannot be asked; "
            "type the command where Slurm's commands are, or choose another hydra/launcher"
        )
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER)
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{command[0]} did not answer in {ANSWER:.0f} s") from None
    if result.returncode != 0:
        raise SchedulerError(f"{command[0]}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def _process_state(job: str) -> JobState:
    _, *host, _ = job.split(":")
    if not job.startswith("local:") or host not in ([], [socket.gethostname()]):
        return UNKNOWN
    if _process(job) is None:
        return JobState(Stage.ended, "its process is gone")
    return JobState(Stage.running, "RUNNING")


def _process(job: str) -> psutil.Process | None:
    """Of a local job, where it is still this one's: numbers of processes are used again."""
    try:
        process = psutil.Process(int(job.rpartition(":")[2]))
        runs = process.status() != psutil.STATUS_ZOMBIE
        return process if runs and any("submitit" in part for part in process.cmdline()) else None
    except psutil.Error:
        return None
