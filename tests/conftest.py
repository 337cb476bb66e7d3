"""What the end-to-end tests share: a tracking store of their own and one real run of everything."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.tracking import fluent

if TYPE_CHECKING:
    from tests.server import Server

# Workers of pytest-xdist share the cores with all that they start: threads would only spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

EXPERIMENT = "MLFLOW_EXPERIMENT_ID"
ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300  # seconds; a guard against hanging, no promise of speed


@contextmanager
def same_experiment() -> Iterator[None]:
    """``mlflow.set_experiment`` sets a variable of the process, which later tests would meet."""
    variable, active = os.environ.get(EXPERIMENT), fluent._active_experiment_id
    yield
    fluent._active_experiment_id = active
    os.environ.pop(EXPERIMENT, None)
    if variable is not None:
        os.environ[EXPERIMENT] = variable


@pytest.fixture(autouse=True)
def experiment_of_a_test() -> Iterator[None]:
    with same_experiment():
        yield


@pytest.fixture(autouse=True, scope="module")
def experiment_of_a_module() -> Iterator[None]:
    with same_experiment():
        yield


@dataclass(frozen=True)
class Workplace:
    """A tracking store, a cache and the environment that makes processes use them."""

    folder: Path
    environment: Mapping[str, str]

    @property
    def tracking_uri(self) -> str:
        return self.environment["MLFLOW_TRACKING_URI"]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_uri)

    def mlflow_run(self, entry_point: str, *parameters: str) -> "subprocess.CompletedProcess[str]":
        """The real thing: ``mlflow run . -e ENTRY_POINT -P KEY=VALUE ...``."""
        command = [str(Path(sys.executable).with_name("mlflow")), "run", str(ROOT)]
        command += ["-e", entry_point, "--env-manager", "local"]
        for parameter in parameters:
            command += ["-P", parameter]
        return self.run(command)

    def run_script(self, entry_point: str, *parameters: str) -> "subprocess.CompletedProcess[str]":
        """As people type it: ``./run ENTRY_POINT -P KEY=VALUE ...``."""
        given = [word for parameter in parameters for word in ("-P", parameter)]
        return self.run([str(ROOT / "run"), entry_point, *given])

    def script(self, entry_point: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """An entry script, called directly with Hydra's own syntax."""
        return self.run([sys.executable, "-m", f"entrypoints.{entry_point}", *arguments])

    def run(self, command: list[str], cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            cwd=cwd,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )


def make_workplace(folder: Path, cache: Path) -> Workplace:
    workplace = workplace_in(folder, cache)
    shutil.copyfile(_empty_store(), folder / "mlflow.db")
    # Artifacts beside the store, not in the checkout.
    workplace.client.create_experiment("tests", artifact_location=(folder / "artifacts").as_uri())
    return workplace


def workplace_in(folder: Path, cache: Path) -> Workplace:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "SLMFLOW_", "HF_")) and name != "PYTHONPATH"
    }
    chosen = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_EXPERIMENT_NAME": "tests",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SLMFLOW_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return Workplace(folder, inherited | chosen)


@functools.cache
def _empty_store() -> Path:
    """MLflow takes seconds to make a store; a copy of one does as well."""
    file = Path(tempfile.mkdtemp()) / "mlflow.db"
    atexit.register(shutil.rmtree, file.parent, ignore_errors=True)
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def shared_cache(shared: Path) -> Path:
    """ONNX models are built once a session."""
    cache = shared / "cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture
def workplace(tmp_path: Path, shared_cache: Path) -> Workplace:
    """An empty tracking store."""
    return make_workplace(tmp_path, shared_cache)


@dataclass(frozen=True)
class Packaged:
    """The store after ``mlflow run . -e main`` on the demo model, and what it printed.

    ``place``: where it ran, once a session, and where the artifacts lie; the store is a copy.
    """

    workplace: Workplace
    output: str
    place: Path


@pytest.fixture(scope="session")
def packaged(
    tmp_path_factory: pytest.TempPathFactory, shared: Path, shared_cache: Path
) -> Packaged:
    place = shared / "main"
    printed = place / "printed.txt"
    with FileLock(shared / "main.lock"):
        if not printed.exists():
            place.mkdir(exist_ok=True)
            result = make_workplace(place, shared_cache).mlflow_run("main", "data.limit=6")
            assert result.returncode == 0, result.stdout + result.stderr
            printed.write_text(result.stdout)
    made = workplace_in(place, shared_cache)
    return Packaged(copy_store(made, tmp_path_factory.mktemp("main")), printed.read_text(), place)


def copy_store(workplace: Workplace, folder: Path) -> Workplace:
    """The same runs and versions, for tests that add to them."""
    shutil.copyfile(workplace.folder / "mlflow.db", folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    return Workplace(folder, {**workplace.environment, "MLFLOW_TRACKING_URI": uri})


@pytest.fixture
def scratch(tmp_path: Path, packaged: Packaged) -> Workplace:
    """The store of ``packaged``, free to be changed."""
    return copy_store(packaged.workplace, tmp_path)


@pytest.fixture(scope="session")
def transformers_server(packaged: Packaged) -> "Iterator[Server]":
    """The transformers model behind the real server, for tests that leave it as it is."""
    from tests.server import start_server  # which itself imports this module

    with start_server(packaged.workplace, "model_uri=models:/phi3-demo/1") as server:
        yield server


@pytest.fixture(scope="session")
def onnx_server(packaged: Packaged) -> "Iterator[Server]":
    """The ONNX model behind the real server, for tests that leave it as it is."""
    from tests.server import start_server

    with start_server(packaged.workplace, "model_uri=models:/phi3-demo/2") as server:
        yield server


@pytest.fixture(scope="session")
def with_prompt_model(tmp_path_factory: pytest.TempPathFactory, packaged: Packaged) -> Workplace:
    """The store of ``packaged`` and, as version 3, the ONNX model of the second task: text in,
    text out."""
    workplace = copy_store(packaged.workplace, tmp_path_factory.mktemp("prompt"))
    result = workplace.mlflow_run("custom_onnx", "task=prompt")
    assert result.returncode == 0, result.stderr
    return workplace
