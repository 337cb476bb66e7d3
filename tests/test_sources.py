"""Weights from a hub and from folders, with the real client against a hub on loopback."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slmflow import sources
from slmflow.errors import SourceError
from tests.hub_machine import (
    CHECKPOINT,
    NAME,
    NOT_NEEDED,
    ONNX,
    ONNX_NAME,
    OTHER_ONNX,
    ROOT,
    WANTED_ONNX,
    Machine,
)
from tests.hub_server import TOKEN, Gated, Hub, Repository


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub() as hub:
        hub.repositories[NAME] = Repository(tmp_path / "hub" / "small")
        hub.repositories[NAME].commit({**CHECKPOINT, **NOT_NEEDED}, "main")
        hub.repositories[ONNX_NAME] = Repository(tmp_path / "hub" / "small-onnx")
        hub.repositories[ONNX_NAME].commit({**ONNX, **OTHER_ONNX}, "main")
        yield hub


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    home = tmp_path / "home"
    home.mkdir()
    return Machine(home, hub)


# What is fetched


def test_the_default_branch_is_recorded_as_the_commit_it_means(machine: Machine, hub: Hub) -> None:
    found = machine.find()
    assert found.revision == hub.repositories[NAME].refs["main"]
    assert found.source == NAME
    assert found.notes == [f"{NAME} at {found.revision[:12]}: 7 files, 0.00 GB"]


def test_only_the_files_of_a_checkpoint_are_fetched(machine: Machine, hub: Hub) -> None:
    assert machine.find().files == CHECKPOINT
    assert hub.fetched() == sorted(CHECKPOINT)


def test_of_an_onnx_repository_only_the_wanted_folder_is_fetched(
    machine: Machine, hub: Hub
) -> None:
    found = machine.find_onnx()
    assert hub.fetched() == sorted(ONNX)
    assert found.source == f"{ONNX_NAME}/{WANTED_ONNX}"
    assert found.revision == hub.repositories[ONNX_NAME].refs["main"]
    assert sorted(found.files) == sorted(
        name.removeprefix(f"{WANTED_ONNX}/") for name in ONNX if name.startswith(WANTED_ONNX)
    )


@pytest.mark.parametrize("kind", ["branch", "tag", "commit"])
def test_a_pinned_revision_gets_the_bytes_of_its_commit(
    machine: Machine, hub: Hub, kind: str
) -> None:
    repository = hub.repositories[NAME]
    weights = {"model.safetensors": b"of a side branch"}
    pinned = repository.commit({**CHECKPOINT, **weights}, "feature/longer", "v1.0")
    repository.commit({**CHECKPOINT, "model.safetensors": b"newer"}, "main")
    revision = {"branch": "feature/longer", "tag": "v1.0", "commit": pinned}[kind]
    found = machine.find(revision)
    assert found.revision == pinned
    assert found.files["model.safetensors"] == b"of a side branch"


def test_a_second_run_fetches_nothing_and_a_moved_branch_only_what_changed(
    machine: Machine, hub: Hub
) -> None:
    machine.find()
    hub.requests.clear()
    machine.find()
    assert hub.fetched() == []
    newer = hub.repositories[NAME].commit({**CHECKPOINT, "model.safetensors": b"newer"}, "main")
    found = machine.find()
    assert found.revision == newer
    assert hub.fetched() == ["model.safetensors"]
    assert found.files == {**CHECKPOINT, "model.safetensors": b"newer"}


# What the hub refuses


def test_a_missing_revision_is_named_and_what_to_type_is_told(machine: Machine) -> None:
    error = machine.find("v9").error
    assert f"{NAME} has no revision 'v9'" in error
    assert "model.revision=" in error


def test_a_missing_repository_says_where_was_looked(machine: Machine) -> None:
    error = machine.find(source="maker/smal").error
    assert "maker/smal is neither a folder" in error
    assert str(ROOT) in error
    assert "model.source" in error


def test_a_path_that_cannot_be_a_repository_is_refused_alike(machine: Machine, hub: Hub) -> None:
    assert "is neither a folder" in machine.find(source="models/of/mine").error
    assert hub.requests == []


@pytest.mark.parametrize("gated", [Gated.FILES, Gated.EVERYTHING])
def test_a_gated_repository_asks_for_its_licence_and_a_token(
    machine: Machine, hub: Hub, gated: Gated
) -> None:
    hub.repositories[NAME].gated = gated
    error = machine.find().error
    assert f"{NAME} is gated" in error
    assert "HF_TOKEN" in error
    assert machine.find(HF_TOKEN=TOKEN).files == CHECKPOINT


def test_a_repository_without_safetensors_is_refused(machine: Machine, hub: Hub) -> None:
    files = {**CHECKPOINT, "pytorch_model.bin": b"pickled"}
    del files["model.safetensors"]
    hub.repositories[NAME].commit(files, "main")
    assert f"{NAME} has no *.safetensors" in machine.find().error
    assert "pytorch_model.bin" not in hub.fetched()


def test_a_repository_with_none_of_the_files_is_refused(machine: Machine, hub: Hub) -> None:
    hub.repositories[NAME].commit({"model.gguf": b"another format"}, "main")
    assert "none of the files" in machine.find().error
    assert hub.fetched() == []


def test_a_missing_onnx_folder_is_refused(machine: Machine) -> None:
    error = machine.find_onnx("cpu/int8").error
    assert "none of the files cpu/int8/" in error
    assert "model.onnx.prebuilt" in error


# Connections that break


def test_a_transfer_that_ends_early_is_continued_and_the_result_is_whole(
    machine: Machine, hub: Hub
) -> None:
    kept = 10 * 1024 * 1024  # the client keeps what has arrived in steps of this size
    weights = os.urandom(kept + 2_000_000)
    hub.repositories[NAME].commit({**CHECKPOINT, "model.safetensors": weights}, "main")
    hub.drop("model.safetensors", at=kept + 1_000_000, times=1)
    assert machine.find().files["model.safetensors"] == weights
    assert f"bytes={kept}-" in [request.range for request in hub.requests]


@pytest.mark.parametrize("reset", [False, True], ids=["ended early", "reset"])
def test_a_download_that_breaks_off_goes_on_when_repeated(
    machine: Machine, hub: Hub, reset: bool
) -> None:
    hub.drop("model.safetensors", at=5000, reset=reset)
    first = machine.find()
    assert f"the download of {NAME} broke off" in first.error
    assert "repeat the command" in first.error
    arrived = {path.name for path in machine.home.rglob("snapshots/*/*")}
    assert "config.json" in arrived
    assert "model.safetensors" not in arrived

    hub.drops.clear()
    hub.requests.clear()
    assert machine.find().files == CHECKPOINT
    assert hub.fetched() == sorted(set(CHECKPOINT) - arrived)


def test_half_a_download_is_never_used(machine: Machine, hub: Hub) -> None:
    hub.drop("model.safetensors", at=5000, reset=True)
    machine.find()
    commit = hub.repositories[NAME].refs["main"]
    assert "nothing of" in machine.find(HF_HUB_OFFLINE="1").error  # no branch points there yet
    assert "lacks model.safetensors" in machine.find(commit, HF_HUB_OFFLINE="1").error
    hub.stop()
    assert "lacks model.safetensors" in machine.find(commit).error


def test_a_broken_update_leaves_the_earlier_download_usable(machine: Machine, hub: Hub) -> None:
    earlier = machine.find()
    hub.repositories[NAME].commit({**CHECKPOINT, "model.safetensors": b"newer" * 2000}, "main")
    hub.drop("model.safetensors", at=5000, reset=True)
    assert "broke off" in machine.find().error
    offline = machine.find(HF_HUB_OFFLINE="1")
    assert offline.revision == earlier.revision
    assert offline.files == CHECKPOINT


# Without the hub


def test_without_the_hub_a_complete_earlier_download_serves(machine: Machine, hub: Hub) -> None:
    earlier = machine.find()
    hub.stop()
    found = machine.find()
    assert (found.path, found.revision) == (earlier.path, earlier.revision)
    assert found.files == CHECKPOINT
    assert "the hub does not answer" in found.notes[0]
    assert earlier.revision[:12] in found.notes[0]


@pytest.mark.parametrize("endpoint", ["login", "overloaded"])
def test_an_answer_that_is_not_the_hubs_counts_as_none(
    machine: Machine, hub: Hub, endpoint: str
) -> None:
    instead = f"{hub.url}/{endpoint}"
    assert "the hub does not answer" in machine.find(HF_ENDPOINT=instead).error
    earlier = machine.find()
    assert machine.find(HF_ENDPOINT=instead).path == earlier.path


def test_without_the_hub_and_without_a_download_the_answer_comes_at_once(
    machine: Machine, hub: Hub
) -> None:
    hub.stop()
    started = time.monotonic()
    error = machine.find().error
    assert time.monotonic() - started < 10
    assert "the hub does not answer" in error
    assert f"nothing of {NAME} at revision main" in error
    assert "config.json, tokenizer_config.json, tokenizer.json, *.safetensors" in error
    assert f"hf download {NAME}" in error
    assert "model.source" in error


def test_offline_a_complete_earlier_download_serves_and_nobody_is_asked(
    machine: Machine, hub: Hub
) -> None:
    machine.find()
    machine.find_onnx()
    hub.requests.clear()
    assert machine.find(HF_HUB_OFFLINE="1").files == CHECKPOINT
    assert "genai_config.json" in machine.find_onnx(HF_HUB_OFFLINE="1").files
    assert hub.requests == []


def test_offline_without_a_download_the_answer_comes_at_once(machine: Machine, hub: Hub) -> None:
    started = time.monotonic()
    error = machine.find(HF_HUB_OFFLINE="1").error
    assert time.monotonic() - started < 10
    assert "HF_HUB_OFFLINE is set" in error
    assert f"nothing of {NAME} at revision main" in error
    assert hub.requests == []


def test_offline_a_download_serves_under_the_commit_that_was_recorded(machine: Machine) -> None:
    found = machine.find()
    assert machine.find(found.revision, HF_HUB_OFFLINE="1").files == CHECKPOINT
    assert "nothing of" in machine.find("v1.0", HF_HUB_OFFLINE="1").error


def test_offline_a_download_that_was_deleted_is_missed(machine: Machine) -> None:
    machine.find()
    shutil.rmtree(machine.home / ".cache" / "huggingface")
    assert "nothing of" in machine.find(HF_HUB_OFFLINE="1").error
    assert machine.find().files == CHECKPOINT


def test_a_file_that_lost_bytes_is_refused_and_removed_so_that_repeating_works(
    machine: Machine,
) -> None:
    weights = machine.find().path / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(5000)
    assert "model.safetensors has 5000 bytes, the hub says 10240" in machine.find().error
    assert machine.find().files == CHECKPOINT


# Folders


def silent(_: str) -> None:
    pass


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_relative_folder_is_looked_for_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = write(tmp_path / "project" / "models" / "mine", CHECKPOINT).parents[1]
    write(tmp_path / "elsewhere" / "models" / "mine", {"config.json": b"another"})
    monkeypatch.setattr(sources, "PROJECT_ROOT", project)
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = sources.find_checkpoint("models/mine", None, silent)
    assert found.path == project / "models" / "mine"
    assert found.source == "models/mine"


def test_the_revision_of_a_folder_follows_its_contents(tmp_path: Path) -> None:
    one = sources.find_checkpoint(str(write(tmp_path / "one", CHECKPOINT)), None, silent)
    two = sources.find_checkpoint(str(write(tmp_path / "two", CHECKPOINT)), None, silent)
    assert one.revision.startswith("sha256:")
    assert one.revision == two.revision
    (tmp_path / "two" / "config.json").write_bytes(b"{ }")
    changed = sources.find_checkpoint(str(tmp_path / "two"), None, silent)
    assert changed.revision != one.revision


def test_a_folder_of_the_home_may_be_written_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(write(tmp_path / "mine", CHECKPOINT).parent))
    assert sources.find_checkpoint("~/mine", None, silent).path == tmp_path / "mine"


def test_a_revision_is_refused_for_a_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", CHECKPOINT)
    with pytest.raises(SourceError, match=r"revision 'v1\.0' was given for the folder"):
        sources.find_checkpoint(str(folder), "v1.0", silent)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_folder_without_a_part_of_a_checkpoint_is_refused(tmp_path: Path, missing: str) -> None:
    folder = write(tmp_path, {**CHECKPOINT, **NOT_NEEDED})
    (folder / missing).unlink()
    named = missing.replace("model.", "*.")
    with pytest.raises(SourceError) as caught:
        sources.find_checkpoint(str(folder), None, silent)
    assert f"has no {named}" in str(caught.value)


@pytest.mark.parametrize("source", ["/no/such/folder", "./no/such", "../no/such", "~/no/such"])
def test_a_missing_folder_is_not_taken_for_a_repository(source: str) -> None:
    with pytest.raises(SourceError, match="there is no folder"):
        sources.find_checkpoint(source, None, silent)


def test_an_onnx_folder_is_found_in_a_folder(tmp_path: Path) -> None:
    folder = write(tmp_path, {**ONNX, **OTHER_ONNX})
    found = sources.find_onnx(str(folder), None, WANTED_ONNX, silent)
    assert found.path == folder / WANTED_ONNX
    other = sources.find_onnx(str(folder), None, "cuda/fp16", silent)
    assert found.revision != other.revision
    with pytest.raises(SourceError, match=r"has no cpu/int8/genai_config\.json"):
        sources.find_onnx(str(folder), None, "cpu/int8", silent)
