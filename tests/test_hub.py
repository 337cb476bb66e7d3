"""Both kinds packaged from the hub, by real ``mlflow run`` against a hub on loopback."""

import json
import pickle
import pickletools
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from slmflow.config.schema import Model
from slmflow.errors import ConfigError
from slmflow.packaging.checkpoint import confirmation, get_checkpoint
from slmflow.sources import find_checkpoint
from tests.conftest import ROOT, Packaged, Workplace
from tests.hub_server import Hub, Repository

CHECKPOINT = ROOT / "demo" / "phi3_demo"
API = "/api/models/maker/demo"
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
    # Whatever packages and loads it works on the files that are here.
    assert {r.path for r in hub.requests if "/api/" in r.path} == {
        f"{API}/revision/v1",
        f"{API}/tree/{first}",
    }
    assert sorted(set(hub.fetched())) == hub.fetched()


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


def checkpoint_with_code(folder: Path) -> Path:
    """The demo model behind classes that only the checkpoint has."""
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "small_of_maker", "architectures": ["SmallForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_small.SmallConfig",
        "AutoModelForCausalLM": "modeling_small.SmallForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_small.py").write_text(
        "from transformers import Phi3Config\n\n\n"
        "class SmallConfig(Phi3Config):\n    model_type = 'small_of_maker'\n"
    )
    (folder / "modeling_small.py").write_text(
        "from transformers import Phi3ForCausalLM\n\n"
        "from .configuration_small import SmallConfig\n\n\n"
        "class SmallForCausalLM(Phi3ForCausalLM):\n    config_class = SmallConfig\n"
    )
    return folder


def test_code_of_a_checkpoint_runs_where_it_was_confirmed_by_name_and_revision(
    tmp_path: Path,
) -> None:
    folder = checkpoint_with_code(tmp_path / "model")
    model = Model(name="small", source=str(folder), trust_remote_code=True)
    for trust in (None, "small", "small@000000000000"):
        with pytest.raises(ConfigError, match="configuration_small") as told:
            get_checkpoint(model, trust, print)
    word = str(told.value).partition("-P trust=")[2]
    assert get_checkpoint(model, word, print).code
    (folder / "modeling_small.py").write_text("other = 'code'\n")
    with pytest.raises(ConfigError, match=f"trust={word} was given"):
        get_checkpoint(model, word, print)


def test_confirmed_code_travels_with_the_model_and_a_folder_never_asks_the_hub(
    online: Workplace, tmp_path: Path, hub: Hub
) -> None:
    folder = checkpoint_with_code(tmp_path / "model")
    model = Model(name="phi3-demo", source=str(folder), trust_remote_code=True)
    word = confirmation(model, find_checkpoint(str(folder), None, print, own_code=True))
    chosen = [f"model.source={folder}", "model.trust_remote_code=true"]
    result = online.mlflow_run("transformers_pipeline", *chosen, f"trust={word}")
    assert result.returncode == 0, result.stdout + result.stderr
    shutil.rmtree(folder)
    mlflow.set_tracking_uri(online.tracking_uri)
    pipeline = mlflow.transformers.load_model("models:/phi3-demo/1")
    assert type(pipeline.model).__name__ == "SmallForCausalLM"
    assert hub.requests == []


OPCODES_OF_A_PICKLE = 3  # at least; a text that begins with "." is none


def is_pickle(file: Path) -> bool:
    try:
        return len(list(pickletools.genops(file.read_bytes()))) >= OPCODES_OF_A_PICKLE
    except Exception:  # whatever the parser stumbles over: it does not read as one
        return False


def test_no_file_of_a_packaged_model_is_a_pickle(tmp_path: Path, packaged: Packaged) -> None:
    planted = tmp_path / "planted"
    planted.write_bytes(pickle.dumps({"a": 1}))
    assert is_pickle(planted)
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    for version in (1, 2):
        model = Path(mlflow.artifacts.download_artifacts(f"models:/phi3-demo/{version}"))
        files = [file for file in model.rglob("*") if file.is_file()]
        assert files
        for file in files:
            assert not is_pickle(file), file
            assert not zipfile.is_zipfile(file), file  # torch.save's form of one
            assert file.suffix not in {".pkl", ".pt", ".pth", ".bin", ".pickle"}, file
