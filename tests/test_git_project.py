"""``mlflow run`` from a repository's address, with no checkout in reach; and from one's own clone
with ``-v``, which MLflow changes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from slmflow.tracking import project_source
from tests.conftest import ROOT, Workplace, make_workplace
from tests.git_server import FIRST, SIDE, Repository, git, git_daemon, git_over_http, publish

ACCOUNT = "teammate:canary-of-git"
COMMIT = "mlflow.source.git.commit"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return publish(ROOT, tmp_path_factory.mktemp("served") / "slmflow.git")


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Workplace:
    """Another home, another folder for temporary files; weights that are built are kept."""
    folder = tmp_path_factory.mktemp("away")
    workplace = make_workplace(folder, shared_cache)
    places = {"HOME": folder / "home", "TMPDIR": folder / "temporary"}
    for place in places.values():
        place.mkdir()
    (folder / "home" / ".gitconfig").write_text("[credential]\n\thelper = store\n")
    own = {name: str(place) for name, place in places.items()}
    return Workplace(folder, {**workplace.environment, **own})


def run_from(
    away: Workplace, address: str, version: str, entry_point: str, *parameters: str
) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("mlflow")), "run", address, "-v", version]
    command += ["-e", entry_point, "--env-manager", "local"]
    for parameter in parameters:
        command += ["-P", parameter]
    return away.run(command, cwd=away.folder)


def newest_run(away: Workplace) -> Run:
    experiment = away.client.get_experiment_by_name("tests")
    found = away.client.search_runs(
        [experiment.experiment_id], "tags.`mlflow.source.type` = 'PROJECT'", max_results=1
    )
    return found[0]


@pytest.fixture(scope="module")
def over_http(repository: Repository, away: Workplace) -> Iterator[str]:
    """The address; the password is where git looks for it."""
    with git_over_http(repository, ACCOUNT) as address:
        kept = address.replace("http://", f"http://{ACCOUNT}@").rsplit("/", 1)[0]
        (away.folder / "home" / ".git-credentials").write_text(f"{kept}\n")
        yield address


@pytest.fixture(scope="module")
def over_git(repository: Repository) -> Iterator[str]:
    with git_daemon(repository) as address:
        yield address


@pytest.fixture(scope="module")
def packaged(repository: Repository, away: Workplace, over_git: str) -> tuple[Run, str, str]:
    """The run of ``custom_onnx`` at a full commit over git://, its address, what it printed. The
    clone that MLflow made is gone."""
    result = run_from(away, over_git, repository.on_branch, "custom_onnx")
    assert result.returncode == 0, result.stdout + result.stderr
    temporary = away.folder / "temporary"
    assert any((folder / "MLproject").is_file() for folder in temporary.iterdir())
    shutil.rmtree(temporary)
    temporary.mkdir()
    return newest_run(away), over_git, result.stdout


def test_the_commit_and_the_address_are_on_the_run(
    packaged: tuple[Run, str, str], repository: Repository, away: Workplace
) -> None:
    run, address, _ = packaged
    assert run.info.status == "FINISHED"
    assert run.data.tags[COMMIT] == repository.on_branch
    assert run.data.tags["mlflow.source.name"] == address
    place = away.client.download_artifacts(run.info.run_id, "provenance/provenance.json")
    code = json.loads(Path(place).read_text())["code"]
    assert (code["commit"], code["remote"]) == (repository.on_branch, address)
    assert code["dirty"] is False


def test_the_next_commands_work_when_the_clone_is_gone(
    packaged: tuple[Run, str, str], repository: Repository, away: Workplace
) -> None:
    _, address, printed = packaged
    assert str(away.folder / "temporary") not in printed
    again = f"mlflow run {address} -v {repository.on_branch}"
    manner = "--env-manager local --experiment-name tests"
    uri = "models:/phi3-demo@candidate-custom_onnx-cpu"
    assert f"{again} -e serve {manner} -P model_uri={uri}" in printed


@pytest.mark.parametrize(
    ("number", "uri", "option"),
    [
        ("0", "sqlite", ""),
        (None, "sqlite", ""),
        ("1", "sqlite", " --experiment-name 'of us'"),
        ("1", "http://127.0.0.1:9", " --experiment-id 1"),
    ],
)
def test_the_next_commands_go_on_in_the_experiment_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str | None, uri: str, option: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    assert MlflowClient(store).create_experiment("of us") == "1"
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store if uri == "sqlite" else uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    if number is not None:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    source = project_source.Fetched("git://git.example/a.git", "abc")
    monkeypatch.setattr(project_source, "fetched", lambda: source)
    project_source.experiment_option.cache_clear()
    told = project_source.command("serve", "a=b")
    project_source.experiment_option.cache_clear()
    again = "mlflow run git://git.example/a.git -v abc -e serve --env-manager local"
    assert told == f"{again}{option} -P a=b"


def test_a_branch_over_smart_http_evaluates_what_another_clone_packaged(
    packaged: tuple[Run, str, str], over_http: str, repository: Repository, away: Workplace
) -> None:
    chosen = ("models=models:/phi3-demo/1", "data.limit=2", "speed=none")
    result = run_from(away, over_http, SIDE, "evaluate", *chosen)
    assert result.returncode == 0, result.stdout + result.stderr
    run = newest_run(away)
    assert run.data.tags["slmflow.entry_point"] == "evaluate"
    assert run.data.tags[COMMIT] == repository.on_branch
    assert ACCOUNT.split(":")[1] not in result.stdout + result.stderr + str(run.data.tags)


@pytest.mark.parametrize(
    ("protocol", "version"),
    # Beside a commit over git:// and a branch over HTTP, above.
    [("git", "branch"), ("git", "tag"), ("http", "commit"), ("http", "tag")],
)
def test_a_run_at_a_commit_branch_or_tag_is_what_that_names_over_either_protocol(
    packaged: tuple[Run, str, str],
    over_git: str,
    over_http: str,
    repository: Repository,
    away: Workplace,
    protocol: str,
    version: str,
) -> None:
    address = {"git": over_git, "http": over_http}[protocol]
    typed, commit = {
        "commit": (repository.tagged, repository.tagged),
        "branch": (SIDE, repository.on_branch),
        "tag": (FIRST, repository.tagged),
    }[version]
    result = run_from(away, address, typed, "materialise", "model_uri=models:/phi3-demo/1")
    assert result.returncode == 0, result.stdout + result.stderr
    run = newest_run(away)
    assert (run.info.status, run.data.tags["slmflow.entry_point"]) == ("FINISHED", "materialise")
    assert (run.data.tags[COMMIT], run.data.tags["mlflow.source.name"]) == (commit, address)
    place = away.client.download_artifacts(run.info.run_id, "provenance/provenance.json")
    code = json.loads(Path(place).read_text())["code"]
    assert (code["commit"], code["remote"], code["dirty"]) == (commit, address, False)


def test_an_output_that_would_be_lost_with_the_clone_is_refused(
    packaged: tuple[Run, str, str], over_http: str, repository: Repository, away: Workplace
) -> None:
    rows = away.folder / "rows.jsonl"
    rows.write_text('{"prompt": "What is the capital of Spain?"}\n')
    result = run_from(away, over_http, FIRST, "predict", f"input={rows}", "output=answers")
    assert result.returncode == 1
    assert newest_run(away).data.tags[COMMIT] == repository.tagged
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "output would be written to" in error
    assert over_http in error and "give an absolute path" in error


@pytest.fixture
def clone(repository: Repository, tmp_path: Path) -> Path:
    """Of a person who works in it."""
    folder = tmp_path / "my clone"
    git("clone", "--quiet", f"file://{repository.folder}", folder)
    return folder


@pytest.mark.parametrize("has_remote", [True, False])
def test_a_clone_that_mlflow_has_changed_is_told_with_commands_that_mend_it(
    clone: Path, repository: Repository, away: Workplace, has_remote: bool
) -> None:
    if not has_remote:
        git("-C", clone, "remote", "remove", "origin")
    result = run_from(away, str(clone), repository.tagged, "custom_onnx", "no.such=1")
    assert "no.such" in result.stderr
    assert git("-C", clone, "rev-parse", "HEAD") == repository.tagged
    told = result.stdout.split("to have your clone back")[1]
    commands = [line.strip() for line in told.splitlines() if line.startswith("  git -C ")]
    commands += [line.strip() for line in told.splitlines() if line.startswith("  rm ")]
    for command in commands:
        subprocess.run(command, shell=True, check=True, capture_output=True, timeout=60)
    assert git("-C", clone, "symbolic-ref", "--short", "HEAD") == "main"
    assert git("-C", clone, "rev-parse", "--is-shallow-repository") == "false"
    assert git("-C", clone, "rev-list", "--count", "main") == "3"
    assert git("-C", clone, "remote") == ("origin" if has_remote else "")
    git("-C", clone, "fsck", "--connectivity-only")


def test_what_a_person_checks_out_is_not_taken_for_mlflows_doing(
    clone: Path, repository: Repository
) -> None:
    began = time.time()
    assert project_source.find_moved(clone, began) is None, "as it was cloned"
    git("-C", clone, "checkout", "--quiet", SIDE)
    assert project_source.find_moved(clone, began) is None, "nothing was fetched"
    git("-C", clone, "fetch", "--quiet", "--depth=1", "origin", repository.tagged)
    git("-C", clone, "checkout", "--quiet", repository.tagged)
    moved = project_source.find_moved(clone, began)
    assert moved is not None and moved.shallow, "as MLflow does it"
    assert (moved.before, moved.after) == (SIDE, repository.tagged)
    assert project_source.find_moved(clone, time.time() + 2) is None, "before mlflow run began"
    os.utime(clone / ".git" / "FETCH_HEAD", (began - 60, began - 60))
    assert project_source.find_moved(clone, began) is None, "fetched a minute earlier"


def test_only_a_folder_of_mlflows_own_counts_as_fetched(clone: Path) -> None:
    assert project_source.fetched(clone) is None
    assert project_source.fetched(clone.rename(clone.with_name("tmpabcdefgh"))) is None
    clone = clone.with_name("tmpabcdefgh")
    temporary = Path(tempfile.mkdtemp()).resolve()
    try:
        shutil.copytree(clone, temporary, dirs_exist_ok=True)
        git("-C", temporary, "remote", "set-url", "origin", f"https://{ACCOUNT}@git.example/a.git")
        source = project_source.fetched(temporary)
        assert source is not None
        assert source.address == "https://***@git.example/a.git"
        assert source.commit == git("-C", clone, "rev-parse", "HEAD")
    finally:
        shutil.rmtree(temporary)
