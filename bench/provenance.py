"""Provenance: what it adds to the time of a run of ``mlflow run``.

Two projects of one line each, run in turn by the real ``mlflow run`` into a store of their own:
one logs a composed config as plain MLflow does (parameters, tags, one file), the other by
``log_config``, with git's state and diff, versions, hardware, variables, and every text searched
for secrets. The difference of a round is the cost: in seconds, and in processor time, which a busy
machine changes less. In a checkout with changed or new files the
diff is part of it.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import work
from bench.figures import Figure, ratios, show, write
from slmflow import console
from slmflow.checkout import PROJECT_ROOT

TARGET = 1.0  # seconds
KINDS = ("bare", "full")
ENTRY_POINT = "custom_onnx"
PROJECT = """name: bench
entry_points:
  bare: {command: "python -m bench.provenance --child bare"}
  full: {command: "python -m bench.provenance --child full"}
"""


def main() -> None:
    parser = work.parser("provenance", __doc__, rounds=10)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        log(options.child)
        return
    place = work.prepare(options.work)
    with (
        work.run_store(place),
        tempfile.TemporaryDirectory(dir=place) as project,
        console.progress("run both projects", options.rounds) as bar,
    ):
        (Path(project) / "MLproject").write_text(PROJECT)
        measured: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for kind in KINDS:  # uncounted: files are read for the first time
            run(project, kind)
        for _ in range(options.rounds):
            for kind in KINDS:
                measured[kind].append(run(project, kind))
            bar.advance()
    bare, full = ([seconds for seconds, _ in measured[kind]] for kind in KINDS)
    cpu_bare, cpu_full = ([cpu for _, cpu in measured[kind]] for kind in KINDS)
    figures = [
        Figure("cost of provenance", differences(full, bare), "s", at_most=TARGET),
        Figure("  in processor time", differences(cpu_full, cpu_bare), "s"),
        Figure("  with it", full, "s"),
        Figure("  without", bare, "s"),
        Figure("  with over without", ratios(full, bare)),
    ]
    show("mlflow run", figures)
    write(options.json, "provenance", figures)


def differences(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(above, below, strict=True)]


def run(project: str, kind: str) -> tuple[float, float]:
    """Seconds from the command to its end, and those of processors, of all its processes."""
    mlflow = Path(sys.executable).with_name("mlflow")
    command = [str(mlflow), "run", project, "-e", kind, "--env-manager", "local"]
    paths = os.pathsep.join(map(str, (PROJECT_ROOT / "src", PROJECT_ROOT)))
    tools = f"{mlflow.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": paths, "PATH": tools}
    command += ["--experiment-name", work.EXPERIMENT]
    before, started = children_seconds(), time.perf_counter()
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    work.check(result)
    return seconds, children_seconds() - before


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def log(kind: str) -> None:
    """What an entry point does before its work: compose, open the run, tell what was asked."""
    from slmflow.tracking.run import log_config, open_run

    values, choices = composed()
    with open_run("bench"):
        if kind == "full":
            log_config(values, choices, ENTRY_POINT, overrides=["model=phi3_demo"])
        else:
            log_plain(values, choices)


def composed() -> tuple[dict[str, Any], dict[str, str]]:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from slmflow.config.load import without_hydra
    from slmflow.config.store import register

    register()
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        config = without_hydra(compose(ENTRY_POINT, return_hydra_config=True))
    values = OmegaConf.to_container(config, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}, {"model": "phi3_demo"}


def log_plain(values: Mapping[str, Any], choices: Mapping[str, str]) -> None:
    import mlflow
    import yaml

    from slmflow.tracking.run import flatten

    mlflow.log_params({**choices, **flatten(values)})
    chosen = {f"choice.{group}": choice for group, choice in choices.items()}
    mlflow.set_tags({**chosen, "slmflow.entry_point": ENTRY_POINT})
    mlflow.log_text(yaml.safe_dump(dict(values)), "config.yaml")


if __name__ == "__main__":
    main()
