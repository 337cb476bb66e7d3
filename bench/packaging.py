"""Packaging: peak memory of the process that logs weights, and its time against a plain copy.

Weights of several sizes, written for the purpose and removed afterwards: transformers checkpoints,
and folders of ONNX files of which only the size is right. Each logging is a process of its own
with an empty tracking store on the disk of the weights; have TMPDIR there too. Its peak is VmHWM
of /proc/self/status, so this needs Linux. The time includes the import of transformers, where
that is needed. The check in a fresh process, which does load the weights, is not part of it.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench import work
from bench.checkpoint import DEMO, TOKENIZER_FILES, Shape, write_checkpoint
from bench.figures import Figure, ratios, show, write
from slmflow import console
from slmflow.served.search import SearchOptions
from slmflow.sources import LocalModel

KINDS = ("transformers", "onnx")
MEMORY_TARGET = 1.0  # GB, whatever the size
CHUNK_BYTES = 16_000_000
IMPORTED, PEAK, SECONDS = "imported_gb", "peak_gb", "seconds"


def main() -> None:
    parser = work.parser("packaging", __doc__, rounds=3)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 2, 4])
    parser.add_argument("--child", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    place = work.prepare(options.work)
    if options.child:
        print(json.dumps(log(options.child[0], Path(options.child[1]), place)))
        return
    figures = [
        figure
        for kind in KINDS
        for gigabytes in options.gigabytes
        for figure in measure(kind, gigabytes, place, options.rounds)
    ]
    show("logging weights", figures)
    write(options.json, "packaging", figures)


def measure(kind: str, gigabytes: float, place: Path, rounds: int) -> list[Figure]:
    name = f"{kind}, {gigabytes:g} GB"
    measured: list[dict[str, float]] = []
    copies: list[float] = []
    with tempfile.TemporaryDirectory(prefix="weights-", dir=place) as folder:
        weights = Path(folder) / kind
        with console.step(f"write {name}"):
            write_weights(kind, weights, int(gigabytes * 1e9))
        copy_seconds(weights, Path(folder) / "copy")  # uncounted: the first touches new memory
        with console.progress(f"log and copy {name}", rounds) as bar:
            for _ in range(rounds):
                copies.append(copy_seconds(weights, Path(folder) / "copy"))
                child = ["bench.packaging", "--work", str(place), "--child", kind, str(weights)]
                os.sync()  # neither pays for what the other wrote
                measured.append(work.measured_by(child))
                bar.advance()
    peak, seconds, imported = ([m[key] for m in measured] for key in (PEAK, SECONDS, IMPORTED))
    return [
        Figure(f"{name}: peak memory", peak, "GB", at_most=MEMORY_TARGET),
        Figure("  before logging", imported, "GB"),
        Figure("  time", seconds, "s"),
        Figure("  time over cp -r", ratios(seconds, copies)),
    ]


def write_weights(kind: str, folder: Path, count: int) -> None:
    if kind == "transformers":
        write_checkpoint(folder, Shape().of_bytes(count))
        return
    folder.mkdir()
    for name in TOKENIZER_FILES:
        shutil.copyfile(DEMO / name, folder / name)
    (folder / "genai_config.json").write_text("{}")
    (folder / "model.onnx").write_bytes(b"a graph would be small")
    random = np.random.default_rng(0)
    with (folder / "model.onnx.data").open("wb") as file:
        for written in range(0, count, CHUNK_BYTES):
            file.write(random.bytes(min(CHUNK_BYTES, count - written)))


def copy_seconds(weights: Path, copy: Path) -> float:
    os.sync()
    started = time.perf_counter()
    subprocess.run(["cp", "-r", weights, copy], check=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(copy)
    return seconds


def log(kind: str, folder: Path, place: Path) -> dict[str, float]:
    """What this process took and held, in seconds and GB."""
    import mlflow

    from slmflow.packaging.log_model import Packaging, log_onnx, log_transformers

    settings = {
        "task": "chat",
        "model": "bench",
        **asdict(SearchOptions()),
        "threads": "auto",
    }
    files = tuple(sorted(path.name for path in folder.iterdir()))
    weights = LocalModel(folder, "bench", "sha256:0", files)
    packaging = Packaging(weights, settings, "What is the capital of Spain?", "bench")
    with work.run_store(place), mlflow.start_run():
        imported = peak_memory()
        started = time.perf_counter()
        if kind == "transformers":
            log_transformers(packaging, "bfloat16")
        else:
            log_onnx(packaging, "chat", "onnxruntime-genai")
        seconds = time.perf_counter() - started
    return {IMPORTED: imported / 1e9, PEAK: peak_memory() / 1e9, SECONDS: seconds}


def peak_memory() -> int:
    """Bytes of memory that this process ever had resident at once."""
    with Path("/proc/self/status").open() as status:
        peak = next(line for line in status if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


if __name__ == "__main__":
    main()
