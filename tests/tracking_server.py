"""A real ``mlflow server`` on loopback, for tests of what goes through one."""

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from tests.conftest import Workplace

PATIENCE = 120  # seconds; a guard against hanging, no promise of speed


@contextmanager
def tracking_server(workplace: Workplace, folder: Path, workers: int = 1) -> Iterator[str]:
    """Its address. It serves the workplace's store; artifacts of new experiments pass through it
    to ``folder``."""
    options = ["--backend-store-uri", workplace.tracking_uri, "--workers", str(workers)]
    options += ["--artifacts-destination", str(folder / "artifacts")]
    with mlflow_server(options, workplace.environment, folder) as address:
        yield address


@contextmanager
def mlflow_server(
    options: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Iterator[str]:
    """``mlflow server`` with these options on a free port; its log lies in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, *options], env=environment, cwd=folder, stdout=log, stderr=log
        )
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(PATIENCE)


def _wait_until_healthy(address: str) -> None:
    for attempt in Retrying(
        retry=retry_if_exception_type(requests.RequestException),
        stop=stop_after_delay(PATIENCE),
        wait=wait_fixed(0.2),
    ):
        with attempt:
            requests.get(address, timeout=5).raise_for_status()
