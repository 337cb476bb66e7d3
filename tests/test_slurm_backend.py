"""``mlflow run --backend slurm``: the plug-in, built and installed, against a real Slurm."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mlflow.entities import Run
from mlflow.exceptions import ExecutionException
from slmflow_slurm_backend.backend import reachable
from slmflow_slurm_backend.config import FROM_MLFLOW, KEYS, ConfigError, read_config
from slmflow_slurm_backend.project import copy_project, remove_copy

from tests import slurm_cluster
from tests.conftest import ROOT, Workplace, make_workplace
from tests.slurm_cluster import Cluster

MLFLOW = str(Path(sys.executable).with_name("mlflow"))
PATIENCE = 180  # seconds; a guard against hanging, no promise of speed
RIGHT = {"folder": "/shared", "time": 10}
SECRET = "correct-horse-battery"
MISSING = slurm_cluster.missing()
needs_slurm = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

TOY_PROJECT = """\
entry_points:
  main: {parameters: {seconds: {default: 600}}, command: "python toy.py {seconds}"}
  stubborn: {command: "python toy.py 600 stubborn"}
"""
TOY = """\
import os, signal, sys, time
import mlflow

if "stubborn" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with mlflow.start_run():
    with mlflow.start_run(nested=True):
        print("begun, password", "MLFLOW_TRACKING_PASSWORD" in os.environ, flush=True)
        time.sleep(float(sys.argv[1]))
"""


@dataclass(frozen=True)
class Submission:
    """An ``mlflow run --backend slurm`` that was started, and what it prints."""

    process: "subprocess.Popen[bytes]"
    output: Path
    workplace: Workplace

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, pattern: str) -> str:
        """What the pattern's group caught."""
        wait_until(lambda: re.search(pattern, self.text) is not None, self.output)
        found = re.search(pattern, self.text)
        assert found is not None
        return found[found.re.groups]

    @property
    def job(self) -> str:
        return self.wait_for(r"is job (\d+);")

    @property
    def run(self) -> Run:
        run_id = self.wait_for(r"run (\w{32}) is job")
        return self.workplace.client.get_run(run_id)

    @property
    def children(self) -> list[str]:
        below = f"tags.`mlflow.parentRunId` = '{self.run.info.run_id}'"
        found = self.workplace.client.search_runs([self.run.info.experiment_id], below)
        return [run.info.status for run in found]


def wait_until(done: Callable[[], bool], what: str | Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, what.read_text() if isinstance(what, Path) else what
        time.sleep(0.2)


@dataclass(frozen=True)
class Site:
    """A cluster, a tracking store, the plug-in on the path, a toy project in git."""

    cluster: Cluster
    workplace: Workplace
    shared: Path
    toy: Path
    stack: ExitStack

    @property
    def experiment(self) -> str:
        found = self.workplace.client.get_experiment_by_name("tests")
        assert found is not None
        return str(found.experiment_id)

    def submit(
        self, project: str | Path, entry: str, *options: str, **config: object
    ) -> Submission:
        name = f"{entry}-{time.monotonic_ns()}"
        file = self.workplace.folder / f"{name}.json"
        file.write_text(json.dumps({"folder": str(self.shared), "time": 10, **config}))
        command = [MLFLOW, "run", str(project), "-e", entry, "--backend", "slurm"]
        command += ["--backend-config", str(file), *options]
        output = self.workplace.folder / f"{name}.out"
        with output.open("wb") as out:
            process = subprocess.Popen(
                command,
                env=dict(self.workplace.environment),
                cwd=self.workplace.folder,
                stdout=out,
                stderr=out,
                start_new_session=True,  # a Ctrl-C of its own
            )
        self.stack.callback(process.wait, PATIENCE)
        self.stack.callback(process.kill)
        return Submission(process, output, self.workplace)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("slurm")
    with ExitStack() as stack:
        cluster = stack.enter_context(slurm_cluster.slurm_cluster(folder / "cluster", cpus=8))
        plain = make_workplace(folder, shared_cache)
        environment = {
            **plain.environment,
            **cluster.environment,
            "PATH": f"{plain.environment['PATH']}{os.pathsep}{cluster.environment['PATH']}",
            "PYTHONPATH": str(install_plugin(folder)),
            "MLFLOW_TRACKING_PASSWORD": SECRET,
        }
        workplace = Workplace(folder, environment)
        yield Site(cluster, workplace, folder / "shared", toy_project(folder / "toy"), stack)


def install_plugin(folder: Path) -> Path:
    """Built from a copy, because a build leaves files in its source."""
    source, site = folder / "source", folder / "site"
    shutil.copytree(ROOT / "slurm_backend", source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(site), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return site


def toy_project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "MLproject").write_text(TOY_PROJECT)
    (folder / "toy.py").write_text(TOY)
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "toy")
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.email=a@example.org", "-c", "user.name=a"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def git_daemon(repository: Path) -> Iterator[str]:
    """The address of the repository; MLflow takes a file:// one for a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["git", "daemon", "--export-all", "--listen=127.0.0.1", f"--port={port}"]
    daemon = subprocess.Popen([*command, f"--base-path={repository.parent}"])
    address = f"git://127.0.0.1:{port}/{repository.name}"
    try:
        asked = ["git", "ls-remote", address]
        wait_until(lambda: subprocess.run(asked, capture_output=True).returncode == 0, address)
        yield address
    finally:
        daemon.terminate()
        daemon.wait(PATIENCE)


def commit(folder: Path, message: str) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def test_every_mistake_of_the_config_is_told_in_one_message_with_the_keys_allowed() -> None:
    given = {"partiton": "gpu", "time": "1 h", "cpus": True, "setup": "module load cuda"}
    with pytest.raises(ConfigError) as error:
        read_config(given)
    told = str(error.value)
    for part in (
        "did you mean partition?",
        "time: '1 h'",
        "cpus: True",
        "folder is missing",
        *KEYS,
    ):
        assert part in told


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("folder", "shared"),
        ("time", 0),
        ("memory", "16"),
        ("env_manager", "pip"),
        ("grace", 600),
        ("cpus", 0),
    ],
)
def test_a_value_that_cannot_work_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}: "):
        read_config({**RIGHT, key: value})


def test_what_was_typed_to_mlflow_run_counts() -> None:
    chosen = {**RIGHT, "env_manager": "uv"}
    assert read_config({**chosen, "ENV_MANAGER": None}).env_manager == "uv"
    assert read_config({**chosen, "ENV_MANAGER": "conda"}).env_manager == "conda"
    with pytest.raises(ConfigError, match="-A: projects in a container"):
        read_config({**chosen, "DOCKER_ARGS": {"gpus": "all"}})


@given(st.text(min_size=1).filter(lambda key: key not in KEYS))
def test_a_key_that_does_not_exist_is_never_ignored(key: str) -> None:
    assume(key not in FROM_MLFLOW)
    with pytest.raises(ConfigError, match="no such key"):
        read_config({**RIGHT, key: 1})


def test_the_example_file_is_right_and_shows_the_keys_that_matter() -> None:
    example = json.loads((ROOT / "slurm_backend" / "slurm.example.json").read_text())
    assert read_config(example).time == example["time"]
    assert {"folder", "time", "partition", "memory", "gpus", "setup"} <= set(example)


def test_a_relative_tracking_store_becomes_absolute_and_one_in_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reachable("sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"
    assert reachable("mlruns") == f"file://{tmp_path}/mlruns"
    for same in (f"sqlite:///{tmp_path}/x.db", "https://tracking.example.org", "databricks"):
        assert reachable(same) == same
    with pytest.raises(ExecutionException, match="in memory"):
        reachable("sqlite://")


def test_the_copy_is_the_work_tree_and_keeps_what_a_run_writes(tmp_path: Path) -> None:
    project = toy_project(tmp_path / "with space")
    (project / ".gitignore").write_text("ignored")
    for name in ("deleted", "changed"):
        (project / name).write_text("old")
    head = commit(project, "all")
    (project / "deleted").unlink()
    for name in ("changed", "new", "ignored"):
        (project / name).write_text("now")
    copy = copy_project(project, tmp_path / "copy")
    names = {path.name for path in copy.iterdir()} - {".git"}
    assert names == {"MLproject", "toy.py", ".gitignore", "changed", "new"}
    assert (copy / "changed").read_text() == "now"
    assert git(copy, "rev-parse", "HEAD") == head
    (copy / "answers").write_text("written by the run")
    assert remove_copy(copy) == ["answers"]
    (copy / "answers").unlink()
    assert remove_copy(copy) == []
    assert not copy.exists()


@dataclass(frozen=True)
class Started:
    version: str
    fetched: Submission  # that version of a git URL
    limited: Submission  # to one minute
    stubborn: Submission  # does not yield to signals
    interrupted: Submission
    abandoned: Submission


@pytest.fixture(scope="module")
def started(site: Site) -> Started:
    """At once, because most of their time is waiting."""
    published = toy_project(site.workplace.folder / "published")
    version = git(published, "rev-parse", "HEAD")
    (published / "toy.py").write_text("raise SystemExit('another version')")
    commit(published, "another")
    with git_daemon(published) as address:
        started = Started(
            version,
            site.submit(address, "main", "-v", version, "-P", "seconds=5"),
            site.submit(site.toy, "main", time=1, grace=5, additional={"nodelist": "n1"}),
            site.submit(site.toy, "stubborn"),
            site.submit(site.toy, "main"),
            site.submit(site.toy, "main"),
        )
        started.fetched.wait_for("is job")
    return started


@needs_slurm
def test_a_job_from_a_git_url_whose_submitter_was_killed_finishes_alone(
    site: Site, started: Started
) -> None:
    job = started.fetched
    job.wait_for("begun, password True")
    job.process.kill()
    wait_until(lambda: job.job not in site.cluster.queue(), job.output)
    run = job.run
    assert (run.info.status, job.children) == ("FINISHED", ["FINISHED"])
    assert run.data.tags["mlflow.source.git.commit"] == started.version
    assert site.workplace.client.list_artifacts(run.info.run_id, "slurm")


@needs_slurm
def test_a_cancelled_job_that_does_not_yield_leaves_nothing_running(
    site: Site, started: Started
) -> None:
    job = started.stubborn
    job.wait_for("begun")
    site.cluster.run("scancel", job.job)
    assert job.process.wait(PATIENCE) == 1
    assert (job.run.info.status, job.children) == ("KILLED", ["KILLED"])
    assert "was cancelled" in job.run.data.tags["slmflow.error"]


@needs_slurm
def test_a_job_that_is_cancelled_when_its_submitter_is_gone_ends_its_run_itself(
    site: Site, started: Started
) -> None:
    job = started.abandoned
    job.wait_for("begun")
    job.process.kill()
    site.cluster.run("scancel", job.job)
    wait_until(lambda: job.job not in site.cluster.queue(), job.output)
    assert (job.run.info.status, job.children) == ("KILLED", ["KILLED"])
    assert "told to end (SIGTERM)" in job.run.data.tags["slmflow.error"]


@needs_slurm
def test_ctrl_c_cancels_a_job_that_runs(site: Site, started: Started) -> None:
    job = started.interrupted
    job.wait_for("begun")
    job.process.send_signal(signal.SIGINT)
    assert job.process.wait(PATIENCE) == 1
    assert (job.run.info.status, job.children) == ("KILLED", ["KILLED"])
    assert job.job not in site.cluster.queue()


@needs_slurm
def test_a_model_is_packaged_on_the_cluster_and_its_run_tells_where(site: Site) -> None:
    job = site.submit(ROOT, "custom_onnx", cpus=2)
    assert job.process.wait(PATIENCE) == 0, job.text
    tags = job.run.data.tags
    assert job.run.info.status == "FINISHED"
    assert site.cluster.accounting([job.job]) == {
        job.job: ("COMPLETED", tags["slmflow.slurm.node"])
    }
    assert (tags["slmflow.slurm.job"], tags["mlflow.project.backend"]) == (job.job, "slurm")
    log = Path(tags["slmflow.slurm.log"])
    kept = site.workplace.client.download_artifacts(job.run.info.run_id, f"slurm/{log.name}")
    for output in (job.text, log.read_text(), Path(kept).read_text()):
        assert "models:/phi3-demo/1" in output
    version = site.workplace.client.get_model_version("phi3-demo", "1")
    assert version.tags["git_commit"].startswith(git(ROOT, "rev-parse", "HEAD"))
    assert not (log.parent.parent / "project").exists()


@needs_slurm
def test_a_job_at_its_time_limit_ends_its_run_with_the_reason(started: Started) -> None:
    job = started.limited
    assert job.process.wait(PATIENCE) == 1
    assert job.run.info.status == "KILLED"
    assert set(job.children) <= {"KILLED"}  # Slurm's warning may come before there is one
    assert "time limit" in job.run.data.tags["slmflow.error"]


@needs_slurm
def test_what_submitter_and_node_left_running_is_ended_by_asking(site: Site) -> None:
    job = site.submit(site.toy, "main", additional={"nodelist": "n2"})
    job.wait_for("begun")
    job.process.kill()
    site.cluster.take_down("n2")
    assert (job.run.info.status, job.children) == ("RUNNING", ["RUNNING"])
    told = site.workplace.run([sys.executable, "-m", "slmflow_slurm_backend"])
    site.cluster.bring_back("n2")
    assert (told.returncode, told.stderr) == (0, "")
    assert (job.run.info.status, job.children) == ("FAILED", ["KILLED"])
    assert "node failed" in job.run.data.tags["slmflow.error"]


@needs_slurm
def test_a_partition_that_does_not_exist_is_told_and_the_run_has_failed(site: Site) -> None:
    job = site.submit(site.toy, "main", partition="nowhere")
    assert job.process.wait(PATIENCE) == 1
    assert "Traceback" not in job.text
    run = site.workplace.client.search_runs([site.experiment], max_results=1)[0]
    assert run.info.status == "FAILED"
    assert "invalid partition specified: nowhere" in run.data.tags["slmflow.error"]
    assert run.data.tags["slmflow.error"] in job.text


@needs_slurm
def test_a_job_that_waits_is_shown_as_scheduled_and_ctrl_c_takes_it_back(site: Site) -> None:
    job = site.submit(site.toy, "main", additional={"hold": True})
    job.wait_for(r"pending \(JobHeldUser\)")
    assert job.run.info.status == "SCHEDULED"
    job.process.send_signal(signal.SIGINT)
    assert job.process.wait(PATIENCE) == 1
    assert job.run.info.status == "KILLED"
    assert site.cluster.accounting([job.job])[job.job][0].startswith("CANCELLED")


@needs_slurm
def test_no_credential_is_in_a_file_a_tag_or_an_output(site: Site) -> None:
    files = [path for path in site.shared.rglob("*") if path.is_file()]
    outputs = list(site.workplace.folder.glob("*.out"))
    assert any(path.suffix == ".pkl" for path in files)
    for path in (*files, *outputs):
        assert SECRET.encode() not in path.read_bytes(), path
    for run in site.workplace.client.search_runs([site.experiment]):
        assert SECRET not in str(run.to_dictionary())
