"""Weights are stored once, whatever is packaged from them, and are what they were when loaded."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from slmflow.answering import model_files
from slmflow.errors import SourceError
from slmflow.packaging.log_model import Packaging, log_onnx
from slmflow.served import digests, weights
from slmflow.served.weights import File, Manifest, WeightsError
from slmflow.sources import LocalModel
from slmflow.tracking import ending
from slmflow.weights import shared
from slmflow.weights.materialise import complete, materialise
from slmflow.weights.place import place
from slmflow.weights.take import take
from tests.conftest import ROOT, Workplace, make_workplace
from tests.tracking_server import tracking_server

BIG = 3 * digests.SMALL
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
ASK = f"""
import mlflow, sys
print(mlflow.pyfunc.load_model(sys.argv[1]).predict({QUESTION})[0]["choices"][0]["message"]["content"])
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def checkpoint(folder: Path, frozen: bool, content: bytes = b"w") -> LocalModel:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(content * BIG)
    (folder / "config.json").write_text("{}")
    return LocalModel(
        folder, "maker/small", "abc", ("config.json", "model.safetensors"), frozen=frozen
    )


def packaged(model: LocalModel, folder: Path, own: bool = False) -> Manifest:
    """As packaging does it, without MLflow's part."""
    manifest = take(model, "model")
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_bytes((model.path / "config.json").read_bytes())
    placed = place(manifest, folder.as_uri(), folder, own)
    placed.write(folder)
    return placed


def used(*folders: Path) -> int:
    """Bytes on disk, each inode once."""
    stats = [path.stat() for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sum({stat.st_ino: stat.st_blocks * 512 for stat in stats}.values())


def test_twenty_models_of_the_same_weights_take_the_room_of_one(
    tmp_path: Path, store: Path
) -> None:
    model = checkpoint(tmp_path / "w", frozen=False)
    packaged(model, tmp_path / "models" / "0")
    before = used(tmp_path)
    for number in range(1, 20):
        packaged(model, tmp_path / "models" / str(number))
    assert used(tmp_path) - before < 20 * 64_000
    last = tmp_path / "models" / "19"
    assert weights.ready(last, "model") == last / "model"


def test_frozen_weights_take_no_room_at_all(tmp_path: Path, store: Path) -> None:
    model = checkpoint(tmp_path / "w", frozen=True)
    before = used(tmp_path)
    packaged(model, tmp_path / "m")
    assert used(tmp_path) - before < 64_000


def test_what_is_written_over_a_folder_of_weights_does_not_reach_what_was_packaged_from_it(
    tmp_path: Path, store: Path
) -> None:
    model = checkpoint(tmp_path / "w", frozen=False)
    packaged(model, tmp_path / "m")
    checkpoint(tmp_path / "w", frozen=False, content=b"x")
    kept = weights.ready(tmp_path / "m", "model") / "model.safetensors"
    assert kept.read_bytes() == b"w" * BIG
    second = packaged(model, tmp_path / "n")
    assert second.files["model.safetensors"].sha256 != take_digest(tmp_path / "m")


def take_digest(model: Path) -> str:
    manifest = Manifest.read(model)
    assert manifest is not None
    return manifest.files["model.safetensors"].sha256


@pytest.mark.parametrize("own", [True, False])
def test_only_copies_of_its_own_share_nothing_with_the_store(
    own: bool, tmp_path: Path, store: Path, workplace: Workplace
) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "model.onnx.data").write_bytes(b"w" * BIG)
    model = LocalModel(folder, "maker/small", "abc", ("model.onnx.data",))
    mlflow.set_tracking_uri(workplace.tracking_uri)
    settings = {"task": "chat", "model": "small"}
    with mlflow.start_run(
        experiment_id=workplace.client.get_experiment_by_name("tests").experiment_id
    ):
        logged = log_onnx(
            Packaging(model, settings, "?", "small", own), "chat", "onnxruntime-genai"
        )
    place = mlflow.get_logged_model(logged.uri.removeprefix("models:/")).artifact_location
    file = Path(place.removeprefix("file://")) / "artifacts" / "model" / "model.onnx.data"
    assert file.stat().st_size == BIG
    assert (file.stat().st_nlink == 1) is own


def test_a_changed_byte_is_refused_when_the_model_is_loaded(tmp_path: Path, store: Path) -> None:
    packaged(checkpoint(tmp_path / "w", frozen=False), tmp_path / "m")
    weights.ready(tmp_path / "m", "model")
    file = tmp_path / "m" / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[BIG // 2] ^= 1
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors has other content"):
        weights.ready(tmp_path / "m", "model")
    file.write_bytes(content[:-1])
    with pytest.raises(WeightsError, match=rf"model\.safetensors has {BIG - 1} bytes, not {BIG}"):
        weights.ready(tmp_path / "m", "model")


def test_the_manifest_itself_is_the_one_that_mlmodel_declares(tmp_path: Path, store: Path) -> None:
    model = tmp_path / "m"
    digest = packaged(checkpoint(tmp_path / "w", frozen=False), model).digest
    (model / "MLmodel").write_text(json.dumps({"metadata": {weights.DECLARED: digest}}))
    assert weights.ready(model, "model") == model / "model"
    other = packaged(checkpoint(tmp_path / "v", frozen=False, content=b"v"), tmp_path / "n")
    other.write(model)
    with pytest.raises(WeightsError, match=r"weights\.json names other weights"):
        weights.ready(model, "model")
    (model / weights.MANIFEST).unlink()
    with pytest.raises(WeightsError, match=r"weights\.json is missing"):
        weights.ready(model, "model")
    (model / "MLmodel").write_text("metadata:\n")  # of a slmflow that had no manifests
    assert weights.ready(model, "model") == model / "model"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "MLmodel does not describe a model"),
        (b"[a: b", "MLmodel does not describe a model"),
        (b"\xff\xfe", "MLmodel does not describe a model"),
        (b"metadata: x", "MLmodel does not describe a model"),
        (b"metadata: {slmflow.weights: abc}", "weights.json is missing, and MLmodel beside it"),
    ],
)
def test_a_damaged_folder_is_told_in_one_message(
    workplace: Workplace, tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "MLmodel").write_bytes(content)
    result = workplace.script("evaluate", f"models=[{tmp_path / 'm'}]")
    assert result.returncode == 1
    assert f"error: {tmp_path / 'm'}" in result.stderr and told in result.stderr
    assert "Traceback" not in result.stderr


def test_two_files_of_one_content_are_packaged(tmp_path: Path, store: Path) -> None:
    """Frozen or not: they are taken at once, and neither is written."""
    for frozen in (True, False):
        folder = tmp_path / f"frozen {frozen}"
        folder.mkdir()
        names = tuple(f"{letter}.safetensors" for letter in "abcdef")
        for name in names:
            (folder / name).write_bytes(b"same" * BIG)
        take(LocalModel(folder, "maker/small", "abc", names, frozen=frozen), "model")
        assert {(folder / name).stat().st_size for name in names} == {4 * BIG}
        (place,) = [path for path in store.rglob("*") if path.is_file()]
        assert place.stat().st_size == 4 * BIG
        place.unlink()


def test_weights_that_were_written_after_they_were_read_are_refused(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path / "w", frozen=False)

    def read_then_train(path: Path) -> str:
        digest = digests.file_sha256(path)
        if path.name == "model.safetensors":
            path.write_bytes(b"x" * BIG)
        return digest

    monkeypatch.setattr("slmflow.weights.take.file_sha256", read_then_train)
    with pytest.raises(SourceError, match="is being written"):
        take(model, "model")
    assert not [path for path in store.rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", ["/etc/passwd", "../out", "a/../../out"])
@pytest.mark.parametrize("key", ["folder", "files", "copies"])
def test_a_manifest_names_no_path_outside_of_its_model(key: str, path: str) -> None:
    told = Manifest("here", "1", {"a": File(1, "0" * 64)}, "model").as_json()
    told[key] = path if key == "folder" else {path: "a" if key == "copies" else told["files"]["a"]}
    with pytest.raises(WeightsError, match="no path in a model"):
        Manifest.from_json(told)


def test_a_manifest_of_a_later_slmflow_says_so() -> None:
    with pytest.raises(WeightsError, match="update slmflow"):
        Manifest.from_json({"format": 2, "contents": {}})


def test_a_model_without_a_small_file_names_it(tmp_path: Path, store: Path) -> None:
    packaged(checkpoint(tmp_path / "w", frozen=False), tmp_path / "m")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "m" / "model" / name).unlink()
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        weights.ready(tmp_path / "m", "model")


def test_a_copy_that_the_kernel_ends_early_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"a" * BIG)
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0, raising=False)
    weights.copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"a" * BIG


@pytest.mark.parametrize("code", ["EPERM", "ETXTBSY", "EIO", "ENOSYS"])
def test_a_copy_that_the_kernel_refuses_is_made_by_hand(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"a" * BIG)
    monkeypatch.setattr(os, "copy_file_range", failing(getattr(errno, code)), raising=False)
    weights.copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"a" * BIG


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"a" * BIG)
    monkeypatch.setattr(os, "copy_file_range", failing(errno.ENOSPC), raising=False)
    with pytest.raises(OSError, match="No space left"):
        weights.copy(tmp_path / "a", tmp_path / "b")


def failing(code: int) -> Callable[..., int]:
    def copy_file_range(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return copy_file_range


def test_a_damaged_store_is_mended_by_packaging_again(tmp_path: Path, store: Path) -> None:
    model = checkpoint(tmp_path / "w", frozen=False)
    about = take(model, "model").files["model.safetensors"]
    place = weights.kept(about.sha256)
    place.chmod(0o644)
    place.write_bytes(b"!" * BIG)
    packaged(model, tmp_path / "m")
    assert weights.ready(tmp_path / "m", "model")


FILES = st.dictionaries(
    st.text("abc", min_size=1, max_size=4),
    st.builds(File, st.integers(0, 2**40), st.text("0123456789abcdef", min_size=64, max_size=64)),
    min_size=1,
    max_size=4,
)


@given(FILES, st.randoms())
def test_the_digest_of_a_manifest_is_that_of_its_files_alone(files, random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(files.items())
    random.shuffle(shuffled)
    one = Manifest("here", "1", files, "model")
    other = Manifest("there", "2", dict(shuffled), "artifacts/model", shared="models:/m-1")
    assert one.digest == other.digest
    assert Manifest.from_json(json.loads(json.dumps(other.as_json()))) == other
    for name, about in files.items():
        flipped = about.sha256[:-1] + ("0" if about.sha256[-1] != "0" else "1")
        changed = {**files, name: File(about.size, flipped)}
        assert Manifest("here", "1", changed).digest != one.digest


def test_weights_that_are_written_while_they_are_packaged_are_refused(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path / "w", frozen=False)
    copy = weights.copy

    def copy_beside_a_writer(file: Path, target: Path) -> None:
        copy(file, target)
        with file.open("ab") as written:
            written.write(b"more")

    monkeypatch.setattr(weights, "copy", copy_beside_a_writer)
    with pytest.raises(SourceError, match="is being written"):
        take(model, "model")
    assert not [path for path in store.rglob("*") if path.is_file()]


@dataclass(frozen=True)
class Remote:
    """A tracking server that keeps artifacts elsewhere, with two models of the same weights."""

    workplace: Workplace
    client: MlflowClient


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[Remote]:
    folder = tmp_path_factory.mktemp("remote")
    behind = make_workplace(folder, shared_cache)
    with tracking_server(behind, folder) as address:
        environment = {**behind.environment, "MLFLOW_TRACKING_URI": address}
        environment["MLFLOW_EXPERIMENT_NAME"] = "through the server"
        workplace = Workplace(folder, environment)
        for temperature in ("0.0", "0.5"):
            result = workplace.script("custom_onnx", f"search.temperature={temperature}")
            assert result.returncode == 0, result.stderr
        yield Remote(workplace, MlflowClient(address))


def ask(workplace: Workplace, uri: str, machine: Path) -> "subprocess.CompletedProcess[str]":
    """As on a machine that has neither the weights nor this project."""
    environment = {**workplace.environment, "SLMFLOW_CACHE": str(machine), "HOME": str(machine)}
    elsewhere = Workplace(workplace.folder, environment)
    return elsewhere.run([sys.executable, "-c", ASK, uri], cwd=machine)


def files_of(remote: Remote, uri: str) -> dict[str, int]:
    """What the server has of a model: paths and sizes."""
    model = remote.client.get_logged_model(uri.removeprefix("models:/"))
    found: dict[str, int] = {}
    folders = [""]
    while folders:
        for entry in remote.client.list_logged_model_artifacts(model.model_id, folders.pop()):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                found[entry.path] = entry.file_size
    return found


def version(remote: Remote, number: int) -> str:
    return str(remote.client.get_model_version("phi3-demo", str(number)).source)


def test_behind_a_server_weights_are_uploaded_once_and_both_runs_name_them(
    remote: Remote,
) -> None:
    first, second = (files_of(remote, version(remote, number)) for number in (1, 2))
    assert "artifacts/model/model.onnx.data" not in first
    assert sum(second.values()) < 1_000_000
    experiment = remote.client.get_experiment_by_name("through the server")
    models = remote.client.search_logged_models([experiment.experiment_id])
    (shared,) = [model for model in models if model.name == "weights"]
    assert files_of(remote, shared.model_uri)["model.onnx.data"] > 1_000_000
    found = remote.client.search_runs([experiment.experiment_id])
    runs = [remote.client.get_run(run.info.run_id) for run in found]  # a search tells no inputs
    assert [[one.model_id for one in run.inputs.model_inputs] for run in runs] == (
        [[shared.model_id]] * 2
    )


def test_another_machine_fetches_the_weights_by_their_content(
    remote: Remote, tmp_path: Path
) -> None:
    answered = ask(remote.workplace, "models:/phi3-demo/1", tmp_path)
    assert answered.stdout.strip() == "Madrid", answered.stderr
    kept = [path for path in (tmp_path / "weights").rglob("*") if path.is_file()]
    damaged = max(kept, key=lambda path: path.stat().st_size)
    damaged.chmod(0o644)
    damaged.write_bytes(b"!" * damaged.stat().st_size)
    # One of the links was written through: what is there is not believed, but fetched again.
    answered = ask(remote.workplace, "models:/phi3-demo/2", tmp_path)
    assert answered.stdout.strip() == "Madrid", answered.stderr
    assert damaged.read_bytes()[:1] != b"!"


def digest_of(remote: Remote, number: int, folder: Path) -> str:
    mlflow.set_tracking_uri(remote.workplace.tracking_uri)
    model = Path(mlflow.artifacts.download_artifacts(version(remote, number), dst_path=str(folder)))
    return model_files.digest(model, model_files.about(model))


def test_a_model_that_is_materialised_is_whole_for_any_tool(remote: Remote, tmp_path: Path) -> None:
    environment = {**remote.workplace.environment, "SLMFLOW_CACHE": str(tmp_path / "cache")}
    elsewhere = Workplace(tmp_path, environment)  # that did not package it
    before = digest_of(remote, 2, tmp_path / "before")
    result = elsewhere.script("materialise", "model_uri=models:/phi3-demo/2")
    assert result.returncode == 0, result.stderr
    assert digest_of(remote, 2, tmp_path / "after") == before
    assert "2 added" in result.stdout
    uri = version(remote, 2)
    files = files_of(remote, uri)
    assert files["artifacts/model/model.onnx.data"] > 1_000_000
    mlflow.set_tracking_uri(remote.workplace.tracking_uri)
    whole = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "whole")))
    manifest = Manifest.read(whole)
    assert manifest is not None
    assert manifest.shared is None
    weights.verify(whole / manifest.folder, manifest.files, again=True)
    again = remote.workplace.script("materialise", "model_uri=models:/phi3-demo/2")
    assert "it was whole already" in again.stdout


def test_a_copy_of_a_model_has_every_file(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path / "cache"))
    mlflow.set_tracking_uri(remote.workplace.tracking_uri)
    uri = version(remote, 1)
    folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "lacking")))
    complete(folder, tmp_path / "whole")
    manifest = Manifest.read(tmp_path / "whole")
    assert manifest is not None
    assert manifest.shared is None
    assert (tmp_path / "whole" / "artifacts" / "model" / "model.onnx.data").is_file()


def test_an_upload_that_broke_off_is_not_taken_for_weights(remote: Remote, tmp_path: Path) -> None:
    experiment = remote.client.get_experiment_by_name("through the server").experiment_id
    models = remote.client.search_logged_models([experiment])
    (whole,) = [model for model in models if model.name == "weights"]
    mlflow.set_tracking_uri(remote.workplace.tracking_uri)
    folder = Path(mlflow.artifacts.download_artifacts(version(remote, 1), dst_path=str(tmp_path)))
    manifest = Manifest.read(folder)
    assert manifest is not None
    found = shared.find(remote.client, manifest, experiment)
    assert found is not None
    assert found.model_id == whole.model_id
    other = replace(manifest, files={"model.onnx.data": File(10**6, "0" * 64)})
    tag = shared.large_digest(other)
    remote.client.create_logged_model(experiment, name="weights", tags={shared.TAG: tag})
    assert shared.find(remote.client, other, experiment) is None
    lost = remote.client.create_logged_model(experiment, name="weights", tags={shared.TAG: tag})
    remote.client.finalize_logged_model(lost.model_id, "READY")  # whose files somebody deleted
    assert shared.find(remote.client, other, experiment) is None


def begun(remote: Remote, experiment: str) -> Manifest:
    """Of weights that are in this machine's store, and that no server has."""
    content = os.urandom(BIG)
    folder = weights.cache_root() / "begun"
    folder.mkdir(parents=True)
    (folder / "model.onnx.data").write_bytes(content)
    return take(LocalModel(folder, "maker/begun", "abc", ("model.onnx.data",)), "model")


@pytest.fixture
def uploading(remote: Remote, store: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    mlflow.set_tracking_uri(remote.workplace.tracking_uri)
    experiment = remote.client.get_experiment_by_name("through the server").experiment_id
    mlflow.set_experiment(experiment_id=experiment)
    return begun(remote, experiment)


def weights_of(remote: Remote, manifest: Manifest) -> list[LoggedModel]:
    experiment = remote.client.get_experiment_by_name("through the server").experiment_id
    tagged = f"tags.`{shared.TAG}` = '{shared.large_digest(manifest)}'"
    return list(remote.client.search_logged_models([experiment], tagged))


def test_an_upload_that_fails_tells_its_own_error_and_leaves_nothing_pending(
    remote: Remote, uploading: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the server is away by then."""

    def fail(*_: object, **__: object) -> None:
        monkeypatch.setattr(MlflowClient, "finalize_logged_model", away)
        raise OSError("the line is cut")

    def away(*_: object, **__: object) -> None:
        raise MlflowException("the server is away")

    finalize = MlflowClient.finalize_logged_model
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", fail)
    with pytest.raises(OSError, match="the line is cut"), mlflow.start_run() as run:
        shared.ensure(uploading)
    (left,) = weights_of(remote, uploading)
    assert left.status == LoggedModelStatus.PENDING
    monkeypatch.setattr(MlflowClient, "finalize_logged_model", finalize)
    ending._abandon_models(run)  # as the run says when the server is back
    (left,) = weights_of(remote, uploading)
    assert left.status == LoggedModelStatus.FAILED


def test_two_machines_that_upload_at_once_leave_one(
    remote: Remote, uploading: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is of one machine: the other one ends its upload while this one's goes on."""
    log_artifacts = MlflowClient.log_model_artifacts
    others: list[str] = []

    def slowly(client: MlflowClient, model_id: str, folder: str) -> None:
        monkeypatch.setattr(MlflowClient, "log_model_artifacts", log_artifacts)
        log_artifacts(client, model_id, folder)
        run = mlflow.active_run()
        assert run is not None
        others.append(shared._upload(client, uploading, run).model_uri)

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", slowly)
    with mlflow.start_run():
        uri, _ = shared.ensure(uploading)
    assert [uri] == others
    assert [model.model_uri for model in weights_of(remote, uploading)] == [uri]


def test_other_bytes_on_the_server_are_refused_with_what_mends_it(
    remote: Remote, uploading: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow.start_run():
        uri, _ = shared.ensure(uploading)
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "model.onnx.data").write_bytes(b"!" * BIG)
    remote.client.log_model_artifacts(uri.removeprefix("models:/"), str(tmp_path / "wrong"))
    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path / "another machine"))
    with pytest.raises(WeightsError, match=r"other bytes as model.*\./run materialise"):
        weights.fetch(replace(uploading, shared=uri))
    assert not weights.kept(uploading.files["model.onnx.data"].sha256).exists()


def test_what_is_whole_is_not_fetched_to_find_that_out(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(remote.workplace.tracking_uri)
    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    materialise("models:/phi3-demo/2")
    fetched: list[str] = []
    repository = type(get_artifact_repository(version(remote, 2)).repo)
    download = repository._download_file

    def counted(self: ArtifactRepository, remote_file_path: str, local_path: str) -> None:
        fetched.append(remote_file_path)
        download(self, remote_file_path, local_path)

    monkeypatch.setattr(repository, "_download_file", counted)
    assert materialise("models:/phi3-demo/2").added == 0
    assert sorted(fetched) == ["MLmodel", "weights.json"]


def test_where_the_store_is_on_another_disk_the_weights_lie_there_once(
    tmp_path: Path, store: Path
) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has one file system")
    code = f"""
import mlflow
from pathlib import Path
from tests.test_weights import checkpoint, packaged
place = Path({str(other)!r}, "{tmp_path.name}")
experiment = mlflow.create_experiment("other disk", place.as_uri())
model = checkpoint(Path({str(tmp_path / "w")!r}), frozen=False)
for name in "ab":
    with mlflow.start_run(experiment_id=experiment):
        assert packaged(model, place / name).shared is None
"""
    place = make_workplace(tmp_path, tmp_path / "cache")
    environment = {**place.environment, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    result = Workplace(tmp_path, environment).run([sys.executable, "-c", code])
    try:
        assert result.returncode == 0, result.stderr
        files = list((other / tmp_path.name).rglob("model.safetensors"))
        assert len(files) == 3
        assert len({file.stat().st_ino for file in files}) == 1
    finally:
        subprocess.run(["rm", "-rf", str(other / tmp_path.name)], check=True)
