"""Both kinds packaged from the hub, by real ``mlflow run`` against a hub on loopback."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from tests.conftest import ROOT, Packaged, Workplace
from tests.hub_server import Hub, Repository

CHECKPOINT = ROOT / "demo" / "phi3_demo"
ONNX_FOLDER = "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"


def contents(folder: Path, prefix: str = "") -> dict[str, bytes]:
    return {prefix + file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture
def online(workplace: Workplace, tmp_path: Path, hub: Hub) -> Workplace:
    """The workplace of somebody who reaches the hub and has downloaded nothing yet."""
    chosen = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return Workplace(workplace.folder, {**workplace.environment, **chosen})


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub() as served:
        yield served


def test_a_checkpoint_of_the_hub_is_packaged_at_its_pinned_revision(
    online: Workplace, tmp_path: Path, hub: Hub
) -> None:
    repository = Repository(tmp_path / "checkpoint")
    hub.repositories["maker/demo"] = repository
    first = repository.commit(contents(CHECKPOINT), "v1")
    repository.commit({"config.json": b"{}"}, "main")
    result = online.mlflow_run(
        "transformers_pipeline", "model.source=maker/demo", "model.revision=v1"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (version,) = online.client.search_model_versions()
    assert version.tags["source"] == "maker/demo"
    assert version.tags["revision"] == first


def test_a_prebuilt_onnx_folder_of_the_hub_is_packaged(
    online: Workplace, tmp_path: Path, hub: Hub, packaged: Packaged
) -> None:
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    model = Path(mlflow.artifacts.download_artifacts("models:/phi3-demo/2"))
    repository = Repository(tmp_path / "onnx")
    hub.repositories["maker/demo-onnx"] = repository
    files = contents(model / "artifacts" / "model", f"{ONNX_FOLDER}/")
    others = {"cuda/cuda-fp16/model.onnx": b"for another target", "LICENSE": b"free"}
    commit = repository.commit({**files, **others}, "main")
    prebuilt = f"[{{folder: {ONNX_FOLDER}, provider: cpu, precision: int4, block_size: 32}}]"
    result = online.mlflow_run(
        "custom_onnx", "model.onnx.source=maker/demo-onnx", f"model.onnx.prebuilt={prebuilt}"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (version,) = online.client.search_model_versions()
    assert version.tags["source"] == f"maker/demo-onnx/{ONNX_FOLDER}"
    assert version.tags["revision"] == commit
    mlflow.set_tracking_uri(online.tracking_uri)
    logged = Path(mlflow.artifacts.download_artifacts("models:/phi3-demo/1"))
    assert (logged / "LICENSE").read_bytes() == b"free"
    assert not list(logged.rglob("*fp16*"))


def test_a_missing_revision_fails_the_run_and_registers_nothing(
    online: Workplace, tmp_path: Path, hub: Hub
) -> None:
    repository = Repository(tmp_path / "checkpoint")
    hub.repositories["maker/demo"] = repository
    repository.commit(contents(CHECKPOINT), "main")
    result = online.mlflow_run("custom_onnx", "model.source=maker/demo", "model.revision=v9")
    assert result.returncode == 1
    assert "maker/demo has no revision 'v9'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not online.client.search_model_versions()
