"""A sweep whose points are jobs of a real Slurm: disturbed, resumed, interrupted, finished."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.conftest import ROOT, Workplace, make_workplace
from tests.slurm_cluster import NODES, Cluster, missing, slurm_cluster

PATIENCE = 300  # seconds; a guard against hanging
POINTS = 6
COMMAND = [str(Path(sys.executable).with_name("mlflow")), "run", str(ROOT), "-e", "custom_onnx"]
COMMAND += ["--env-manager", "local", "-P", "hydra/launcher=submitit_slurm"]
COMMAND += ["-P", "search.temperature=0.0,0.2,0.4,0.6,0.8,1.0"]


@dataclass(frozen=True)
class Session:
    """One run of the command: how it ended, what it printed, and the points' runs after it."""

    exit_code: int
    output: str
    points: Mapping[int, Run]


class Sweep:
    def __init__(self, workplace: Workplace, cluster: Cluster) -> None:
        self.cluster = cluster
        self.workplace = workplace
        self._environment = {**workplace.environment, **cluster.environment}
        self._environment["PATH"] = os.pathsep.join(
            place["PATH"] for place in (workplace.environment, cluster.environment)
        )

    def session(self, disturb: Callable[["Sweep", int], None] = lambda *_: None) -> Session:
        process = subprocess.Popen(
            COMMAND,
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # with what it starts: the group that Ctrl-C is for
        )
        try:
            disturb(self, process.pid)
            output, _ = process.communicate(timeout=PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
        wait_until(lambda: not self.cluster.queue())
        return Session(process.returncode, output, self.points(settled=True))

    def runs(self) -> list[Run]:
        experiment = self.workplace.client.get_experiment_by_name("tests")
        return list(self.workplace.client.search_runs([experiment.experiment_id]))

    def parent(self) -> Run:
        """The sweep: the first that was opened."""
        tops = [run for run in self.runs() if "mlflow.parentRunId" not in run.data.tags]
        return min(tops, key=lambda run: int(run.info.start_time))

    def points(self, settled: bool = False) -> dict[int, Run]:
        """The newest attempts. While the sweep runs, one that begins anew has two for a moment."""
        parent = self.parent().info.run_id
        children = [r for r in self.runs() if r.data.tags.get("mlflow.parentRunId") == parent]
        children.sort(key=lambda run: int(run.data.tags["slmflow.sweep.attempts"]))
        by_number = {int(run.data.tags["slmflow.sweep.point"]): run for run in children}
        if settled:
            assert len(by_number) == len(children)  # one child a point
        return by_number

    def running(self) -> dict[int, str]:
        """Points whose runs have begun, with the nodes of their jobs."""
        told = self.cluster.run("squeue", "--noheader", "--array", "--format=%i|%N").split()
        nodes = dict(line.split("|") for line in told)
        return {
            number: nodes[job]
            for number, job in self.jobs().items()
            if nodes.get(job) and self.points()[number].info.status == "RUNNING"
        }

    def jobs(self) -> dict[int, str]:
        """As the sweep itself noted them, once they were submitted."""
        client, parent = self.workplace.client, self.parent().info.run_id
        begun = self.points()
        if "jobs.json" not in {file.path for file in client.list_artifacts(parent)}:
            return {}
        noted = json.loads(Path(client.download_artifacts(parent, "jobs.json")).read_text())
        named = {int(number): job.removeprefix("slurm:") for number, job in noted.items()}
        return {number: job for number, job in named.items() if number in begun}


def wait_until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[Sweep]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield Sweep(make_workplace(tmp_path_factory.mktemp("sweep"), shared_cache), cluster)


def lose_n1_and_cancel_on_n2(sweep: Sweep, _: int) -> None:
    wait_until(sweep.runs)
    wait_until(lambda: set(sweep.running().values()) == set(NODES))
    at = {node: number for number, node in sweep.running().items()}
    sweep.cluster.run("scancel", sweep.jobs()[at["n2"]])
    sweep.cluster.take_down("n1")
    sweep.cluster.bring_back("n1")


def press_ctrl_c(sweep: Sweep, group: int) -> None:
    wait_until(sweep.running)
    os.killpg(group, signal.SIGINT)


@pytest.fixture(scope="module")
def disturbed(sweep: Sweep) -> Session:
    return sweep.session(lose_n1_and_cancel_on_n2)


def test_a_point_whose_node_dies_runs_again_and_one_that_is_cancelled_is_killed_with_the_reason(
    sweep: Sweep, disturbed: Session
) -> None:
    assert disturbed.exit_code == 1, disturbed.output
    ended = [disturbed.points[number].info.status for number in range(POINTS)]
    assert sorted(ended) == ["FINISHED"] * (POINTS - 1) + ["KILLED"]
    (killed,) = (run for run in disturbed.points.values() if run.info.status == "KILLED")
    assert "CANCELLED by 0" in killed.data.tags["slmflow.error"]
    assert killed.info.run_name in disturbed.output
    attempts = [run.data.tags["slmflow.sweep.attempts"] for run in disturbed.points.values()]
    assert sorted(attempts) == ["1"] * (POINTS - 1) + ["2"]
    told = sweep.cluster.accounting(list(sweep.jobs().values()))
    assert {node for _, node in told.values()} == set(NODES)


def test_resuming_runs_what_is_left_and_ctrl_c_leaves_neither_jobs_nor_runs(
    sweep: Sweep, disturbed: Session
) -> None:
    interrupted = sweep.session(press_ctrl_c)
    assert interrupted.exit_code != 0
    (killed,) = (run for run in interrupted.points.values() if run.info.status != "FINISHED")
    assert killed.info.status == "KILLED"
    assert not [run for run in sweep.runs() if run.info.status == "RUNNING"]
    finished = sweep.session()
    assert finished.exit_code == 0, finished.output
    assert {run.info.status for run in finished.points.values()} == {"FINISHED"}
    assert len(finished.points) == POINTS
    before, after = disturbed.points, finished.points
    kept = [n for n in range(POINTS) if before[n].info.run_id == after[n].info.run_id]
    assert len(kept) == POINTS - 1
    assert sweep.parent().info.status == "FINISHED"
