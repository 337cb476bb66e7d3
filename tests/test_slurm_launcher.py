"""The submitit launchers on a real Slurm of two nodes, with points that do next to nothing."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode

from slmflow.errors import UserError
from slmflow.sweeps.scheduler import JobLost, SchedulerError, Stage, cancel, job_state, job_states
from tests.conftest import ROOT
from tests.slurm_cluster import NODES, Cluster, missing, slurm_cluster
from tests.slurm_points import Points

PATIENCE = 240  # seconds; a guard against hanging, no promise of speed
LARGEST_ARRAY = 4

CONFIG = f"""\
defaults: [_self_]
what: quick
hardware: {{target: cpu, threads: auto}}
hydra:
  searchpath: ["file://{ROOT}/conf"]
  job: {{name: points}}
  output_subdir: null
  sweep: {{dir: .}}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    started = slurm_cluster(folder, cpus=4, largest_array=LARGEST_ARRAY)
    with started as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
        patch.setenv("SLMFLOW_CACHE", str(folder))
        yield cluster


@dataclass
class Launch:
    points: Points
    launcher: Launcher

    def now(self, *overrides: str) -> Sequence[JobReturn]:
        """One point for each, ``KEY=VALUE KEY=VALUE``."""
        returned: Sequence[JobReturn] = self.launcher.launch([one.split() for one in overrides], 0)
        return returned

    def job(self, number: int) -> str:
        (name,) = self.points.lines(number, "submitted")
        return name.removeprefix("slurm:")

    def began(self, *numbers: int, times: int = 1) -> None:
        wait_until(lambda: all(len(self.points.lines(n, "began")) >= times for n in numbers))


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Launch]:
    return lambda name, *overrides: prepare(tmp_path / name, *overrides)


def prepare(folder: Path, *overrides: str) -> Launch:
    (folder / "conf").mkdir(parents=True)
    (folder / "conf" / "points.yaml").write_text(CONFIG)
    points = Points(folder)
    with initialize_config_dir(str(folder / "conf"), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        typed = [f"hydra.sweep.dir={folder}", *overrides]
        config = hydra.compose_config("points", typed, RunMode.MULTIRUN, from_shell=False)
        context = HydraContext(callbacks=Callbacks(), config_loader=hydra.config_loader)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=points, config=config
    )
    return Launch(points, launcher)


def beside(launch: Launch, *overrides: str) -> "Future[Sequence[JobReturn]]":
    """In a thread, so that the test can do something to it."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(launch.now, *overrides)
    pool.shutdown(wait=False)
    return future


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def raised(returned: JobReturn) -> Exception:
    assert returned.status is JobStatus.FAILED
    with pytest.raises(Exception) as caught:
        returned.return_value  # noqa: B018  raises what became of the job
    return caught.value


def test_six_points_run_on_both_nodes_and_give_their_results_in_order(
    cluster: Cluster, launch: Callable[..., Launch]
) -> None:
    six = launch("six", "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=2")
    returned = six.now(*["what=quick"] * 6)
    assert [one.return_value for one in returned] == list(range(6))
    jobs = [six.job(number) for number in range(6)]
    # Two arrays, because the largest of this cluster has four tasks.
    assert [job.partition("_")[2] for job in jobs] == ["0", "1", "2", "3", "0", "1"]
    completed = dict.fromkeys(jobs, "COMPLETED")
    wait_until(lambda: {job: s for job, (s, _) in cluster.accounting(jobs).items()} == completed)
    assert {node for _, node in cluster.accounting(jobs).values()} == set(NODES)


def test_each_point_gets_the_resources_that_its_own_config_asks_for(
    cluster: Cluster, launch: Callable[..., Launch]
) -> None:
    mixed = launch("mixed", "hydra/launcher=slurm_gpu", "hydra.launcher.mem_gb=1")
    points = ("hardware.threads=1", "hardware.threads=3", "hardware.threads=1")
    returned = mixed.now(*points, "hardware.threads=1 hardware.target=cuda")
    assert [one.return_value for one in returned] == [0, 1, 2, 3]
    jobs = [mixed.job(number) for number in range(4)]
    assert jobs[0].partition("_")[0] == jobs[2].partition("_")[0]  # the same array
    asked = [cluster.run("scontrol", "--oneliner", "show", "job", job).split() for job in jobs]
    assert ["NumCPUs=3" in one for one in asked] == [False, True, False, False]
    assert ["Partition=gpu" in one for one in asked] == [False, False, False, True]
    assert ["TresPerNode=gres:gpu:1" in one for one in asked] == [False, False, False, True]


def test_jobs_that_end_otherwise_are_told_in_slurms_words_and_the_others_go_on(
    cluster: Cluster, launch: Callable[..., Launch]
) -> None:
    several = launch("several", "hydra/launcher=submitit_slurm")
    # Slurm sends its warning up to a minute early; a limit of 1 min is its smallest.
    short = launch(
        "short",
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.timeout_min=1",
        "hydra.launcher.signal_delay_s=59",
    )
    future, warned = beside(several, "what=fail", *["what=wait"] * 3), beside(short, "what=wait")
    several.began(0, 1, 2, 3)
    end = time.strftime("%FT%T", time.localtime(time.time() + 1))
    cluster.run("scontrol", "update", f"JobId={several.job(1)}", f"EndTime={end}")
    cluster.run("scancel", several.job(2))
    assert job_state(f"slurm:{several.job(3)}").stage is Stage.running
    (out_of_time,) = warned.result(PATIENCE)
    wait_until(lambda: not job_state(f"slurm:{several.job(1)}").alive)
    (several.points.folder / "go").touch()

    failed, timed_out, cancelled, finished = future.result(PATIENCE)
    assert str(raised(failed)) == "as it was told to"
    assert isinstance(raised(timed_out), JobLost)
    assert "TIMEOUT" in str(raised(timed_out)) and "timeout_min" in str(raised(timed_out))
    assert f"CANCELLED by {os.getuid()}" in str(raised(cancelled))
    assert several.points.lines(2, "raised") == ["KeyboardInterrupt"]  # it could end its run
    assert finished.return_value == 3
    assert isinstance(raised(out_of_time), UserError)
    assert "time is up after 1 min" in str(raised(out_of_time))


def test_a_job_whose_node_dies_runs_again_where_that_is_allowed_and_is_lost_where_not(
    cluster: Cluster, launch: Callable[..., Launch]
) -> None:
    on_n1 = ("hydra/launcher=submitit_slurm", "hydra.launcher.constraint=small")
    again, once = (
        launch("again", *on_n1),
        launch("once", *on_n1, "+hydra.launcher.additional_parameters.no-requeue=true"),
    )
    both = beside(again, "what=wait"), beside(once, "what=wait")
    again.began(0)
    once.began(0)
    cluster.take_down("n1")
    try:
        (lost,) = both[1].result(PATIENCE)
        assert "NODE_FAIL" in str(raised(lost))
        assert job_state(f"slurm:{again.job(0)}").stage is Stage.waiting
    finally:
        cluster.bring_back("n1")
    again.began(0, times=2)
    (again.points.folder / "go").touch()
    (finished,) = both[0].result(PATIENCE)
    assert finished.return_value == 0


def test_ctrl_c_cancels_what_has_not_ended_and_waits_for_it(
    cluster: Cluster, launch: Callable[..., Launch]
) -> None:
    stopped = launch(
        "stopped", "hydra/launcher=submitit_slurm", "hydra.launcher.array_parallelism=2"
    )

    def press() -> None:
        stopped.began(0, 1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        stopped.now(*["what=wait"] * 4)
    jobs = [f"slurm:{stopped.job(number)}" for number in range(4)]
    assert not [state for state in job_states(jobs).values() if state.alive]
    assert stopped.points.lines(0, "raised") == ["KeyboardInterrupt"]
    assert stopped.points.lines(3, "began") == []


def test_jobs_that_can_never_start_are_given_up(
    cluster: Cluster, launch: Callable[..., Launch]
) -> None:
    asked = ("hydra.launcher.partition=short", "hydra.launcher.timeout_min=6")
    long = launch("long", "hydra/launcher=submitit_slurm", *asked)
    (lost,) = long.now("what=quick")
    assert "PartitionTimeLimit" in str(raised(lost))
    assert not job_state(f"slurm:{long.job(0)}").alive


def test_what_sbatch_refuses_is_told_in_its_words(
    cluster: Cluster, launch: Callable[..., Launch]
) -> None:
    nowhere = launch("nowhere", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=mars")
    (refused,) = nowhere.now("what=quick")
    with pytest.raises(SchedulerError, match="invalid partition specified: mars"):
        _ = refused.return_value


def test_the_scheduler_is_asked_about_waiting_unknown_and_forgotten_jobs(cluster: Cluster) -> None:
    told = cluster.run("sbatch", "--hold", "--array=0-1", "--output=/dev/null", "--wrap=true")
    held = f"slurm:{told.split()[-1]}_1"
    states = job_states([held, "slurm:999999", "slurm:999998_3", "local:1"])
    assert states[held].stage is Stage.waiting
    assert states[held].reason == "JobHeldUser"
    assert states["slurm:999999"].stage is states["slurm:999998_3"].stage is Stage.unknown
    assert not states["local:1"].alive  # that process is no job of submitit's
    cancel([held])
    assert not job_state(held).alive


def test_without_slurm_the_message_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SchedulerError, match="squeue is not on this machine's PATH"):
        job_state("slurm:1")


def test_local_jobs_share_the_launchers_promises(
    monkeypatch: pytest.MonkeyPatch, launch: Callable[..., Launch], tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path))
    local = launch("local", "hydra/launcher=submitit_local")
    returned = local.now("what=die", "what=fail", "what=quick")
    assert isinstance(raised(returned[0]), JobLost)
    assert "its process is gone" in str(raised(returned[0]))
    assert str(raised(returned[1])) == "as it was told to"
    assert returned[2].return_value == 2
    assert local.points.lines(2, "submitted")[0].startswith("local:")
    local.now("what=quick")
    # Where each launch looks for results: numbers of processes come again.
    assert len(list((tmp_path / "sweeps").iterdir())) == 2
