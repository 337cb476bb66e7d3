"""The lock: written from what the hub says, kept by every later run."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slmflow import lock_file, sources
from slmflow.config import lock as config_lock
from slmflow.config.lock import configured_models
from slmflow.errors import ConfigError, SourceError
from slmflow.hub import cached
from slmflow.lock_file import Contents, Entry, Sum
from slmflow.lock_models import lock_models
from tests.conftest import ROOT, Workplace
from tests.hub_machine import (
    CHECKPOINT,
    NAME,
    NOT_NEEDED,
    ONNX,
    ONNX_NAME,
    OTHER_ONNX,
    WANTED_ONNX,
    Machine,
)
from tests.hub_server import TOKEN, Gated, Hub, Repository

OWN_CODE = b'{"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_small.Small"}}'
LOCK = """
import json, sys
from slmflow.config.schema import Model, OnnxSource, Prebuilt
from slmflow.errors import UserError
from slmflow.lock_models import lock_models
models = {}
for name, revision in json.loads(sys.argv[1]).items():
    onnx = OnnxSource(sys.argv[2], None, [Prebuilt(sys.argv[3])]) if name == sys.argv[4] else None
    about = {"onnx": onnx} if onnx else {}
    models[name] = Model(name="model", source=name, revision=revision, **about)
try:
    lock_models(models, sys.argv[5] == "all")
except UserError as error:
    print(error)
    sys.exit(1)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub() as hub:
        files = {NAME: {**CHECKPOINT, **NOT_NEEDED}, ONNX_NAME: {**ONNX, **OTHER_ONNX}}
        for name, content in files.items():
            hub.repositories[name] = Repository(tmp_path / "hub" / name.partition("/")[2])
            hub.repositories[name].commit(content, "main")
        yield hub


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(home, hub)


def lock(
    machine: Machine, *names: str, every: bool = True, fails: bool = False, **settings: str
) -> str:
    """What it prints. Names are of models at their default branch, each with its own."""
    models = {name: None for name in names or (NAME,)}
    arguments = [json.dumps(models), ONNX_NAME, WANTED_ONNX, NAME, "all" if every else "some"]
    done = subprocess.run(
        [sys.executable, "-c", LOCK, *arguments],
        cwd=machine.home,
        env=machine.environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == int(fails), done.stdout + done.stderr
    return done.stdout


def locked(machine: Machine) -> dict[str, dict[str, object]]:
    entries = yaml.safe_load(machine.lock.read_text())["models"]
    return {entry["source"]: entry for entry in entries}


# What it writes


def test_the_lock_names_commits_and_the_sum_of_each_file_that_would_be_fetched(
    machine: Machine, hub: Hub
) -> None:
    lock(machine)
    assert hub.fetched() == []  # the hub tells the sums
    assert set(locked(machine)) == {NAME, ONNX_NAME}
    entry = locked(machine)[NAME]
    assert (entry["revision"], entry["commit"]) == (None, hub.repositories[NAME].refs["main"])
    assert set(entry["files"]) == {*CHECKPOINT, "modeling_small.py"}  # code, for who trusts it
    assert set(entry["files"]["model.safetensors"]) == {"size", "sha256"}
    assert set(entry["files"]["config.json"]) == {"size", "git_sha1"}
    assert set(locked(machine)[ONNX_NAME]["files"]) == set(ONNX)


def test_locking_again_writes_the_same_and_a_moved_branch_changes_its_lines_only(
    machine: Machine, hub: Hub
) -> None:
    lock(machine)
    first = machine.lock.read_text()
    assert "as before" in lock(machine)
    assert machine.lock.read_text() == first
    newer = {**CHECKPOINT, **NOT_NEEDED, "model.safetensors": b"newer"}
    hub.repositories[NAME].commit(newer, "main")
    assert "was" in lock(machine)
    changed = set(machine.lock.read_text().splitlines()) ^ set(first.splitlines())
    assert {line.split(":")[0].strip() for line in changed} == {"commit", "model.safetensors"}


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1)
SUMS = st.builds(Sum, st.integers(0, 1 << 50), sha256=st.none() | st.just("a" * 64))
ENTRIES = st.lists(
    st.builds(
        Entry,
        TEXT,
        st.none() | TEXT,
        st.builds(
            Contents, st.from_regex(r"[0-9a-f]{40}", fullmatch=True), st.dictionaries(TEXT, SUMS)
        ),
    ),
    unique_by=lambda entry: entry.key,
)


@given(entries=ENTRIES, order=st.randoms())
def test_what_is_written_is_read_and_its_text_does_not_depend_on_the_order(
    entries: list[Entry], order: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        file = tmp_path_factory.getbasetemp() / "models.lock.yaml"
        patch.setenv("SLMFLOW_LOCK", str(file))
        lock_file.write(entries)
        text = file.read_text()
        assert {entry.key: entry for entry in lock_file.read()} == {e.key: e for e in entries}
        order.shuffle(entries)  # type: ignore[attr-defined]
        lock_file.write(entries)
        assert file.read_text() == text


def test_a_gated_model_is_told_and_keeps_its_earlier_entry(machine: Machine, hub: Hub) -> None:
    lock(machine)
    before = locked(machine)[NAME]
    hub.repositories[NAME].commit({**CHECKPOINT, "model.safetensors": b"newer"}, "main")
    hub.repositories[NAME].gated = Gated.EVERYTHING
    printed = lock(machine)
    assert "is gated" in printed
    assert "its earlier entry stays" in " ".join(printed.split())
    assert locked(machine)[NAME] == before
    lock(machine, HF_TOKEN=TOKEN)
    assert locked(machine)[NAME] != before


def test_one_model_leaves_the_entries_of_others_and_all_models_drop_the_stale(
    machine: Machine, hub: Hub
) -> None:
    lock(machine)
    hub.repositories["maker/second"] = hub.repositories[NAME]
    lock(machine, "maker/second", every=False)
    assert set(locked(machine)) == {NAME, ONNX_NAME, "maker/second"}
    assert "dropped" in lock(machine, "maker/second")
    assert set(locked(machine)) == {"maker/second"}


def test_without_the_hub_nothing_is_written_and_the_answer_comes_at_once(
    machine: Machine, hub: Hub
) -> None:
    hub.stop()
    started = time.monotonic()
    assert "the hub does not answer" in lock(machine, fails=True)
    assert time.monotonic() - started < 10
    assert "HF_HUB_OFFLINE is set" in lock(machine, fails=True, HF_HUB_OFFLINE="1")
    assert not machine.lock.exists()


def test_nothing_that_could_be_locked_is_an_error(machine: Machine) -> None:
    assert "none of maker/none could be locked" in lock(machine, "maker/none", fails=True)


def test_an_option_that_is_not_there_is_told_with_the_ones_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no option phi3_dem \(did you mean phi3_demo\?\)"):
        configured_models(["phi3_dem"])


# What later runs make of it


def test_a_locked_model_stays_at_its_commit_when_the_branch_moves(
    machine: Machine, hub: Hub
) -> None:
    lock(machine)
    commit = hub.repositories[NAME].refs["main"]
    hub.repositories[NAME].commit({**CHECKPOINT, "model.safetensors": b"newer"}, "main")
    assert machine.find().revision == commit
    hub.requests.clear()
    found = machine.find()
    assert (found.revision, found.files) == (commit, CHECKPOINT)
    assert hub.requests == []  # the lock says all that the hub could
    assert found.notes == [f"{NAME} at {commit[:12]}, as locked"]
    assert machine.find(commit).revision == commit


@pytest.mark.parametrize("revision", ["0" * 40, "v1.0"])
def test_a_config_that_names_another_revision_than_the_lock_is_refused(
    machine: Machine, hub: Hub, revision: str
) -> None:
    lock(machine)
    commit = hub.repositories[NAME].refs["main"]
    hub.requests.clear()
    error = machine.find(revision).error
    assert f"{NAME} was asked for at revision {revision}" in error
    assert f"pins it at null = {commit[:12]}" in error
    assert "./run lock" in error
    assert hub.requests == []


def test_another_file_at_the_hub_than_the_lock_says_is_refused_before_it_is_fetched(
    machine: Machine, hub: Hub
) -> None:
    lock(machine)
    text = machine.lock.read_text()
    digest = locked(machine)[NAME]["files"]["model.safetensors"]["sha256"]
    machine.lock.write_text(text.replace(digest, "a" * 64))
    assert "the hub has another model.safetensors than" in machine.find().error
    assert hub.fetched() == []


def test_a_downloaded_file_that_the_lock_knows_otherwise_is_refused_and_kept(
    machine: Machine,
) -> None:
    found = machine.find()
    lock(machine)
    digest = locked(machine)[NAME]["files"]["model.safetensors"]["sha256"]
    machine.lock.write_text(machine.lock.read_text().replace(digest, "a" * 64))
    for settings in ({}, {"HF_HUB_OFFLINE": "1"}):
        error = machine.find(**settings).error
        assert f"models.lock.yaml says SHA-256 {'a' * 64}" in error
        assert "it is what the hub gave" in error
    assert (found.path / "model.safetensors").read_bytes() == CHECKPOINT["model.safetensors"]


def test_a_file_of_a_locked_folder_that_differs_or_is_new_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMFLOW_LOCK", str(tmp_path / "models.lock.yaml"))
    folder = shutil.copytree(ROOT / "demo" / "phi3_demo", tmp_path / "model")
    wanted = sources.checkpoint_wanted(False, str(folder))
    lock_file.write([Entry(str(folder), None, sources.contents(str(folder), None, wanted))])
    assert sources.find_checkpoint(str(folder), None, print).revision.startswith("sha256:")
    (folder / "README.md").write_text("a notice is no part of the model")
    sources.find_checkpoint(str(folder), None, print)
    (folder / "config.json").write_text("{}")
    (folder / "added.json").write_text("{}")
    with pytest.raises(SourceError, match=r"added\.json, config\.json differ from models\.lock"):
        sources.find_checkpoint(str(folder), None, print)


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a locked repository in the hub's cache; the hub itself must not be asked."""
    from huggingface_hub import constants

    monkeypatch.setenv("SLMFLOW_LOCK", str(tmp_path / "models.lock.yaml"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0" * 40
    folder = cached.snapshot(NAME, commit)
    folder.mkdir(parents=True)
    for name, content in CHECKPOINT.items():
        (folder / name).write_bytes(content)
    files = {name: Sum(len(content)) for name, content in CHECKPOINT.items()}
    lock_file.write([Entry(NAME, None, Contents(commit, files))])
    return folder


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "without a notice"])
def test_what_lies_beside_the_locked_files_of_a_download_is_no_part_of_the_model(
    downloaded: Path, complete: bool
) -> None:
    added = ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "LICENSE2")
    for name in added:
        (downloaded / name).write_text("{}")
    if not complete:  # then the hub would be asked, and what is there serves without it
        (downloaded / "README.md").unlink()
    found = sources.find_checkpoint(NAME, None, print)
    notices = {"LICENSE", "README.md"}
    assert set(found.files) == set(CHECKPOINT) - notices
    assert {path.name for path in found.notices} == (notices if complete else {"LICENSE"})


def test_a_locked_source_says_how_to_lock_what_conf_did_not_name(
    downloaded: Path, tmp_path: Path
) -> None:
    told = r"models\.lock\.yaml was written for other files of .*conf/model/.*\./run lock"
    with pytest.raises(SourceError, match=told):
        sources.find_onnx(NAME, None, WANTED_ONNX, print)
    (downloaded / "config.json").write_bytes(OWN_CODE)
    files = {name: Sum((downloaded / name).stat().st_size) for name in CHECKPOINT}
    lock_file.write(
        [Entry(source, None, Contents("0" * 40, files)) for source in (NAME, str(tmp_path))]
    )
    with pytest.raises(SourceError, match=told):
        sources.find_checkpoint(NAME, None, print, own_code=True)
    with pytest.raises(SourceError, match=told):
        sources.find_onnx(str(tmp_path), None, WANTED_ONNX, print)


def test_a_place_that_cannot_be_written_is_told_before_the_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLMFLOW_LOCK", str(tmp_path / "file" / "models.lock.yaml"))
    with pytest.raises(SourceError, match=r"file cannot be written .*SLMFLOW_LOCK"):
        lock_models({}, True)


def test_a_slip_in_the_config_of_a_model_is_told_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_lock, "MODELS", tmp_path)
    for text in ("name: [", "name: 'a", "- a", ""):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"mine\.yaml is no config of a model: ."):
            configured_models([])


@pytest.mark.parametrize("text", ["models: [", "format: 2\nmodels: []", "format: 1", "[]", "- 1"])
def test_a_lock_that_cannot_be_read_is_told_and_never_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SLMFLOW_LOCK", str(tmp_path / "models.lock.yaml"))
    (tmp_path / "models.lock.yaml").write_text(text)
    with pytest.raises(SourceError, match=r"models\.lock\.yaml cannot be read .*\./run lock"):
        lock_file.pinned(NAME, None)


# The entry point


def test_lock_pins_the_configured_models_and_keeps_the_file_on_the_run(
    workplace: Workplace, tmp_path: Path, hub: Hub
) -> None:
    hub.repositories["microsoft/Phi-3-mini-4k-instruct"] = hub.repositories[NAME]
    onnx = Repository(tmp_path / "hub" / "onnx")
    folder = "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"
    onnx.commit({f"{folder}/model.onnx": b"one", "other/model.onnx": b"other"}, "main")
    hub.repositories["microsoft/Phi-3-mini-4k-instruct-onnx"] = onnx
    file = tmp_path / "models.lock.yaml"
    chosen = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    online = Workplace(
        workplace.folder, {**workplace.environment, **chosen, "SLMFLOW_LOCK": str(file)}
    )
    result = online.mlflow_run("lock", "models=phi3_mini_4k,phi3_demo")
    assert result.returncode == 0, result.stdout + result.stderr
    entries = {entry["source"]: entry for entry in yaml.safe_load(file.read_text())["models"]}
    assert entries["demo/phi3_demo"]["commit"].startswith("sha256:")
    assert (
        entries["microsoft/Phi-3-mini-4k-instruct"]["commit"] == hub.repositories[NAME].refs["main"]
    )
    assert set(entries["microsoft/Phi-3-mini-4k-instruct-onnx"]["files"]) == {
        f"{folder}/model.onnx"
    }
    (run,) = online.client.search_runs(["1"])
    kept = online.client.download_artifacts(run.info.run_id, "models.lock.yaml", str(tmp_path))
    assert Path(kept).read_text() == file.read_text()
