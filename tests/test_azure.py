"""export=azureml: what Azure's own package makes of the files, and what it says of broken ones.

Needs .venv-azure with requirements-azure.txt: azure-ai-ml and MLflow exclude each other.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from slmflow.config.export import Format, FormatName
from slmflow.export.model import Model
from slmflow.export.write import write_format
from tests.conftest import ROOT

PYTHON = ROOT / ".venv-azure" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="no .venv-azure: python3.11 -m venv .venv-azure && "
    ".venv-azure/bin/pip install -r requirements-azure.txt",
)
LOAD = """
import json, sys
from pathlib import Path
from azure.ai.ml import load_model, load_online_deployment, load_online_endpoint

folder = Path(sys.argv[1])
model = load_model(folder / "model.yml")
endpoint = load_online_endpoint(folder / "endpoint.yml")
deployment = load_online_deployment(folder / "deployment.yml")
body = deployment._to_rest_object("westeurope").as_dict()  # what the service is sent
print(json.dumps({
    "model": {"type": model.type, "version": model.version, "path": str(model.path),
              "tags": model.tags},
    "endpoint": {"name": endpoint.name, "auth_mode": endpoint.auth_mode},
    "deployment": {
        "name": deployment.name, "endpoint_name": deployment.endpoint_name,
        "model": deployment.model, "instance_type": deployment.instance_type,
        "instance_count": deployment.instance_count,
        "timeout_ms": deployment.request_settings.request_timeout_ms,
        "routes": deployment._to_dict()["environment"]["inference_config"],
        "context": deployment._to_dict()["environment"]["build"]["path"],
        "dockerfile": deployment.environment.build.dockerfile_path,
        "variables": deployment.environment_variables,
    },
    "sent": body["properties"]["endpointComputeType"],
}))
"""


def write_export(folder: Path, task: str = "chat", **chosen: Any) -> Path:
    """Of a small model's files, without the model's own."""
    model = folder / "model"
    (model / "code" / "slmflow" / "served").mkdir(parents=True)
    (model / "code" / "slmflow" / "served" / "packaged.py").touch()
    (model / "requirements.txt").write_text("mlflow==3.17.2\n")
    told = {
        "run_id": "0123",
        "model_id": "m-4567",
        "flavors": {"python_function": {"config": {"provider": "cpu", "task": task}}},
    }
    (model / "MLmodel").write_text(yaml.safe_dump(told))
    settings = {"instance_type": "Standard_DS3_v2", "instance_count": 1} | chosen
    asked = Format(FormatName.azureml, base_image="python:3.11-slim", **settings)
    write_format(folder, Model("models:/phi3-demo/2", "phi3-demo", "2", model, told), asked)
    return folder


def loaded(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([PYTHON, "-c", LOAD, folder], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("azure"), endpoint="team-phi3", instance_count=2)


def test_azures_loaders_read_what_was_asked_for(written: Path) -> None:
    result = loaded(written)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["model"] == {
        "type": "mlflow_model",
        "version": "2",
        "path": str(written / "model"),
        "tags": {"run_id": "0123", "model_id": "m-4567"},
    }
    assert told["endpoint"] == {"name": "team-phi3", "auth_mode": "key"}
    deployment = told["deployment"]
    assert deployment["endpoint_name"] == "team-phi3"
    assert deployment["model"] == "phi3-demo:2"  # the one that model.yml registers
    assert (deployment["instance_type"], deployment["instance_count"]) == ("Standard_DS3_v2", 2)
    assert deployment["timeout_ms"] <= 180_000  # Azure's limit
    assert Path(deployment["context"]) == written / "environment"
    assert (written / "environment" / deployment["dockerfile"]).is_file()
    mounted = "/var/azureml-app/azureml-models/phi3-demo/2"
    assert deployment["variables"] == {"MODEL_DIR": mounted}
    assert told["sent"] == "Managed"


def test_the_routes_are_those_of_the_server_and_of_the_models_task(
    written: Path, tmp_path: Path
) -> None:
    routes = json.loads(loaded(written).stdout.splitlines()[-1])["deployment"]["routes"]
    assert routes["scoring_route"] == {"port": 8000, "path": "/v1/chat/completions"}
    assert (
        routes["liveness_route"] == routes["readiness_route"] == {"port": 8000, "path": "/health"}
    )
    entry = (written / "environment" / "Dockerfile").read_text().splitlines()[-1]
    assert '"serve.port=8000"' in entry
    prompt = yaml.safe_load((write_export(tmp_path, "prompt") / "deployment.yml").read_text())
    route = prompt["environment"]["inference_config"]["scoring_route"]
    assert route == {"port": 8000, "path": "/v1/completions"}


@pytest.mark.parametrize(
    ("file", "right", "wrong", "told"),
    [
        ("deployment.yml", "instance_count: 2", "instance_count: many", "Not a valid integer"),
        ("endpoint.yml", "auth_mode: key", "auth_mode: open", "'open' passed is not in set"),
        ("model.yml", "type: mlflow_model", "kind: mlflow_model", "Unknown field"),
    ],
)
def test_azures_loaders_refuse_what_they_do_not_know(
    written: Path, tmp_path: Path, file: str, right: str, wrong: str, told: str
) -> None:
    shutil.copytree(written, tmp_path / "broken")
    text = (tmp_path / "broken" / file).read_text()
    (tmp_path / "broken" / file).write_text(text.replace(right, wrong))
    assert right in text
    assert told in loaded(tmp_path / "broken").stderr
