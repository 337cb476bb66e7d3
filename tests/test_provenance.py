"""Every run tells what it was made by: enough to know whether another one had the same."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.entities import Run
from mlflow.utils import validation

from slmflow.tracking import parameters, provenance, surroundings
from slmflow.tracking.code import LARGEST, MOST, code_state, git_commit
from slmflow.tracking.resolved import log_models, log_resolved
from slmflow.tracking.run import open_child
from tests.conftest import ROOT, Packaged, Workplace
from tests.trees import artifact, of_main, parents, runs

LONG = "x" * 6001
NAMES = st.text("abcdé '", min_size=1, max_size=8).filter(lambda name: name.strip() == name)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit of two files, on a branch, with a remote."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "work")
    (folder / "code.py").write_text("a = 1\n")
    (folder / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (folder / ".gitignore").write_text("ignored\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "one")
    git(folder, "remote", "add", "origin", "https://me:hunter2hunter2@host.invalid/r.git")
    return folder


def recorded(workplace: Workplace, run: Run) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(artifact(workplace, run, "provenance/provenance.json"))
    return told


def test_a_clean_checkout_is_its_commit_and_nothing_else(repository: Path) -> None:
    code = code_state(repository)
    assert code.commit == git(repository, "rev-parse", "HEAD").strip() == git_commit(repository)
    assert (code.branch, code.dirty, code.diff) == ("work", False, "")


def test_the_diff_makes_the_same_files_from_the_commit(repository: Path, tmp_path: Path) -> None:
    """Also new ones, and those that are no UTF-8; what git ignores is not looked at."""
    (repository / "code.py").write_text("a = 2\n")
    (repository / "latin.txt").write_bytes("th\xe9\n".encode("latin-1"))
    (repository / "conf").mkdir()
    (repository / "conf" / "my own.yaml").write_text("b: 3\n")
    (repository / "ignored").write_text("c")
    before = git(repository, "status", "--porcelain")
    code = code_state(repository)
    assert code.dirty
    assert code.files == ("code.py", "conf/my own.yaml", "latin.txt")
    assert git_commit(repository) == f"{code.commit} (with uncommitted changes)"
    assert git(repository, "status", "--porcelain") == before, "the index is as it was"
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(repository), str(other))
    (tmp_path / "code.diff").write_bytes(code.diff.encode("utf-8", "surrogateescape"))
    git(other, "apply", str(tmp_path / "code.diff"))
    for name in ("code.py", "latin.txt", "conf/my own.yaml"):
        assert (other / name).read_bytes() == (repository / name).read_bytes()
    assert not (other / "ignored").exists()


@settings(max_examples=10, deadline=None)
@given(names=st.sets(NAMES, min_size=1, max_size=3))
def test_new_files_are_found_whatever_they_are_called(
    names: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("named")
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "none")
    for name in names:
        (folder / name).write_text(f"new {name}\n")
    code = code_state(folder)
    assert all(f"+new {name}\n" in code.diff for name in names)
    assert code.files == tuple(sorted(names))
    git(folder, "add", "-A")
    assert code_state(folder).files == tuple(sorted(names))


def test_files_are_named_whatever_became_of_them(repository: Path) -> None:
    (repository / "old.py").write_text("b = 1\n" * 20)
    (repository / "gone.py").write_text("c = 1\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "three")
    git(repository, "mv", "old.py", "a new name.py")
    (repository / "gone.py").unlink()
    (repository / "code.py").write_text("a = 2\n")
    assert code_state(repository).files == ("a new name.py", "code.py", "gone.py")


def test_what_is_too_large_for_the_diff_is_named(repository: Path) -> None:
    (repository / "weights.bin").write_bytes(b"0" * (LARGEST + 1))
    code = code_state(repository)
    assert code.dirty
    assert code.left_out == ("weights.bin",)
    assert len(code.diff) < 1000


def test_of_a_project_below_the_top_of_its_repository_new_files_are_kept(
    repository: Path,
) -> None:
    (repository / "project").mkdir()
    (repository / "project" / "new.py").write_text("b = 1\n")
    code = code_state(repository / "project")
    assert code.left_out == ()
    assert "+++ b/project/new.py" in code.diff


def test_binary_files_are_named_and_the_diff_of_the_others_applies(
    repository: Path, tmp_path: Path
) -> None:
    (repository / "known.bin").write_bytes(b"\0a")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "two")
    (repository / "known.bin").write_bytes(b"\0b")
    (repository / "new one.bin").write_bytes(b"\0c")
    (repository / "code.py").write_text("a = 2\n")
    code = code_state(repository)
    assert code.left_out == ("known.bin", "new one.bin")
    git(tmp_path, "clone", "-q", str(repository), "other")
    (tmp_path / "code.diff").write_text(code.diff)
    git(tmp_path / "other", "apply", str(tmp_path / "code.diff"))
    assert (tmp_path / "other" / "code.py").read_text() == "a = 2\n"


PRIVATE = [
    *(
        "token.txt",
        "hf_token",
        "my_api_key.txt",
        "passwords.csv",
        "openai.key",
        ".netrc",
        ".pgpass",
    ),
    *(".env", ".env.local", "prod.env", "server.pem", "id_rsa", "id_rsa.pub", "id_ed25519"),
    *("google-credentials.json", "Secrets.YAML", "secrets/prod.yaml", ".ssh/config", ".npmrc"),
    *("store.p12", ".aws/config", ".databrickscfg", "kaggle.json", "sub/.git-credentials"),
]
ORDINARY = [
    "tokenizer.json",
    "keys.py",
    "special_tokens.json",
    "password_test.py",
    "environment.py",
]


@pytest.mark.parametrize("staged", [False, True])
def test_new_files_that_are_there_to_hold_secrets_are_named_and_not_kept(
    repository: Path, staged: bool
) -> None:
    """Nothing tells a bare password from a word, so that the name decides; the others are kept."""
    for name in (*PRIVATE, *ORDINARY):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text(f"hunter of {name}\n")
    if staged:
        git(repository, "add", "-A")
    code = code_state(repository)
    assert sorted(code.left_out) == sorted(PRIVATE)
    assert [name for name in PRIVATE if f"+hunter of {name}\n" in code.diff] == []
    assert [name for name in ORDINARY if f"+hunter of {name}\n" not in code.diff] == []


def test_what_is_left_out_is_counted_where_it_is_not_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(MOST + 3):
        (repository / f"{number}.pem").touch()
    monkeypatch.setattr(provenance, "PROJECT_ROOT", repository)
    code = provenance.collect("main", [], {}, {}).record["code"]
    assert len(code["left_out"]) == MOST
    assert code["left_out_more"] == 3
    assert (len(code["files"]), code["files_more"]) == (MOST, 3)


def test_what_was_resolved_is_recorded_without_secrets(workplace: Workplace, active: Run) -> None:
    log_resolved({"model_uri": "s3://b/x?X-Amz-Signature=hunter2hunter2"})
    told = json.loads(artifact(workplace, active, "resolved.json"))
    assert told["config"] == {"model_uri": "s3://b/x?X-Amz-Signature=***"}
    with open_child("serve https://me:hunter2@host/x") as child:
        assert child.info.run_name == "serve https://***@host/x"


def test_a_moved_file_and_a_checkout_without_a_branch_are_understood(repository: Path) -> None:
    git(repository, "checkout", "-q", "--detach")
    git(repository, "mv", "code.py", "moved.py")
    code = code_state(repository)
    assert code.branch is None
    assert "rename to moved.py" in code.diff


def test_outside_of_git_the_commit_of_the_run_stands_and_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "PROJECT_ROOT", tmp_path)
    code = provenance.collect("custom_onnx", [], {}, {}, "0123abcd").record["code"]
    assert code["commit"] == "0123abcd"
    assert "not a git repository" in code["unknown"]


def test_the_record_agrees_with_the_files_beside_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "code.py").write_text("password = 'hunter2hunter2'\n")
    monkeypatch.setattr(provenance, "PROJECT_ROOT", repository)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("SLMFLOW_API_KEY", "a key of eight or more")
    each_run = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLMFLOW_FOLLOWED_RUN", "SLMFLOW_LOCK")
    for name in each_run:  # another in each run, and no circumstance
        monkeypatch.setenv(name, "1")
    flat = {"data.seed": 3, "search.random_seed": None, "speed.seeded": 1}
    made_by = provenance.collect("main", ["hub.token=abc"], {"model": "a"}, flat)
    made_by.write(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "provenance.json").read_text())
    diff = (tmp_path / "out" / "code.diff").read_bytes()
    assert told["code"]["diff_sha256"] == hashlib.sha256(diff).hexdigest()
    assert b"+password = '***'" in diff
    assert told["code"]["remote"] == "https://***@host.invalid/r.git"
    assert told["overrides"] == ["hub.token=***"]
    assert told["seeds"] == {"data.seed": 3, "search.random_seed": None}
    assert told["environment"]["PYTHONHASHSEED"] == "7"
    assert not {"SLMFLOW_API_KEY", *each_run} & set(told["environment"])
    constraints = (tmp_path / "out" / "constraints.txt").read_bytes()
    assert told["constraints_sha256"] == hashlib.sha256(constraints).hexdigest()
    assert made_by.tags == {
        "slmflow.code.commit": told["code"]["commit"],
        "slmflow.code.branch": "work",
        "slmflow.code.dirty": "true",
    }


def test_installed_versions_and_the_machine_are_told_and_no_names_of_hosts() -> None:
    packages = surroundings.packages()
    assert packages["mlflow"] == mlflow.__version__
    assert packages["hydra-core"]
    hardware = surroundings.hardware()
    assert hardware["cpu"]
    assert hardware["cores"] >= 1
    assert hardware["memory_bytes"] > 1 << 28
    assert set(hardware) == {"cpu", "cores", "memory_bytes", "accelerators"}


def test_every_run_of_main_has_its_provenance(packaged: Packaged) -> None:
    """The parent and the children that package and evaluate."""
    told = [run for run in runs(packaged.workplace) if "slmflow.entry_point" in run.data.tags]
    (whole,) = [run for run in told if run.data.tags["slmflow.entry_point"] == "main"]
    # Other tests may have served these models.
    parent = whole.info.run_id
    tree = [whole, *(run for run in told if run.data.tags.get("mlflow.parentRunId") == parent)]
    points = {run.data.tags["slmflow.entry_point"]: run for run in tree}
    assert set(points) == {"main", "transformers_pipeline", "custom_onnx", "evaluate"}
    for name, run in points.items():
        record = recorded(packaged.workplace, run)
        assert record["format"] == 1
        assert record["entry_point"] == name
        assert record["overrides"] == ["data.limit=6"]
        assert record["choices"]["model"] == "phi3_demo"
        assert record["packages"]["mlflow"] == mlflow.__version__
        assert record["environment"]["HF_HUB_OFFLINE"] == "1"
        assert run.data.tags["slmflow.code.commit"] == record["code"]["commit"]
        locked = artifact(packaged.workplace, run, "provenance/constraints.txt")
        assert locked == (ROOT / "constraints.txt").read_text()
        config = yaml.safe_load(artifact(packaged.workplace, run, "config.yaml"))
        assert config["data"]["limit"] == 6


def assert_each_tells_what_it_was_made_by(workplace: Workplace, found: list[Run]) -> list[Run]:
    """Its own config, choices, seeds and provenance, or the run below which it is a part. Returns
    these parts."""
    every = {run.info.run_id: run for run in found}
    parts = []
    for run in every.values():
        tags = run.data.tags
        if "slmflow.made_by" in tags:
            assert tags["slmflow.made_by"] == tags["mlflow.parentRunId"]
            assert "slmflow.made_by" not in every[tags["mlflow.parentRunId"]].data.tags
            parts.append(run)
            continue
        told = recorded(workplace, run)
        config = yaml.safe_load(artifact(workplace, run, "config.yaml"))
        assert told["entry_point"] == tags["slmflow.entry_point"]
        assert told["choices"]["task"] == tags["choice.task"] == "chat"
        assert told["seeds"]["search.seed"] == config["search"]["seed"]
        assert {"model", "hardware"} <= set(config)
    return parts


def test_every_run_of_main_tells_what_it_was_made_by(packaged: Packaged) -> None:
    """Those of the models that are compared are part of the evaluation."""
    found = of_main(packaged.workplace)
    assert len(found) == 6
    parts = assert_each_tells_what_it_was_made_by(packaged.workplace, found)
    assert {run.info.run_name for run in parts} == {"transformers_pipeline v1", "custom_onnx v2"}


def test_every_run_of_a_sweep_tells_what_it_was_made_by(workplace: Workplace) -> None:
    """The sweep has what its points have in common; the point that cannot be composed is made by
    the sweep."""
    result = workplace.mlflow_run(
        "custom_onnx", "search.temperature=0.0,0.4", "hardware.precision=int4,bf16"
    )
    assert "2 of 4 points did not finish" in result.stderr
    failed = assert_each_tells_what_it_was_made_by(workplace, runs(workplace))
    assert [run.info.status for run in failed] == ["FAILED", "FAILED"]
    (sweep,) = parents(workplace)
    config = yaml.safe_load(artifact(workplace, sweep, "config.yaml"))
    assert config["model"]["name"] == "phi3-demo"
    assert "temperature" not in config["search"]
    assert "precision" not in config["hardware"]
    assert sweep.data.tags["choice.model"] == "phi3_demo"
    assert sweep.data.params["model.name"] == "phi3-demo"


@pytest.mark.parametrize("kind", ["version", "logged model", "of a run", "folder"])
def test_whatever_names_a_packaged_model_its_weights_are_recorded(
    kind: str, packaged: Packaged, scratch: Workplace, tmp_path: Path
) -> None:
    """By predict, as serve and evaluate do it: nothing is asked of the registry for a folder."""
    version = scratch.client.get_model_version("phi3-demo", "2")
    uri = {
        "version": "models:/phi3-demo/2",
        "logged model": version.source,
        "of a run": f"runs:/{version.run_id}/custom_onnx",
        "folder": str(tmp_path / "copy"),
    }[kind]
    mlflow.set_tracking_uri(scratch.tracking_uri)
    place = Path(mlflow.artifacts.download_artifacts(version.source))
    if kind == "folder":
        shutil.copytree(place, uri)
    with mlflow.start_run(experiment_id="1") as run:
        log_models({"model_uri": uri}, [uri, "openai:/http://127.0.0.1:1/v1"])
    told = json.loads(artifact(scratch, run, "resolved.json"))["models"]
    manifest = json.loads((place / "weights.json").read_text())
    assert list(told) == [uri]
    assert told[uri]["files"] == manifest["files"]
    assert told[uri]["revision"] == manifest["revision"]
    packaging = scratch.client.get_run(version.run_id).data.tags["slmflow.weights"]
    assert told[uri]["weights"] == packaging
    assert scratch.client.get_run(run.info.run_id).data.tags["slmflow.weights"] == packaging


@pytest.fixture
def active(workplace: Workplace) -> Any:
    mlflow.set_tracking_uri(workplace.tracking_uri)
    with mlflow.start_run(experiment_id="1") as run:
        yield run


def params(workplace: Workplace, run: Run) -> Mapping[str, str]:
    found: Mapping[str, str] = workplace.client.get_run(run.info.run_id).data.params
    return found


def test_a_long_parameter_is_never_cut(workplace: Workplace, active: Run) -> None:
    parameters.log_parameters({"long/one": LONG, "short": "x" * 6000})
    logged = params(workplace, active)
    assert logged["short"] == "x" * 6000
    assert logged["long/one"] == "6001 characters, in the artifact parameters/long_one.txt"
    assert artifact(workplace, active, "parameters/long_one.txt") == LONG


def test_a_server_that_takes_less_than_others_is_given_less(
    workplace: Workplace, active: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "MAX_PARAM_VAL_LENGTH", 500)
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
    parameters.log_parameters({"some": "y" * 501, "short": "y"})
    logged = params(workplace, active)
    assert logged["some"].startswith("501 characters, in the artifact")
    assert artifact(workplace, active, "parameters/some.txt") == "y" * 501


def test_what_mlflow_run_had_cut_is_whole_as_an_artifact(workplace: Workplace) -> None:
    """A text that the grammar quotes, and a list, which is composed otherwise than it is typed. The
    run need not succeed for it."""
    question = f"Who, {'x' * 6100}: it's 'me'?"
    stops = [f"stop {number}" for number in range(900)]
    workplace.mlflow_run(
        "custom_onnx",
        f"model.probe.question={question}",
        f"search.stop=[{','.join(stops)}]",
        "model.probe.expect=null",
        "search.max_new_tokens=1",
    )
    (run,) = workplace.client.search_runs(["1"])
    cut = {key for key, value in run.data.params.items() if len(value) == 6000}
    assert cut == {"model.probe.question", "search.stop"}
    assert artifact(workplace, run, "parameters/model.probe.question.txt") == question
    assert json.loads(artifact(workplace, run, "parameters/search.stop.txt")) == stops
    told = run.data.tags["slmflow.parameters.cut"].split()
    assert told == ["parameters/model.probe.question.txt", "parameters/search.stop.txt"]


def test_of_what_mlflow_run_had_cut_the_recorded_length_decides() -> None:
    known = {"cut": "[a,b" + "c" * 5996, "whole": "b", "typed": "x" * 6000, "other": "y" * 6000}
    values = {"cut": '["a", "b"]', "whole": "b", "new": "c" * 6001}
    typed = ["+typed=" + "x" * 6001, "whole=b", f"hub.token={'z' * 6001}"]
    assert parameters.cut(known, values, typed) == {"cut": values["cut"], "typed": "x" * 6001}


def test_a_long_tag_is_an_artifact_and_says_so(workplace: Workplace, active: Run) -> None:
    client, run_id = workplace.client, active.info.run_id
    parameters.set_tag(run_id, "some.tag", "a" * 5000, client)
    parameters.set_tag(run_id, "long/tag", "b" * 5001, client)
    run = client.get_run(run_id)
    assert run.data.tags["some.tag"] == "a" * 5000
    assert run.data.tags["long/tag"] == "5001 characters, in the artifact tags/long_tag.txt"
    assert parameters.whole_tag(run, "some.tag", client) == "a" * 5000
    assert parameters.whole_tag(run, "long/tag", client) == "b" * 5001


def test_a_long_error_is_an_artifact_and_its_tag_says_so(workplace: Workplace, active: Run) -> None:
    parameters.log_error("z" * 5001, active.info.run_id)
    tag = workplace.client.get_run(active.info.run_id).data.tags["slmflow.error"]
    assert tag.endswith("zzz... (all of it: the artifact error.txt)")
    assert len(tag) == 5000
    assert artifact(workplace, active, "error.txt") == "z" * 5001


@pytest.mark.parametrize(
    ("typed", "composed"),
    [
        ("search.temprature=1", False),
        ("hardware.precision=fp16", True),  # does not go with the target
        ("hardware=cuda", True),  # not on the machines of tests
    ],
)
def test_a_run_that_ends_before_its_workflow_joins_it_says_what_it_was(
    workplace: Workplace, typed: str, composed: bool
) -> None:
    secret = os.urandom(8).hex()  # not a word of this file, which may be in code.diff
    source = "model.onnx.source=https://bob:{}@host.invalid/x"
    result = workplace.mlflow_run("custom_onnx", typed, source.format(secret))
    assert result.returncode == 1
    (run,) = runs(workplace)
    assert run.info.status == "FAILED"
    assert "slmflow.error" in run.data.tags
    told = recorded(workplace, run)
    assert told["entry_point"] == "custom_onnx"
    shown = source.replace("bob:{}", "***")
    assert {typed, shown} <= set(told["overrides"])
    assert told["code"]["commit"] == git(ROOT, "rev-parse", "HEAD").strip()
    assert "mlflow" in told["packages"] and told["hardware"]["cores"]
    assert run.data.tags["slmflow.code.commit"] == told["code"]["commit"]
    kept = [path for path in (workplace.folder / "artifacts").rglob("*") if path.is_file()]
    assert [path for path in kept if secret.encode() in path.read_bytes()] == []
    assert ("config.yaml" in {path.name for path in kept}) == composed
