"""End to end: whole commands on the demo model, as they are typed, with a warm cache.

./run main, after the set-up; then mlflow run . -e custom_onnx --env-manager local. Each runs once
without counting, which fills the cache, then once a round, each time in an empty tracking store
and without MLflow's telemetry. Then the two processes of custom_onnx, the one that packages and
the one that checks the answer, list what they import: none of it may be torch.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import work
from bench.figures import Figure, show, write
from slmflow import console
from slmflow.answering.ask import WORKER
from slmflow.checkout import PROJECT_ROOT
from slmflow.tracking.registry import RUNTIMES, newest

COMMANDS = (
    ("./run main", ("./run", "main"), 40.0),
    (
        "mlflow run . -e custom_onnx",
        ("mlflow", "run", ".", "-e", "custom_onnx", "--env-manager", "local"),
        12.0,
    ),
)
DEMO_NAME = "phi3-demo"
IMPORTED = re.compile(r"^import time:.*\| +(\S+)$", re.MULTILINE)


def main() -> None:
    parser = work.parser("end_to_end", __doc__, rounds=5)
    options = parser.parse_args()
    place = work.prepare(options.work)
    with console.step("run both once, to fill the cache"):
        for _, command, _ in COMMANDS:
            seconds_of(command, place)
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in COMMANDS}
    with console.progress("rounds", options.rounds) as bar:
        for _ in range(options.rounds):
            for name, command, _ in COMMANDS:
                seconds[name].append(seconds_of(command, place))
            bar.advance()
    with console.step("list what custom_onnx imports"):
        packaging, answering = torch_modules(place)
    figures = [
        *(Figure(name, seconds[name], "s", at_most=target) for name, _, target in COMMANDS),
        Figure("torch modules, custom_onnx", [packaging], "", at_most=0),
        Figure("torch modules, its check", [answering], "", at_most=0),
    ]
    show("whole commands, demo model", figures)
    write(options.json, "end_to_end", figures)


def seconds_of(command: Sequence[str], place: Path) -> float:
    with work.run_store(place):
        started = time.perf_counter()
        run(command)
        return time.perf_counter() - started


def torch_modules(place: Path) -> tuple[int, int]:
    """How many modules of torch the process of custom_onnx imports, and the one that checks."""
    listing = [sys.executable, "-X", "importtime"]
    with work.run_store(place):
        packaging = run([*listing, "-m", "entrypoints.custom_onnx"])
        registered = newest(DEMO_NAME, RUNTIMES[1], "chat", "cpu")
        assert registered is not None
        row = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
        orders = [{"uri": registered.uri, "model_config": None}, {"answer": [row]}]
        told = "\n".join(json.dumps(order) for order in orders)
        answering = run([*listing, "-P", str(WORKER)], told)
    return count_torch(packaging), count_torch(answering)


def count_torch(imports: str) -> int:
    modules = set(IMPORTED.findall(imports))
    assert "mlflow" in modules, "the list of imports is not one"
    return sum(module.split(".")[0] == "torch" for module in modules)


def run(command: Sequence[str], text: str | None = None) -> str:
    """Standard error of a command in the project's folder, with this python first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        command,
        cwd=PROJECT_ROOT,
        env=os.environ | {"PATH": path},
        input=text,
        capture_output=True,
        text=True,
    )
    work.check(result)
    return result.stderr


if __name__ == "__main__":
    main()
