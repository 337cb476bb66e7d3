"""Slurm: equal points on two nodes over the same points on one, one CPU a node and a point.

A point is a job that loads the int4 model and reads a fixed number of prompts of 512 tokens on one
core: reading is bound by the processor, where decoding is bound by the memory, which two nodes on
one machine share. The time is that of the launcher, from the first submission to the last result:
queue, start of Python and polling included. The cluster is tests/slurm_cluster.py, as root, with
what tests/install_slurm.sh installs.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import work
from bench.checkpoint import Shape
from bench.figures import Figure, ratios, show, write
from bench.slurm_point import Read
from slmflow import console
from slmflow.checkout import PROJECT_ROOT

TARGET = 0.6
NODES = {"one node": ["hydra.launcher.constraint=small"], "two nodes": []}
CONFIG = """\
token: 100
hydra:
  job: {name: points}
  output_subdir: null
"""


def main() -> None:
    parser = work.parser("slurm", __doc__, rounds=2)
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument(
        "--prompts", type=int, default=10, help="that each reads (default: %(default)s)"
    )
    options = parser.parse_args()
    place = work.prepare(options.work)
    from tests.slurm_cluster import missing, slurm_cluster

    if (reason := missing()) is not None:
        sys.exit(reason)
    task = Read(work.int4_model(Shape()).path, options.prompts)
    seconds: dict[str, list[float]] = {name: [] for name in NODES}
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", dir=place) as folder,
        slurm_cluster(Path(folder) / "cluster") as cluster,
        console.progress("rounds", options.rounds) as bar,
    ):
        os.environ.update(cluster.environment)
        os.environ["PYTHONPATH"] = f"{PROJECT_ROOT / 'src'}{os.pathsep}{PROJECT_ROOT}"
        for number in range(options.rounds):
            for name in NODES if number % 2 else reversed(NODES):
                seconds[name].append(run(task, options.points, NODES[name], Path(folder)))
            bar.advance()
    figures = compare(seconds)
    show(f"{options.points} points of {options.prompts} prompts", figures)
    write(options.json, "slurm", figures, points=options.points, prompts=options.prompts)


def compare(seconds: dict[str, list[float]]) -> list[Figure]:
    one, two = (seconds[name] for name in NODES)
    return [
        Figure("one node", one, "s"),
        Figure("two nodes", two, "s"),
        Figure("two over one", ratios(two, one), at_most=TARGET),
    ]


def run(task: Read, points: int, where: Sequence[str], folder: Path) -> float:
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    (folder / "conf").mkdir(exist_ok=True)
    (folder / "conf" / "points.yaml").write_text(CONFIG, "utf-8")
    with initialize_config_dir(str(folder / "conf"), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        typed = [f"hydra.sweep.dir={folder}", "hydra/launcher=submitit_slurm", *where]
        typed.append(f"hydra.launcher.submitit_folder={folder}")
        config = hydra.compose_config("points", typed, RunMode.MULTIRUN, from_shell=False)
        context = HydraContext(callbacks=Callbacks(), config_loader=hydra.config_loader)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=task, config=config
    )
    started = time.perf_counter()
    returned = launcher.launch([[f"token={100 + number}"] for number in range(points)], 0)
    seconds = time.perf_counter() - started
    assert len({one.return_value for one in returned}) == 1, "the points were not equal"
    return seconds


if __name__ == "__main__":
    main()
