"""The server against its own OpenAPI description, with requests that schemathesis makes of it."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import Packaged
from tests.server import start_server


def test_every_answer_is_as_described(packaged: Packaged, tmp_path: Path) -> None:
    with start_server(packaged.workplace, "model_uri=models:/phi3-demo/2") as server:
        tested = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("schemathesis")), "run"),
                f"{server.address}/openapi.json",
                *("--seed", "1", "--max-examples", "50", "--no-color"),
                # No schema can say that a prompt has too many tokens, which is a 400.
                *("--exclude-checks", "positive_data_acceptance"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert tested.returncode == 0, tested.stdout
    assert "Tested: 8" in tested.stdout
