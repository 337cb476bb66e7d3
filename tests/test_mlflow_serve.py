"""The models under MLflow's own tools: ``mlflow models serve`` and ``generate-dockerfile``."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT, Packaged, Workplace

MLFLOW = str(Path(sys.executable).with_name("mlflow"))
VERSIONS = {"transformers": 1, "onnx": 2}
SPAIN = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
RENDERED = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"
PATIENCE = 120  # seconds; a guard against hanging, no promise of speed


# mlflow models serve


@contextmanager
def mlflow_serves(workplace: Workplace, version: int, folder: Path) -> Iterator[str]:
    """``mlflow models serve`` on a port of its own, until the block ends. Its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / f"serve-{version}.log"
    command = [MLFLOW, "models", "serve", "-m", f"models:/phi3-demo/{version}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "-p", str(port)],
            cwd=folder,
            env=dict(workplace.environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE
        while not is_up(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.TransportError:
        return False


def invoke(address: str, body: Any) -> httpx.Response:
    return httpx.post(f"{address}/invocations", json=body, timeout=PATIENCE)


def said(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


@pytest.fixture(scope="module", params=VERSIONS.values(), ids=VERSIONS)
def address(
    request: pytest.FixtureRequest, packaged: Packaged, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    with mlflow_serves(packaged.workplace, request.param, folder) as serving:
        yield serving


def test_a_bare_chat_request_is_answered(address: str) -> None:
    response = invoke(address, SPAIN)
    assert response.status_code == 200
    (answer,) = response.json()
    assert said(answer) == "Madrid"
    assert answer["model"] == "phi3-demo"


def test_inputs_are_answered_each_under_its_own_parameters(address: str) -> None:
    rows = [SPAIN, {**SPAIN, "tools": [1]}, {**SPAIN, "stop": "dri"}, {**SPAIN, "max_tokens": 1}]
    response = invoke(address, {"inputs": rows})
    assert response.status_code == 200
    plain, refused, stopped, cut = response.json()["predictions"]
    assert said(plain) == "Madrid"
    assert refused["error"]["param"] == "tools"
    assert said(stopped) == "Ma"
    assert cut["choices"][0]["finish_reason"] == "length"


def test_what_the_signature_does_not_name_is_refused_not_dropped(address: str) -> None:
    for body in ({**SPAIN, "temprature": 1}, {"inputs": [{**SPAIN, "temprature": 1}]}):
        response = invoke(address, body)
        assert response.status_code == 400
        assert "temprature is not supported" in response.text


def test_the_prompt_model_answers_records_and_inputs(
    with_prompt_model: Workplace, tmp_path: Path
) -> None:
    record = {"prompt": RENDERED}
    with mlflow_serves(with_prompt_model, 3, tmp_path) as address:
        for body in ({"dataframe_records": [record, record]}, {"inputs": [record, record]}):
            response = invoke(address, body)
            assert response.status_code == 200, response.text
            assert response.json() == {"predictions": ["Madrid", "Madrid"]}
        assert invoke(address, {"dataframe_records": [{"prompt": ""}]}).status_code == 400


# mlflow models generate-dockerfile

LOAD = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(json.loads(sys.argv[2]))[0]
import slmflow
print(json.dumps([answer["choices"][0]["message"]["content"], slmflow.__file__]))
"""


@pytest.fixture(scope="module", params=VERSIONS.values(), ids=VERSIONS)
def context(
    request: pytest.FixtureRequest, packaged: Packaged, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What ``docker build`` would get."""
    folder = tmp_path_factory.mktemp("docker") / "context"
    uri = f"models:/phi3-demo/{request.param}"
    command = [MLFLOW, "models", "generate-dockerfile", "-m", uri, "-d", str(folder)]
    result = packaged.workplace.run([*command, "--env-manager", "local"])
    assert result.returncode == 0, result.stderr
    return folder


def copied(context: Path) -> list[tuple[str, str]]:
    """Source and target of every COPY in the Dockerfile."""
    lines = [line.split() for line in (context / "Dockerfile").read_text().splitlines()]
    return [
        (source, line[-1])
        for line in lines
        if line[:1] in (["COPY"], ["ADD"])
        for source in line[1:-1]
    ]


def model_folder(context: Path) -> Path:
    (source,) = [source for source, target in copied(context) if target == "/opt/ml/model"]
    return context / source


def test_everything_that_the_dockerfile_copies_is_there(context: Path) -> None:
    assert copied(context)
    for source, _ in copied(context):
        assert (context / source).exists()
    assert (model_folder(context) / "MLmodel").is_file()
    assert not [path for path in context.rglob("*") if path.is_symlink()]


def test_the_copied_model_answers_with_its_own_code_alone(
    context: Path, packaged: Packaged, tmp_path: Path
) -> None:
    """In a process that knows neither this repository nor its tracking store."""
    folder = model_folder(context)
    environment = {
        name: value
        for name, value in packaged.workplace.environment.items()
        if not name.startswith(("MLFLOW_", "SLMFLOW_", "PYTHON"))
    }
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), json.dumps(SPAIN)],
        cwd=tmp_path,
        env={**environment, "MLFLOW_TRACKING_URI": (tmp_path / "nothing").as_uri()},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stderr
    answer, code = json.loads(result.stdout.splitlines()[-1])
    assert answer == "Madrid"
    assert Path(code) == folder / "code" / "slmflow" / "__init__.py"


def test_its_requirements_are_pins_of_what_is_installed_here(context: Path) -> None:
    lines = (model_folder(context) / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines)
    assert pins
    for package, pinned in pins.items():
        assert installed(package).split("+")[0] == pinned


def test_no_text_in_it_names_a_place_of_this_machine(context: Path, packaged: Packaged) -> None:
    places = {
        str(place)
        for place in (
            ROOT,
            Path.home(),
            Path(sys.prefix),
            packaged.place,
            packaged.workplace.environment["SLMFLOW_CACHE"],
        )
    }
    named = []
    for path in sorted(path for path in context.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if b"\0" in content:
            continue  # weights
        for line in content.decode("utf-8").splitlines():
            named += [f"{path.name}: {line}" for place in places if place in line]
    assert named == []
