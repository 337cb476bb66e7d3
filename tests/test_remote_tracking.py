"""A team's server, for real: accounts, PostgreSQL, artifacts in an object store behind a proxy."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run

from slmflow.cli import DOWNLOADS
from tests import postgres
from tests.team_server import CANARY, EXPERIMENT, Team, User, team_server
from tests.trees import parents, points

pytestmark = pytest.mark.skipif(postgres.missing() is not None, reason=str(postgres.missing()))

BIG = 200  # MiB, and so are the parts that it is sent in
BOTO3S_PART, MLFLOWS_PART = 8, 10  # by the server, which has the file by then; by the client
PAST_THE_SERVER = "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE"  # 500 MB where nothing is said


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with team_server(tmp_path_factory.mktemp("team")) as team:
        yield team


@pytest.fixture(scope="module")
def alice(team: Team, shared_cache: Path) -> User:
    """Her cache is that of the other tests, so that nothing is built again."""
    user = team.user("alice")
    cache = {"SLMFLOW_CACHE": str(shared_cache)}
    return User(user.folder, {**user.environment, **cache}, user.name, user.password)


@pytest.fixture(scope="module")
def bob(team: Team) -> User:
    return team.user("bob", in_file=True)


@pytest.fixture(scope="module")
def carol(team: Team) -> User:
    return team.user("carol", may_write=False)


@pytest.fixture(scope="module")
def packaged_by_alice(alice: User) -> Run:
    """Her run of ``custom_onnx`` on the demo model."""
    result = alice.mlflow_run("custom_onnx")
    assert result.returncode == 0, result.stdout + result.stderr
    demand_no_secret(result)
    (run,) = runs_of(alice, "custom_onnx")
    return run


def runs_of(user: User, entry_point: str) -> list[Run]:
    client = user.client
    experiment = client.get_experiment_by_name(EXPERIMENT)
    where = f"tags.`slmflow.entry_point` = '{entry_point}'"
    return list(client.search_runs([experiment.experiment_id], where))


def demand_no_secret(result: "subprocess.CompletedProcess[str]") -> None:
    assert CANARY not in result.stdout + result.stderr


def test_runs_and_models_lie_on_the_server(packaged_by_alice: Run, team: Team) -> None:
    assert packaged_by_alice.info.status == "FINISHED"
    assert packaged_by_alice.data.tags["slmflow.models"] == "models:/phi3-demo/1"
    assert packaged_by_alice.info.artifact_uri.startswith("mlflow-artifacts:/")
    kept = team.store.keys()
    for name in ("MLmodel", "config.yaml", "provenance.json"):
        assert any(key.endswith(f"/{name}") for key in kept), name


def test_the_registry_knows_the_version_by_its_alias(packaged_by_alice: Run, bob: User) -> None:
    version = bob.client.get_model_version_by_alias("phi3-demo", "candidate-custom_onnx-cpu")
    assert version.version == "1"
    assert version.tags["runtime"] == "custom_onnx"


def test_another_user_sweeps_over_a_model_that_he_never_had(
    packaged_by_alice: Run, bob: User
) -> None:
    """Nothing of it is in his home: it comes from the server, whose store he has no key of."""
    chosen = ["models=models:/phi3-demo/1", "data.limit=2", "speed=none"]
    result = bob.mlflow_run("evaluate", *chosen, "search=greedy", "search.max_new_tokens=4,8")
    assert result.returncode == 0, result.stdout + result.stderr
    demand_no_secret(result)
    (sweep,) = parents(bob)
    assert sweep.info.status == "FINISHED"
    assert [point.info.status for point in points(bob, sweep)] == ["FINISHED", "FINISHED"]


def test_another_user_predicts_with_it(packaged_by_alice: Run, bob: User) -> None:
    rows = bob.folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Question {n}"}) + "\n" for n in range(3)))
    answers = bob.folder / "answers"
    result = bob.script(
        "predict", "model_uri=models:/phi3-demo/1", f"input={rows}", f"output={answers}"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    demand_no_secret(result)
    manifest = json.loads((answers / "_manifest.json").read_text())
    assert sum(part["rows"] for part in manifest["parts"]) == 3


def test_another_user_runs_her_run_again_and_gets_the_same(
    packaged_by_alice: Run, bob: User
) -> None:
    """Elsewhere: built anew, in a cache that is empty."""
    run_id = packaged_by_alice.info.run_id
    result = bob.mlflow_run("rerun", f"run_id={run_id}", "rerun.strict=true")
    assert result.returncode == 0, result.stdout + result.stderr
    demand_no_secret(result)
    repeated = bob.client.get_run(run_id).data.tags["slmflow.rerun.by"].split()[-1]
    made = bob.client.get_run(repeated)
    assert made.info.status == "FINISHED"
    (rerun,) = runs_of(bob, "rerun")
    assert rerun.data.tags["slmflow.rerun.verdict"] == "identical"
    version = bob.client.get_model_version_by_alias("phi3-demo", "candidate-custom_onnx-cpu")
    assert version.version == "1", "hers, still"


BIG_ARTIFACT = """
import hashlib, json, os, resource, sys
import mlflow
path, folder = sys.argv[1:]
with mlflow.start_run() as run:
    mlflow.log_artifact(path)
told = {}
for straight in ("false", "true"):
    os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"] = straight
    fetched = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="big.bin", dst_path=folder
    )
    digest = hashlib.sha256()
    with open(fetched, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    told[straight] = [digest.hexdigest(), peak]
print(json.dumps(told))
"""


@pytest.mark.parametrize(
    ("least", "piece"), [(str(10**9), BOTO3S_PART), (str(10**8), MLFLOWS_PART)]
)
def test_a_big_artifact_comes_back_whole_and_takes_little_memory(
    alice: User, team: Team, tmp_path: Path, least: str, piece: int
) -> None:
    """Up through the server, or past it, as MLflow sends what is larger; down
    through it, and straight from the store, as MLflow does it where nothing is said, with this
    project's settings."""
    file, digest = tmp_path / "big.bin", hashlib.sha256()
    block = os.urandom(1 << 20)
    with file.open("wb") as out:
        for number in range(BIG):
            part = number.to_bytes(8, "big") + block[8:]
            out.write(part)
            digest.update(part)
    script = tmp_path / "script.py"
    script.write_text(BIG_ARTIFACT)
    environment = {**alice.environment, **DOWNLOADS, PAST_THE_SERVER: least}
    user = User(alice.folder, environment, alice.name, alice.password)
    command = [sys.executable, str(script), str(file), str(tmp_path / "down")]
    result = user.run(command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    told: dict[str, tuple[str, int]] = json.loads(result.stdout.splitlines()[-1])
    (through, memory), (straight, more_memory) = told["false"], told["true"]
    assert through == straight == digest.hexdigest()
    assert team.store.parts("big.bin") == BIG // piece
    assert more_memory - memory < BIG / 2, "parts of it, not all"


def test_a_wrong_password_is_told_in_one_message(alice: User) -> None:
    wrong = {**alice.environment, "MLFLOW_TRACKING_PASSWORD": f"{CANARY}-of-nobody"}
    stranger = User(alice.folder, wrong, alice.name, f"{CANARY}-of-nobody")
    result = stranger.script("custom_onnx")
    assert result.returncode == 1
    demand_no_secret(result)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {alice.tracking_uri} opens no run: HTTP 401")
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line


def test_who_may_only_read_is_told_so_and_writes_nothing(
    packaged_by_alice: Run, carol: User
) -> None:
    before = len(runs_of(carol, "custom_onnx"))
    result = carol.script("custom_onnx")
    assert result.returncode == 1
    demand_no_secret(result)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {carol.tracking_uri} opens no run: HTTP 403")
    assert "carol" in line and "EDIT" in line
    assert len(runs_of(carol, "custom_onnx")) == before


def test_no_password_is_in_what_was_recorded(packaged_by_alice: Run, alice: User) -> None:
    """In tags, parameters and artifacts of her run."""
    recorded = json.dumps([dict(packaged_by_alice.data.tags), dict(packaged_by_alice.data.params)])
    folder = Path(alice.client.download_artifacts(packaged_by_alice.info.run_id, ""))
    files = [file.read_text(errors="replace") for file in folder.rglob("*") if file.is_file()]
    assert len(files) >= 3
    assert not any(CANARY in content for content in [recorded, *files])
