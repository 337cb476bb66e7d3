"""What goes wrong is told in one message, and leaves MLflow, registry and cache true."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.conftest import ROOT, Packaged, Workplace


def all_runs(workplace: Workplace) -> list[Run]:
    client = workplace.client
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments))


def nothing_registered(workplace: Workplace) -> bool:
    return not workplace.client.search_model_versions()


def one_message(stderr: str) -> str:
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    return errors[0]


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("search.temprature=0.7", ("search.temprature", "did you mean temperature?")),
        ("search.temperature=warm", ("search.temperature", "'warm'", "Float")),
        ("model=phi9", ("model=phi9", "phi3_demo")),
        ("hardware.precision=fp16", ("hardware.precision=fp16", "fp32, int8, int4")),
        ("hardware=cuda", ("hardware=cuda", "hardware=cpu")),
        ("search.num_beams=0", ("search.num_beams", "1 (no beams) or more")),
    ],
)
def test_bad_parameters_of_mlflow_run_fail_the_run(
    workplace: Workplace, parameter: str, words: tuple[str, ...]
) -> None:
    result = workplace.mlflow_run("custom_onnx", parameter)
    assert result.returncode == 1
    message = next(line for line in result.stderr.splitlines() if line.startswith("error: "))
    for word in words:
        assert word in message
    assert [run.info.status for run in all_runs(workplace)] == ["FAILED"]
    assert nothing_registered(workplace)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+search.foo=1"], ("search.foo", "temperature")),
        (["modle=phi3_demo"], ("modle", "did you mean model?")),
        (["experiment=nope"], ("experiment=nope", "cookbook")),
        (["search.stop=a"], ("search.stop", "a list is needed")),
        (["search=beam", "search.temperature=1"], ("search.num_beams", "temperature=0")),
        (["search.temperature=0.1,warm"], ("search.temperature", "'warm'")),
        (["model.source=no/such"], ("no/such", "HF_HUB_OFFLINE")),
        (["model.source=/no/such/folder"], ("/no/such/folder",)),
    ],
)
def test_bad_arguments_of_a_script_end_with_one_message(
    workplace: Workplace, arguments: list[str], words: tuple[str, ...]
) -> None:
    result = workplace.script("custom_onnx", *arguments)
    assert result.returncode == 1
    message = one_message(result.stderr)
    for word in words:
        assert word in message


def test_task_prompt_is_refused_by_transformers_pipeline(workplace: Workplace) -> None:
    result = workplace.script("transformers_pipeline", "task=prompt")
    assert result.returncode == 1
    assert "custom_onnx" in one_message(result.stderr)


def test_a_broken_onnx_folder_is_not_registered(workplace: Workplace, tmp_path: Path) -> None:
    broken = tmp_path / "onnx" / "cpu"
    broken.mkdir(parents=True)
    (broken / "genai_config.json").write_text('{"model": {"type": "phi3"}}')
    (broken / "model.onnx").write_bytes(b"not an onnx model")
    prebuilt = "[{folder: cpu, provider: cpu, precision: int4}]"
    result = workplace.script(
        "custom_onnx", f"model.onnx.source={tmp_path / 'onnx'}", f"model.onnx.prebuilt={prebuilt}"
    )
    assert result.returncode == 1
    assert "the logged model does not answer" in result.stderr
    assert "Traceback" not in result.stderr.split("error: ")[0]
    assert [run.info.status for run in all_runs(workplace)] == ["FAILED"]
    assert nothing_registered(workplace)


def test_an_unexpected_answer_is_not_registered(workplace: Workplace, packaged: Packaged) -> None:
    result = workplace.script("custom_onnx", "model.probe.expect=Lisbon")
    assert result.returncode == 1
    message = one_message(result.stderr)
    assert "'Madrid'" in message
    assert "'Lisbon'" in message
    assert nothing_registered(workplace)


def test_an_architecture_that_the_builder_does_not_know(
    workplace: Workplace, tmp_path: Path
) -> None:
    for file in (ROOT / "demo" / "phi3_demo").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = workplace.script("custom_onnx", f"model.source={tmp_path}")
    assert result.returncode == 1
    assert "ONNX model builder ended with exit code" in result.stderr
    assert nothing_registered(workplace)


def test_a_registry_that_is_down(workplace: Workplace, packaged: Packaged) -> None:
    environment = {
        "MLFLOW_REGISTRY_URI": "http://127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    down = Workplace(workplace.folder, {**workplace.environment, **environment})
    result = down.script("custom_onnx")
    assert result.returncode == 1
    message = one_message(result.stderr)
    assert "http://127.0.0.1:9" in message
    assert "repeat the command" in message
    assert [run.info.status for run in all_runs(workplace)] == ["FAILED"]
    assert nothing_registered(workplace)


def test_a_tracking_server_that_is_down(workplace: Workplace) -> None:
    environment = {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    result = Workplace(workplace.folder, {**workplace.environment, **environment}).script(
        "custom_onnx"
    )
    assert result.returncode == 1
    assert "MLFLOW_TRACKING_URI" in one_message(result.stderr)


def test_evaluate_without_models_says_what_to_run(workplace: Workplace) -> None:
    result = workplace.mlflow_run("evaluate")
    assert result.returncode == 1
    assert "mlflow run . -e custom_onnx" in result.stderr
    assert [run.info.status for run in all_runs(workplace)] == ["FAILED"]


def test_a_dataset_with_bad_rows_lists_them(workplace: Workplace, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"prompt": "a", "references": ["b"]}\nnonsense\n{"prompt": 5}\n')
    result = workplace.script("evaluate", f"data.path={data}")
    assert result.returncode == 1
    assert "line 2" in result.stderr
    assert "line 3" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_run_as_killed(
    workplace: Workplace, packaged: Packaged, sent: signal.Signals
) -> None:
    """Interrupted while the model is being checked: logged, not registered."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "entrypoints.custom_onnx"],
        cwd=ROOT,
        env=dict(workplace.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    assert process.stdout is not None
    for line in process.stdout:
        if "log the MLflow model" in line:
            os.kill(process.pid, sent)
            break
    _, stderr = process.communicate()
    watchdog.cancel()
    assert process.returncode == 130, stderr
    assert one_message(stderr) == "error: interrupted"
    assert [run.info.status for run in all_runs(workplace)] == ["KILLED"]
    assert nothing_registered(workplace)


def test_ctrl_c_under_mlflow_run_leaves_nothing_running(
    workplace: Workplace, packaged: Packaged
) -> None:
    """A terminal sends the signal to the whole foreground group."""
    process = subprocess.Popen(
        ["mlflow", "run", str(ROOT), "-e", "custom_onnx", "--env-manager", "local"],
        cwd=ROOT,
        env=dict(workplace.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    assert process.stdout is not None
    for line in process.stdout:
        if "log the MLflow model" in line:
            os.killpg(process.pid, signal.SIGINT)
            break
    process.communicate()
    watchdog.cancel()
    assert process.returncode != 0
    statuses = [run.info.status for run in all_runs(workplace)]
    assert len(statuses) == 1
    assert statuses[0] in ("KILLED", "FAILED")
    assert nothing_registered(workplace)


def test_a_full_disk_is_named_and_leaves_no_cache_entry(tmp_path: Path) -> None:
    """On a real file system of one megabyte, where this user may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)])
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a file system")
    try:
        from tests.conftest import make_workplace

        workplace = make_workplace(tmp_path, small / "cache")
        result = workplace.script("custom_onnx")
        assert result.returncode == 1
        assert "Traceback" not in result.stderr.split("error: ")[0]
        assert "space" in result.stderr
        assert not list((small / "cache").glob("onnx/*.json"))
        assert nothing_registered(workplace)
        assert [run.info.status for run in all_runs(workplace)] == ["FAILED"]
    finally:
        subprocess.run(["umount", str(small)], check=True)
