"""``./run`` as people type it: it ends with the exit code of the entry point, leaves nothing behind
when it is interrupted, and refuses secrets before MLflow sees them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run

from slmflow.errors import INTERRUPTED
from tests.conftest import ROOT, Packaged, Workplace
from tests.test_failures import all_runs, nothing_registered
from tests.test_secrets import CANARY, PLANTED, TYPED, canaries

PATIENCE = 120  # seconds; a guard against hanging
READY = {"custom_onnx": "log the MLflow model", "serve": "listening on"}
ENDS = {
    "Ctrl-C": lambda process: os.killpg(process.pid, signal.SIGINT),
    "SIGINT to ./run alone": lambda process: process.send_signal(signal.SIGINT),
    "SIGTERM to ./run alone": lambda process: process.terminate(),
}
# Whatever started the tests may ignore it. By a program, not by preexec_fn: that forks a process
# with threads, which can hang for ever.
HEARS_CTRL_C = (
    *(sys.executable, "-c"),
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.argv[1], sys.argv[1:])",
)
REFUSES = (
    *("models=models:/phi3-demo/1", "data.limit=4", "speed=quick", "score.likelihood_rows=0"),
    *("parity.rows=0", "gate=first", "gate.conditions.correct.at_least=1.0"),
)


@pytest.mark.parametrize(
    ("typed", "installed"),
    [
        (("test", "doctor", "check"), ["requirements-dev.txt"]),
        (("doctor", "test", "doctor"), ["requirements.txt", "requirements-dev.txt"]),
    ],
)
def test_the_environment_is_set_up_once_for_what_needs_it(
    tmp_path: Path, typed: tuple[str, ...], installed: list[str]
) -> None:
    """That of the tests has all that an entry point needs."""
    for name in ("run", "requirements.txt", "requirements-dev.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "entrypoints").mkdir()
    (tmp_path / "entrypoints/doctor.py").touch()
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name in ("pip", "python", "pytest", "ruff", "mypy", "lint-imports"):
        (programs / name).write_text(f'#!/bin/sh\n[ {name} = pip ] && echo "$@" >>pip.txt; true\n')
        (programs / name).chmod(0o755)
    for name in typed:
        subprocess.run(["./run", name], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    told = (tmp_path / "pip.txt").read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in told] == installed


def test_a_refusal_of_the_gate_is_2(scratch: Workplace) -> None:
    result = scratch.run_script("evaluate", *REFUSES)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert newest(scratch).info.status == "FINISHED", "the evaluation was"


@pytest.mark.parametrize(
    ("entry_point", "parameters", "words"),
    [
        ("custom_onnx", ("search.temprature=1",), "did you mean temperature?"),
        ("custom_onnx", ("search.temperature=0.0,0.4", "model.source=/no/such"), "2 of 2 points"),
        ("rerun", (), "run_id"),  # MLflow's own refusal, before anything begins
    ],
)
def test_an_error_is_1(
    workplace: Workplace, entry_point: str, parameters: tuple[str, ...], words: str
) -> None:
    result = workplace.run_script(entry_point, *parameters)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_what_mlflow_cannot_read_is_1_and_not_the_gates_2(workplace: Workplace) -> None:
    result = workplace.run_script("evaluate", "nonsense")
    assert result.returncode == 1
    assert "Use -P name=value" in result.stderr


def test_a_store_that_mlflow_refuses_is_one_message(workplace: Workplace) -> None:
    environment = {**workplace.environment, "MLFLOW_TRACKING_URI": "sqlite:x.db"}
    result = Workplace(workplace.folder, environment).run_script("custom_onnx")
    assert result.returncode == 1
    assert result.stderr.startswith("error: no run can be opened on sqlite:x.db")
    assert "./run doctor" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_that_lets_nobody_in_is_one_message(workplace: Workplace) -> None:
    class Closed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Closed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://bob:{CANARY}@127.0.0.1:{server.server_port}"
        environment = {**workplace.environment, "MLFLOW_TRACKING_URI": uri}
        result = Workplace(workplace.folder, environment).run_script("custom_onnx")
        server.shutdown()
    assert result.returncode == 1
    assert result.stderr.startswith("error: http://***@127.0.0.1")
    assert "MLFLOW_TRACKING_USERNAME" in result.stderr
    assert "Traceback" not in result.stderr
    assert CANARY not in result.stdout + result.stderr


def test_an_experiment_is_named_or_numbered(workplace: Workplace) -> None:
    """MLflow takes one of the two; ./run gives the name where nothing else is said."""
    number = workplace.client.create_experiment("other")
    environment = {**workplace.environment, "MLFLOW_EXPERIMENT_ID": number}
    del environment["MLFLOW_EXPERIMENT_NAME"]
    Workplace(workplace.folder, environment).run_script("custom_onnx", "no.such=1")
    assert [run.info.experiment_id for run in all_runs(workplace)] == [number]


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_an_interrupted_job_is_130_and_leaves_nothing(
    workplace: Workplace,
    packaged: Packaged,
    end: "Callable[[subprocess.Popen[str]], None]",
) -> None:
    code, printed = begun_and_ended(workplace, end, "custom_onnx")
    assert code == INTERRUPTED, printed
    assert "Traceback" not in printed
    assert nothing_registered(workplace)
    assert [run.info.status for run in all_runs(workplace)] == ["KILLED"]


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_server_that_is_ended_is_0(
    scratch: Workplace, end: "Callable[[subprocess.Popen[str]], None]"
) -> None:
    code, printed = begun_and_ended(scratch, end, "serve", "-P", "serve.port=0")
    assert code == 0, printed
    assert newest(scratch).info.status == "FINISHED"


def newest(workplace: Workplace) -> Run:
    """Of the runs that have none above them."""
    tops = [run for run in all_runs(workplace) if "mlflow.parentRunId" not in run.data.tags]
    return max(tops, key=lambda run: int(run.info.start_time))


def test_a_signal_that_ended_the_entry_point_is_128_and_its_number(
    workplace: Workplace, packaged: Packaged
) -> None:
    def kill(process: "subprocess.Popen[str]") -> None:
        (entry_point,) = [
            child
            for child in psutil.Process(process.pid).children()
            if "entrypoints.custom_onnx" in child.cmdline()
        ]
        entry_point.kill()

    code, printed = begun_and_ended(workplace, kill, "custom_onnx")
    assert code == 128 + signal.SIGKILL, printed
    assert [run.info.status for run in all_runs(workplace)] == ["FAILED"]


def test_a_store_whose_driver_is_not_installed_is_one_message(workplace: Workplace) -> None:
    """SQLAlchemy takes a bare postgresql:// for psycopg 3."""
    away = f"postgresql://me:{CANARY}@127.0.0.1:1/runs"
    environment = {**workplace.environment, "MLFLOW_TRACKING_URI": away}
    result = Workplace(workplace.folder, environment).run_script("custom_onnx")
    assert result.returncode == 1
    assert "needs the Python package psycopg" in result.stderr
    assert "./run doctor" in result.stderr
    assert "Traceback" not in result.stderr
    assert CANARY not in result.stdout + result.stderr


def test_an_interrupt_before_anything_begins_is_130(workplace: Workplace) -> None:
    """While a server that is away is waited for."""
    away = {**workplace.environment, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    code, printed = begun_and_ended(
        Workplace(workplace.folder, away), ENDS["Ctrl-C"], "custom_onnx", until="does not answer"
    )
    assert code == INTERRUPTED
    assert printed.splitlines()[-1] == "error: interrupted"


def begun_and_ended(
    workplace: Workplace,
    end: "Callable[[subprocess.Popen[str]], None]",
    entry_point: str,
    *arguments: str,
    until: str | None = None,
) -> tuple[int, str]:
    """Once it has got to work. Its exit code and what it printed; nothing of it runs any more."""
    process = subprocess.Popen(
        [*HEARS_CTRL_C, str(ROOT / "run"), entry_point, *arguments],
        env=dict(workplace.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for the whole group
    )
    watchdog = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    assert process.stdout is not None
    family: list[psutil.Process] = []
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if not family and (until or READY[entry_point]) in line:
            family = psutil.Process(process.pid).children(recursive=True)
            end(process)
    process.wait()
    watchdog.cancel()
    _, alive = psutil.wait_procs(family, PATIENCE)
    assert alive == [], "".join(lines)
    return process.returncode, "".join(lines)


def test_a_typed_secret_is_refused_before_anything_of_mlflow_is_imported(
    workplace: Workplace,
) -> None:
    listing = {**workplace.environment, **PLANTED, "PYTHONPROFILEIMPORTTIME": "1"}
    for typed in (TYPED, f"x={PLANTED['HF_TOKEN']}", f"hub.token={CANARY}"):
        result = Workplace(workplace.folder, listing).run_script("custom_onnx", "a=b", typed)
        assert result.returncode == 1
        assert result.stdout == ""
        assert "${oc.env:NAME}" in result.stderr
        assert canaries(result.stderr.encode()) == []
        assert "slmflow.redaction" in result.stderr
        assert "mlflow.version" not in result.stderr
    assert all_runs(workplace) == []


def test_python_m_entrypoints_without_a_name_says_what_is_missing(workplace: Workplace) -> None:
    result = workplace.run([sys.executable, "-m", "entrypoints"])
    assert result.returncode == 1
    assert "no entry point was named" in result.stderr
