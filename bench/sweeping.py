"""What a sweep costs on top of its points, and what points share.

The points are custom_onnx of the demo model at other temperatures: real packaging, real checks.
Without a sweep, the same workflow is called for the same configs in one process, one after another.

- ``own``: seconds a point that the sweep's command takes over that loop, both with their start.
- ``growth``: points that fail at once (a precision that the CPU has not): seconds a point of the
  last twenty of 200 over those of the first twenty.
- ``builds``: four points at once in four processes that want the same ONNX model, which nobody has
  built: how often it was built.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean

from bench import figures, work
from bench.figures import Figure
from slmflow.checkout import PROJECT_ROOT

POINTS = 10
MANY, ENDS = 200, 20


def main() -> None:
    parser = work.parser("sweeping", __doc__, rounds=1)
    parser.add_argument("--only", choices=("own", "growth", "builds"))
    parser.add_argument("--loop", action="store_true", help="(what a round runs without a sweep)")
    options = parser.parse_args()
    place = work.prepare(options.work)
    if options.loop:
        _loop()
        return
    parts = {"own": _own, "growth": _growth, "builds": _builds}
    chosen = [options.only] if options.only else list(parts)
    found: list[Figure] = []
    for name in chosen:
        found += parts[name](place, options.rounds)
    figures.show("sweeping", found)
    figures.write(options.json, "sweeping", found)


def _own(place: Path, rounds: int) -> list[Figure]:
    own, share = [], []
    _warm(place)
    for _ in range(rounds):
        with work.run_store(place):
            loop = _timed([sys.executable, "-m", "bench.sweeping", "--loop", "--work", str(place)])
        with work.run_store(place):
            sweep = _timed(_command(f"search.temperature={_temperatures()}"))
        own.append((sweep - loop) / POINTS)
        share.append(sweep / loop)
    return [
        Figure(f"own cost of a sweep of {POINTS}, a point", own, "s", at_most=1.5),
        Figure("the sweep's command over the bare loop", share),
    ]


def _growth(place: Path, rounds: int) -> list[Figure]:
    grown, cost = [], []
    for _ in range(rounds):
        with work.run_store(place) as uri:
            command = _command(f"search.top_k=range({MANY})", "hardware.precision=bf16")
            subprocess.run(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, check=False)
            begun = _begun(uri)
        steps = [after - before for before, after in pairwise(begun)]
        grown.append(mean(steps[-ENDS:]) / mean(steps[:ENDS]))
        cost.append(mean(steps))
    return [
        Figure(f"a point: last {ENDS} of {MANY} over the first {ENDS}", grown, at_most=1.1),
        Figure(f"a point that fails at once, mean of {MANY}", cost, "s"),
    ]


def _builds(place: Path, rounds: int) -> list[Figure]:
    made, more = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=place) as empty, work.run_store(place):
            kept = os.environ["SLMFLOW_CACHE"]
            os.environ["SLMFLOW_CACHE"] = empty
            command = _command(
                "search.temperature=0.0,0.1,0.2,0.3",
                "hydra/launcher=joblib",
                "hydra.launcher.n_jobs=4",
            )
            cold = _timed(command)
            made.append(float(len(list(Path(empty, "onnx").glob("*.json")))))
            warm = _timed([*command, "sweep.resume=never"])
            shutil.rmtree(Path(empty, "onnx"))
            one = _timed(_command("search.temperature=0.0", "sweep.resume=never"))
            one_warm = _timed(_command("search.temperature=0.0", "sweep.resume=never"))
            os.environ["SLMFLOW_CACHE"] = kept
        more.append((cold - warm) / (one - one_warm))
    return [
        Figure("builds of one ONNX model by four points at once", made, "", at_most=1),
        Figure("what the build adds to four points, over one", more),
    ]


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "entrypoints.custom_onnx", *arguments]


def _temperatures() -> str:
    return ",".join(f"{0.1 * number:.1f}" for number in range(POINTS))


def _warm(place: Path) -> None:
    with work.run_store(place):
        work.check(_run(_command()))


def _timed(command: Sequence[str]) -> float:
    started = time.monotonic()
    work.check(_run(command))
    return time.monotonic() - started


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)


def _begun(uri: str) -> list[float]:
    """When each point began, in seconds, in order."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, "tags.`slmflow.sweep.point` != ''", max_results=1000)
    return sorted(run.info.start_time / 1000 for run in found)


def _loop() -> None:
    """The same points without a sweep: each config composed and its workflow called."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    from slmflow import cli
    from slmflow.config.load import without_hydra
    from slmflow.config.store import register

    register()
    cli.silence_libraries()
    for temperature in _temperatures().split(","):
        with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
            overrides = [f"search.temperature={temperature}"]
            config = compose("custom_onnx", overrides, return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            cli.run_workflow("custom_onnx", without_hydra(config))


if __name__ == "__main__":
    main()
