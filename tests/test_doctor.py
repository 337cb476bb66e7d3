"""Whether this machine can do it: each failure produced for real, its words, what mends it."""

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _get_default_tracking_uri
from moto.server import ThreadedMotoServer
from sqlalchemy import create_engine
from sqlalchemy.exc import ArgumentError

from slmflow import machine
from slmflow.config.doctor import Kind
from slmflow.config.schema import (
    DTYPES,
    PRECISIONS,
    Device,
    Dtype,
    Hardware,
    Model,
    OnnxSource,
    Prebuilt,
    Precision,
    Provider,
    ServeConfig,
    Target,
)
from slmflow.doctor import artifacts, database, disk, examine, folder, hub, memory, server, stores
from slmflow.doctor.disk import Disk, Need
from slmflow.doctor.finding import Finding, Level
from slmflow.doctor.hardware import check_cores, check_hardware, check_wheels
from slmflow.doctor.memory import Load
from slmflow.doctor.needs import (
    Shape,
    built_onnx_bytes,
    kv_cache_bytes,
    kv_value_bytes,
    read_shape,
    transformers_bytes,
)
from slmflow.doctor.precheck import CHEAP, precheck
from slmflow.doctor.subject import Subject, at_once, begin
from slmflow.doctor.surroundings import check_code, check_telemetry, check_weights
from slmflow.doctor.versions import check_packages
from slmflow.machine import Memory
from slmflow.served.search import SearchOptions
from slmflow.tracking.experiment import EXPERIMENT
from tests.conftest import ROOT, Workplace, _empty_store, make_workplace
from tests.hub_server import TOKEN, Gated, Hub, Repository
from tests.tracking_server import tracking_server

GB = 1_000_000_000
SECRET = "canary-4711-of-a-password"
CPU: dict[str, Any] = {"target": Target.cpu, "device": Device.cpu, "provider": Provider.cpu}
DEMO = Model(name="phi3-demo", source="demo/phi3_demo")
PHI3 = Shape(32, 32, 96, 4096, 3072, 32064, 2)
PHI3_STORED = 7_642_159_104  # bytes of its safetensors


def hardware(**changed: Any) -> Hardware:
    return Hardware(**{**CPU, "dtype": Dtype.float32, "precision": Precision.int4, **changed})


def subject(model: Model = DEMO, *kinds: Kind, **changed: Any) -> Subject:
    return at_once(model, hardware(**changed), None, kinds or tuple(Kind), 4096)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "HF_", "AWS_", "SLMFLOW_", "ORT_")):
            monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A folder that not even root may write to."""
    if os.geteuid() == 0:
        return Path("/proc/self")
    (tmp_path / "locked").mkdir(mode=0o500)
    return tmp_path / "locked"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


# versions


def test_the_environment_of_the_tests_is_as_pinned() -> None:
    assert check_packages().level is Level.ok


def test_a_package_that_is_missing_or_does_not_fit_is_told_by_name(tmp_path: Path) -> None:
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("-c constraints.txt\n# why\nmlflow>=99\nno-such-package>=1  # why\nrich\n")
    finding = check_packages(wanted, ROOT / "constraints.txt")
    assert finding.level is Level.failure
    assert "no-such-package is missing" in finding.found
    assert re.search(r"mlflow is [\d.]+, not >=99", finding.found)
    assert finding.mend.endswith(f"-m pip install -r {wanted}")


def test_a_version_outside_of_the_ranges_is_a_failure(tmp_path: Path) -> None:
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("rich>=99\n")
    assert check_packages(wanted, ROOT / "constraints.txt").level is Level.failure


def test_a_version_that_is_not_the_pinned_one_is_a_warning(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("alembic==0.1\nhydra-core==1.3.8\nrich==0.1 ; sys_platform == 'none'\n")
    finding = check_packages(constraints=pins)
    assert finding.level is Level.warning
    assert re.fullmatch(r"alembic is [\d.]+, not 0.1", finding.found)


# hardware


def test_a_target_that_is_not_here_is_told_with_its_reason() -> None:
    absent = next(one for one in (Target.mps, Target.directml) if machine.missing(one))
    finding = check_hardware(subject(target=absent))
    assert finding.level is Level.failure
    assert finding.found == f"hardware={absent} is not on this machine: {machine.missing(absent)}"
    assert finding.mend.startswith("hardware=cpu")


@pytest.mark.skipif(machine.missing("cuda") is None, reason="there is a GPU here")
def test_why_no_accelerator_is_taken_is_told() -> None:
    assert "no cuda: no NVIDIA driver" in check_hardware(subject()).found


def test_the_wrong_build_of_the_onnx_runtime_is_told_with_the_exchange() -> None:
    finding = check_wheels(subject(DEMO, Kind.custom_onnx, package="onnxruntime-genai-cuda"))
    assert finding.level is Level.failure
    assert re.search(
        r"pip uninstall -y onnxruntime-genai && \S+ -m pip install onnxruntime-genai-cuda==\d",
        finding.mend,
    )
    assert check_wheels(subject()).level is Level.ok


def test_torch_for_cpus_does_not_do_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmflow.doctor.hardware.torch_cuda", lambda: None)
    asked = subject(DEMO, Kind.transformers_pipeline, device=Device.cuda, dtype=Dtype.bfloat16)
    finding = check_wheels(asked)
    assert finding.level is Level.failure
    assert "build for CPUs" in finding.found
    assert "torch==" in finding.mend


def test_more_threads_than_cores_are_told() -> None:
    finding = check_cores(subject(threads=100_000))
    assert (finding.level, finding.mend) == (Level.warning, "hardware.threads=auto")


# needs


def test_the_builders_own_choice_of_types_is_followed() -> None:
    from onnxruntime_genai.models.quantization.quant_config import default_io_dtype

    size = {"fp32": 4, "fp16": 2, "bf16": 2}
    for provider, precisions in PRECISIONS.items():
        for precision in precisions:
            builders = default_io_dtype(precision.value, provider.value, {})
            assert kv_value_bytes(precision, provider) == size[builders], (precision, provider)


def test_figures_of_phi_3_mini_are_those_that_are_published() -> None:
    assert kv_cache_bytes(PHI3, 4096, 2) == 1_610_612_736  # 384 KiB a token
    assert transformers_bytes(PHI3_STORED, PHI3, Dtype.bfloat16) == PHI3_STORED
    int4 = built_onnx_bytes(PHI3_STORED, PHI3, Precision.int4, Provider.cpu, 32)
    assert int4 == pytest.approx(2_722_861_056, rel=0.03)  # cpu-int4-rtn-block-32


@given(length=st.integers(1, 10**6), bytes_of=st.sampled_from([1, 2, 4]))
def test_the_cache_grows_with_each_token_alike(length: int, bytes_of: int) -> None:
    one = kv_cache_bytes(PHI3, 1, bytes_of)
    assert kv_cache_bytes(PHI3, length, bytes_of) == length * one


@given(st.sampled_from(sorted(DTYPES, key=str)), st.integers(1, 10**11))
def test_a_smaller_type_never_needs_more(device: Any, stored: int) -> None:
    needed = [
        built_onnx_bytes(stored, PHI3, precision, Provider.cpu, 32)
        for precision in (Precision.int4, Precision.int8, Precision.fp32)
    ]
    assert needed == sorted(needed)
    whole = transformers_bytes(stored, PHI3, Dtype.float32)
    assert all(transformers_bytes(stored, PHI3, dtype) <= whole for dtype in DTYPES[device])


@pytest.mark.parametrize(
    "config",
    [{}, {"num_attention_heads": 0, "hidden_size": 8}, {"text_config": None}, {"model": {}}],
)
def test_a_config_that_names_no_shape_is_unknown(config: dict[str, Any]) -> None:
    assert read_shape(config) is None


def test_the_shape_is_read_from_either_runtimes_config() -> None:
    about = json.loads((ROOT / "demo/phi3_demo/config.json").read_text())
    decoder = {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_size": 32}
    genai = {"decoder": {**decoder, "hidden_size": 128}, "context_length": 1024, "vocab_size": 2048}
    assert read_shape(about) == read_shape({"model": genai}) == Shape(2, 2, 32, 1024, 128, 2048, 4)


# disk and memory


@given(
    free=st.integers(0, 10**12),
    sure=st.integers(0, 10**12),
    unsure=st.integers(0, 10**12),
)
def test_only_what_is_sure_to_be_written_can_fail_for_want_of_space(
    free: int, sure: int, unsure: int
) -> None:
    place = Disk(Path("/"), free)
    needs = [
        (Need("downloads", Path("/a"), sure, True, "HF_HOME"), place),
        (Need("packaged", Path("/b"), unsure, False, "MLFLOW_TRACKING_URI"), place),
    ]
    level = disk.judge(needs).level
    assert (level is Level.failure) == (sure > free)
    assert (level is Level.ok) == (sure + unsure <= free and free >= disk.LITTLE)


def test_a_full_disk_is_told_with_what_moves_to_another() -> None:
    need = Need("downloads", Path("/home"), 8 * GB, True, "HF_HOME")
    finding = disk.judge([(need, Disk(Path("/home"), 2 * GB))])
    assert finding.found == "2.0 GB free on /home, too little for downloads 8.0 GB"
    assert finding.mend.startswith("export HF_HOME=")


def test_disk_is_counted_for_what_packaging_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of one's own is copied once; what shares a disk with the store is linked."""
    other = Path("/dev/shm")
    if other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has one file system")
    checkpoint = sum(
        path.stat().st_size for path in (ROOT / "demo/phi3_demo").iterdir() if path.suffix != ".md"
    )

    def needed(artifacts: Path, own: bool = False) -> dict[str, int]:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", artifacts.as_uri())
        kind = Kind.transformers_pipeline
        found = disk.needs(at_once(DEMO, hardware(), None, (kind,), 4096, own)) or []
        return {need.purpose: need.bytes for need in found if need.bytes}

    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path / "cache"))
    once = {"weights kept once": checkpoint}
    assert needed(tmp_path / "runs") == once
    assert needed(other / "runs") == once | {"packaged": checkpoint}
    copied = {"temporary copy": checkpoint, "packaged": checkpoint}
    assert needed(tmp_path / "runs", own=True) == once | copied


@given(sure=st.integers(0, 10**12), rest=st.integers(0, 10**12), has=st.integers(0, 10**12))
def test_only_what_never_fits_can_fail_for_want_of_memory(sure: int, rest: int, has: int) -> None:
    level = memory.judge([Load("ONNX", sure, rest, "", "model=...")], Memory(has, has), "").level
    assert (level is Level.failure) == (sure > has)
    assert (level is Level.ok) == (sure + rest <= has)


def test_memory_counts_weights_and_cache_for_the_configured_length() -> None:
    loads = memory.needs(subject(DEMO, Kind.transformers_pipeline))
    assert loads is not None
    stored = (ROOT / "demo/phi3_demo/model.safetensors").stat().st_size
    assert loads[0].sure == stored + 2 * 2 * 2 * 32 * 1024 * 4  # the context is shorter than asked


def test_every_beam_has_a_cache_of_its_own_and_can_only_warn() -> None:
    search = SearchOptions(num_beams=4)
    (one,) = memory.needs(subject(DEMO, Kind.transformers_pipeline)) or ()
    kinds = (Kind.transformers_pipeline,)
    (four,) = memory.needs(at_once(DEMO, hardware(), search, kinds, 4096)) or ()
    assert four.sure == one.sure
    assert four.rest - one.rest == 3 * 2 * 2 * 2 * 32 * 1024 * 4
    assert four.told.endswith("KV cache 4.2 MB for 4 beams")


def test_a_builder_that_may_run_is_counted_until_its_model_is_there() -> None:
    loads = memory.needs(subject(DEMO, Kind.custom_onnx))
    assert loads is not None
    assert [load.kind for load in loads] == ["ONNX", "building ONNX"]


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/job/step\n")
    step, job = tmp_path / "job/step", tmp_path / "job"
    step.mkdir(parents=True)
    for place, most, now in ((step, "max", "70"), (job, "1000", "300")):
        (place / "memory.max").write_text(most)
        (place / "memory.current").write_text(now)
        (place / "memory.stat").write_text("anon 50\ninactive_file 200\n")
    assert machine.memory(tmp_path, own) == Memory(1000, 900)
    assert machine.memory(tmp_path / "none", own).total > 1000


# folders and databases


def test_a_folder_that_cannot_be_written_to_is_refused(unwritable: Path, tmp_path: Path) -> None:
    assert "cannot be written to" in (folder.refusal(unwritable / "below") or "")
    (tmp_path / "file").write_text("")
    assert "is a file" in (folder.refusal(tmp_path / "file" / "below") or "")
    before = sorted(tmp_path.rglob("*"))
    assert folder.refusal(tmp_path / "a" / "b") is None
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "mlflow.db"
    shutil.copyfile(_empty_store(), file)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    return file


def change(store: Path, statement: str) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute(statement)
    connection.close()


def look(store: Path) -> Finding:
    return database.check_sqlite("tracking", f"sqlite:///{store}")


def test_a_store_is_written_to_and_left_as_it_was(store: Path) -> None:
    before = store.read_bytes()
    finding = look(store)
    assert (finding.level, finding.found) == (Level.ok, f"{store}: written to")
    assert store.read_bytes() == before
    assert [file.name for file in store.parent.glob("mlflow.db*")] == ["mlflow.db"]


def test_a_relative_store_is_told_with_the_command_that_mends_it(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.parent)
    for uri in ("sqlite:///mlflow.db", "sqlite:///file:mlflow.db?mode=rw&uri=true"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        finding = database.check_sqlite("tracking", uri)
        assert finding.level is Level.warning
        assert finding.found.startswith(f"{store}: written to; the path is relative")
        assert finding.mend == f"export MLFLOW_TRACKING_URI=sqlite:///{store}"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    default = database.check_sqlite("tracking", "sqlite:///mlflow.db")
    assert default.level is Level.ok, "MLflow's own default is what most people want"


@pytest.mark.parametrize("uri", ["sqlite:x.db", "sqlite://x.db", "sqlite:/x.db"])
def test_an_address_that_sqlalchemy_cannot_read_is_told_with_the_one_that_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError):
        create_engine(uri).connect()  # so the test is one
    finding = database.check_sqlite("tracking", uri)
    meant = "/x.db" if uri == "sqlite:/x.db" else f"{tmp_path}/x.db"
    assert finding.level is Level.failure
    assert "three slashes" in finding.found
    assert finding.mend == f"export MLFLOW_TRACKING_URI=sqlite:///{meant}"


def test_what_is_written_to_a_database_is_said_in_words_that_all_of_them_know() -> None:
    assert not re.search(
        r"\bLIMIT\b|\bTOP\b", database.WRITE
    )  # T-SQL lacks one, the rest the other


def test_a_store_that_can_only_be_read_is_refused(store: Path) -> None:
    uri = f"sqlite:///file:{store}?mode=ro&uri=true"
    finding = database.check_sqlite("tracking", uri)
    assert finding.level is Level.failure
    assert "readonly" in finding.found
    assert finding.mend == f"chmod u+w {store}"


def test_a_store_of_another_mlflow_is_told(store: Path) -> None:
    change(store, "UPDATE alembic_version SET version_num = '90e64c465722'")
    older = look(store)
    assert older.mend.startswith(f"mlflow db upgrade sqlite:///{store}")
    change(store, "UPDATE alembic_version SET version_num = 'of_tomorrow'")
    assert "newer MLflow" in look(store).found


def test_an_experiment_that_was_deleted_is_told(store: Path) -> None:
    client = MlflowClient(f"sqlite:///{store}")
    deleted = client.create_experiment(EXPERIMENT)
    client.delete_experiment(deleted)
    assert look(store).mend == f"mlflow experiments restore -x {deleted}"


def test_a_store_that_another_process_writes_is_a_warning(store: Path) -> None:
    writing = sqlite3.connect(store)
    writing.execute("BEGIN IMMEDIATE")
    try:
        assert look(store).level is Level.warning
    finally:
        writing.close()


def test_what_is_no_store_is_refused(tmp_path: Path, unwritable: Path) -> None:
    (tmp_path / "text").write_text("no database" * 1000)
    assert "not a database" in look(tmp_path / "text").found
    assert look(unwritable / "mlflow.db").level is Level.failure
    assert look(tmp_path / "new.db").level is Level.ok
    assert not (tmp_path / "new.db").exists()


def test_a_database_that_is_not_there_is_told_without_its_password() -> None:
    uri = f"postgresql+psycopg2://me:{SECRET}@127.0.0.1:{closed_port()}/runs"
    finding = database.check_database("tracking", uri)
    assert finding.level is Level.failure
    assert "refused" in finding.found
    assert SECRET not in str(finding)


def test_a_database_without_its_driver_names_what_to_type() -> None:
    finding = database.check_database("tracking", "mysql://me@127.0.0.1/runs")
    assert finding.found == "its driver MySQLdb is not installed"
    assert finding.mend.endswith("pip install mysqlclient")


def test_places_are_those_of_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert stores.tracking_uri() == _get_default_tracking_uri() == "sqlite:///mlflow.db"
    (tmp_path / "mlruns/0").mkdir(parents=True)
    (tmp_path / "mlruns/0/meta.yaml").write_text("")
    assert stores.tracking_uri() == _get_default_tracking_uri() == "./mlruns"


# a server


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Workplace]]:
    place = tmp_path_factory.mktemp("server")
    workplace = make_workplace(place, place / "cache")
    with tracking_server(workplace, place) as address:
        yield address, workplace


def all_stores(address: str, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    asked = begin(DEMO, hardware(), None, tuple(Kind), 4096, 30.0)
    names = ("tracking", "registry", "artifacts")
    return examine.examine(asked, 30.0, tuple(c for c in examine.CHECKS if c.name in names))


def test_a_server_is_written_to_and_left_as_it_was(
    tracking: tuple[str, Workplace], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, workplace = tracking
    client = MlflowClient(address)
    number = client.create_experiment(EXPERIMENT)
    findings = all_stores(address, monkeypatch)
    assert [finding.level for finding in findings] == [Level.ok] * 3, findings
    assert f"mlflow-artifacts:/{number} through the server" in findings[2].found
    assert client.search_registered_models() == []
    assert server.NAME not in client.get_experiment(number).tags
    kept = (workplace.folder / "artifacts").rglob("*")
    assert [path for path in kept if path.is_file()] == []


def test_a_server_that_takes_no_files_is_told(
    tracking: tuple[str, Workplace], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, workplace = tracking
    (workplace.folder / "artifacts" / "9").write_text("a file, where a folder should be")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    finding = server.check_artifacts("artifacts", "mlflow-artifacts:/9", 30.0)
    assert finding.level is Level.failure
    assert "500" in finding.found


def test_a_folder_as_the_tracking_store_is_told_before_mlflow_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "runs"))
    (tracking,) = [check for check in examine.CHECKS if check.name == "tracking"]
    finding = tracking.look(subject())
    assert finding.level is Level.failure
    assert finding.mend == f"export MLFLOW_TRACKING_URI=sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert tracking.look(subject()).level is Level.ok


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """What a server is asked that answers {} or, in the query of its address, a status."""
    requests: list[httpx.Request] = []
    real = httpx.Client

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        status = int(request.url.host.rpartition("-")[2])
        about = {
            "experiment_id": "1",
            "name": EXPERIMENT,
            "artifact_location": "mlflow-artifacts:/1",
        }
        told = {"experiment": about} if status == 200 else {}
        return httpx.Response(status, json=told, request=request)

    monkeypatch.setattr(
        httpx, "Client", lambda **given: real(**given, transport=httpx.MockTransport(answer))
    )
    return requests


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "user name and password"), (403, "does not let"), (404, "no MLflow"), (502, "502")],
)
def test_a_server_that_refuses_is_told(status: int, words: str, asked: list[httpx.Request]) -> None:
    finding = server.check_tracking("tracking", f"http://u:{SECRET}@answers-{status}", 1.0)
    assert finding.level is Level.failure
    assert words in finding.found
    assert finding.mend
    assert SECRET not in str(finding)
    assert len(asked) == 1


def test_a_server_that_does_not_know_who_asks_is_told_with_what_to_set(
    asked: list[httpx.Request],
) -> None:
    finding = server.check_registry("registry", "http://answers-401", 1.0)
    assert "was not told" in finding.found
    assert "MLFLOW_TRACKING_USERNAME" in finding.mend


def test_a_slow_server_is_not_written_to(
    asked: list[httpx.Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What times out on its way may arrive all the same, and nobody would take it away."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://answers-200")
    monkeypatch.setattr(server, "timed", lambda ask: (ask(), 0.5))
    found = [
        server.check_tracking("tracking", "http://answers-200", 1.0),
        server.check_registry("registry", "http://answers-200", 1.0),
        server.check_artifacts("artifacts", "mlflow-artifacts:/1", 1.0),
    ]
    assert [finding.level for finding in found] == [Level.warning] * 3
    assert {request.method for request in asked} == {"GET"}


def test_no_answer_is_a_failure_after_the_given_time(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent)
    asked = begin(DEMO, hardware(), None, tuple(Kind), 4096, 0.5)
    findings = {finding.check: finding for finding in examine.examine(asked, 0.5)}
    assert findings["tracking"].level is Level.failure
    assert (
        "does not answer" in findings["tracking"].found or "in time" in findings["tracking"].found
    )
    assert findings["artifacts"].level is not Level.ok


# artifacts in S3


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    started = ThreadedMotoServer(port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield f"http://{host}:{port}"
    started.stop()


def test_a_bucket_is_written_to_and_left_as_it_was(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3)
    without = artifacts.check("artifacts", "s3://runs/7", 10.0)
    assert (without.level, without.mend) == (Level.failure, artifacts.S3_CREDENTIALS)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    absent = artifacts.check("artifacts", "s3://runs/7", 10.0)
    assert "NoSuchBucket" in absent.found
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    client.create_bucket(Bucket="runs")
    assert artifacts.check("artifacts", "s3://runs/7", 10.0).level is Level.ok
    assert client.list_objects_v2(Bucket="runs")["KeyCount"] == 0
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    assert "MLFLOW_S3_ENDPOINT_URL" in artifacts.check("artifacts", "s3://runs/7", 10.0).mend


def test_a_store_whose_client_is_missing_names_what_to_type() -> None:
    finding = artifacts.check("artifacts", "gs://runs/7", 1.0)
    assert finding.mend.endswith("pip install google-cloud-storage")


# weights


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as started:
        monkeypatch.setenv("HF_ENDPOINT", started.url)
        repository = Repository(tmp_path / "repository")
        files = {f.name: f.read_bytes() for f in (ROOT / "demo/phi3_demo").iterdir()}
        repository.commit(files, "main")
        started.repositories["maker/demo"] = repository
        yield started


def of_the_hub(revision: str | None = None) -> Finding:
    model = Model(name="demo", source="maker/demo", revision=revision)
    asked = begin(model, hardware(), None, tuple(Kind), 4096, 30.0)
    return check_weights(asked)


def test_what_the_hub_has_is_told_and_not_fetched(served: Hub, tmp_path: Path) -> None:
    finding = of_the_hub()
    assert finding.level is Level.ok
    assert finding.found == "maker/demo: 3.8 MB of 3.8 MB to download (without HF_TOKEN)"
    assert not any("safetensors" in request.path for request in served.requests)
    model = Model(name="demo", source="maker/demo")
    asked = begin(model, hardware(), None, tuple(Kind), 4096, 30.0)
    loads = memory.needs(asked)
    assert loads is not None
    assert loads[0].sure > 3_600_000


def test_what_the_hub_refuses_is_told_with_what_helps(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of_the_hub("v9").mend == "model.revision=null"
    served.repositories["maker/demo"].gated = Gated.FILES
    assert "licence" in of_the_hub().mend
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    allowed = of_the_hub()
    assert allowed.level is Level.ok
    assert "with HF_TOKEN" in allowed.found
    assert TOKEN not in allowed.found
    del served.repositories["maker/demo"]
    assert "no repository" in of_the_hub().found
    monkeypatch.setenv("HF_ENDPOINT", f"http://me:{SECRET}@127.0.0.1:{closed_port()}")
    away = of_the_hub()
    assert "does not answer" in away.found
    assert SECRET not in str(away)


def test_offline_a_whole_download_does_and_half_of_one_does_not(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = served.repositories["maker/demo"].refs["main"]
    cached = tmp_path / "hf/hub/models--maker--demo"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(commit)
    shutil.copytree(ROOT / "demo/phi3_demo", cached / "snapshots" / commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert of_the_hub().found.startswith("maker/demo is here")
    (cached / "snapshots" / commit / "model.safetensors").unlink()
    finding = of_the_hub()
    assert (finding.level, finding.mend) == (Level.failure, "unset HF_HUB_OFFLINE")
    assert served.requests == []


def test_a_prebuilt_onnx_model_needs_no_checkpoint(tmp_path: Path, served: Hub) -> None:
    repository = Repository(tmp_path / "onnx")
    about = {"model": {"decoder": {}}}
    repository.commit(
        {"int4/genai_config.json": json.dumps(about).encode(), "int4/model.onnx": b"0" * 1000},
        "main",
    )
    served.repositories["maker/onnx"] = repository
    ready = Prebuilt(folder="int4", provider=Provider.cpu, precision=Precision.int4)
    onnx = OnnxSource(source="maker/onnx", prebuilt=[ready])
    model = Model(name="demo", source="maker/absent", onnx=onnx)
    asked = begin(model, hardware(), None, (Kind.custom_onnx,), 4096, 30.0)
    assert check_weights(asked).found.startswith("maker/onnx: 1 kB of 1 kB to download")


def test_a_folder_that_is_not_there_is_told() -> None:
    model = Model(name="demo", source="/nowhere/at/all")
    assert "there is no folder" in check_weights(subject(model)).found


def test_the_hub_is_where_its_client_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from huggingface_hub import constants as c, get_token; print(c.HF_HUB_CACHE, get_token())"
    )
    for name, value in {"HF_TOKEN": "hf_written", "HF_HOME": "/somewhere"}.items():
        monkeypatch.setenv(name, value)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    from slmflow.doctor.weights import hub_cache

    assert told.split() == [str(hub_cache()), hub.token()]


# telemetry and code


def test_telemetry_that_is_on_is_told_by_its_tool() -> None:
    finding = check_telemetry({"MLFLOW_DISABLE_TELEMETRY": "false", "DO_NOT_TRACK": "0"})
    assert finding.level is Level.warning
    assert "MLflow" in finding.found
    assert "export MLFLOW_DISABLE_TELEMETRY=true ORT_DISABLE_TELEMETRY=true" in finding.mend


def test_the_state_of_the_checkout_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/elsewhere")
    clone = tmp_path / "clone"
    assert "no checkout" in check_code(tmp_path).found
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]

    def git(*arguments: str) -> None:
        subprocess.run(["git", *identity, "-C", str(clone), *arguments], check=True)

    clone.mkdir()
    git("init", "-q", "-b", "main")
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert check_code(clone).level is Level.ok
    (clone / "new").write_text("")
    assert "1 file not committed" in check_code(clone).found
    git("checkout", "-q", "--detach")
    assert check_code(clone).mend == f"git -C {clone} switch -"


# the whole


def test_it_tells_all_in_a_table_and_fails_where_something_cannot_work(
    tmp_path: Path, unwritable: Path
) -> None:
    workplace = make_workplace(tmp_path, tmp_path / "cache")
    environment = {
        **workplace.environment,
        "SLMFLOW_CACHE": str(unwritable / "cache"),
        "MLFLOW_TRACKING_URI": f"http://me:{SECRET}@127.0.0.1:{closed_port()}",
        "HF_TOKEN": SECRET,
    }
    command = [sys.executable, "-X", "importtime", "-m", "entrypoints.doctor"]
    result = Workplace(tmp_path, environment).run(command)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    told = [line for line in lines if "→" not in line]  # commands are never broken
    assert max(map(len, told)) <= 80
    for check in examine.CHECKS:
        assert any(re.match(rf"[✓!✗] {check.name} ", line) for line in lines), check.name
    assert "→ export SLMFLOW_CACHE=" in result.stdout
    assert "tracking" in result.stderr.splitlines()[-1]
    assert SECRET not in result.stdout + result.stderr
    imported = set(re.findall(r"^import time:.*\| +([\w]+)$", result.stderr, re.MULTILINE))
    assert "slmflow" in imported
    assert not imported & {"torch", "mlflow", "transformers", "onnxruntime_genai"}


def test_it_tells_programs_in_json(tmp_path: Path) -> None:
    workplace = make_workplace(tmp_path, tmp_path / "cache")
    result = workplace.script("doctor", "doctor.json=true", "doctor.kinds=[custom_onnx]")
    told = json.loads(result.stdout)
    assert (told["format"], told["ok"], result.returncode) == (1, True, 0), result.stderr
    assert [finding["check"] for finding in told["findings"]] == [c.name for c in examine.CHECKS]


def test_run_doctor_takes_both_forms_and_starts_no_mlflow(tmp_path: Path) -> None:
    for name in ("run", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "entrypoints").mkdir()
    (tmp_path / "entrypoints/doctor.py").write_text("")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("python", "mlflow"):
        fake = tmp_path / ".venv/bin" / name
        fake.write_text(f'#!/bin/sh\necho {name}\nprintf "%s|" "$@"\n')
        fake.chmod(0o755)
    stamp = "cat requirements.txt requirements.txt constraints.txt | cksum | tr -d ' '"
    digits = subprocess.run(["sh", "-c", stamp], cwd=tmp_path, capture_output=True, text=True)
    (tmp_path / ".venv" / digits.stdout.strip()).write_text("")
    given = ["./run", "doctor", "-P", "model=phi3_mini_4k", "hardware=auto", "-Ptask=a b"]
    result = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True)
    called = "-m|entrypoints.doctor||model=phi3_mini_4k|hardware=auto|task=a b|"
    assert result.stdout == f"python\n{called}", result.stderr


def test_an_entry_point_that_cannot_work_says_so_first(tmp_path: Path, unwritable: Path) -> None:
    workplace = make_workplace(tmp_path, unwritable / "cache")
    result = workplace.script("custom_onnx")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: cache: {unwritable} cannot be written to")
    assert "type export SLMFLOW_CACHE=" in result.stderr
    (experiment,) = workplace.client.search_experiments(filter_string="name = 'tests'")
    assert workplace.client.search_runs([experiment.experiment_id]) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "model_uri=models:/nobody/1", "output=/nowhere"),
        ("materialise", "model_uri=models:/nobody/1"),
        ("lock", "models=[phi3_demo]"),
        ("rerun", "run_id=nobody"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_so_do_those_that_make_no_model(
    arguments: tuple[str, ...], tmp_path: Path, unwritable: Path
) -> None:
    workplace = make_workplace(tmp_path, unwritable / "cache")
    result = workplace.script(*arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: cache: {unwritable} cannot be written to")


def test_what_cannot_be_found_out_stops_no_entry_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where HF_HOME lies in a folder of another user's: asking for it raises in Python 3.11."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", refuse)
        patch.setattr(Path, "is_dir", refuse)
        assert folder.existing(tmp_path / "a" / "b") == tmp_path
        assert not folder.is_folder(tmp_path)
    monkeypatch.setattr("slmflow.doctor.weights.checkpoint", refuse)
    precheck(ServeConfig(model=DEMO, hardware=hardware()))


def test_a_local_folder_for_artifacts_is_tried_before_an_entry_point_begins(
    monkeypatch: pytest.MonkeyPatch, unwritable: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{unwritable}/runs")
    (finding,) = [check.look(subject()) for check in CHEAP if check.name == "artifacts"]
    assert (finding.level, "cannot be written to" in finding.found) == (Level.failure, True)


def test_what_runs_before_every_entry_point_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    asked = subject(Model(name="demo", source="maker/absent"))
    assert {check.look(asked).level for check in CHEAP} <= {Level.ok, Level.warning}
