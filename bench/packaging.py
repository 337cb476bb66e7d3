"""Packaging: time against a plain copy, new disk, peak memory of the process that logs weights.

Weights of a real model's size, written for the purpose and removed afterwards: a transformers
checkpoint with the exact shape of Phi-3-mini (3.8 billion parameters, bfloat16, 7.6 GB in shards of
5 GB), and a folder of ONNX files of which only the size is right (2.6 GB, as its int4 model). Each
logging is a process of its own, on the disk of the weights; have TMPDIR there too.

- first: from a folder that others may write, so that it is copied once; nothing is known of it
- again: the same once more, into the same tracking store
- links: from files that nobody writes again (the hub's cache, a built model), nothing known of them

The peak is VmHWM of /proc/self/status, so this needs Linux. Logging includes the import of
transformers, where that is needed; the whole process also that of MLflow. The check in a fresh
process, which loads the weights, is not part of it.
"""

import argparse
import gc
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
from bench.figures import Figure, show, write
from slmflow import console
from slmflow.served.search import SearchOptions
from slmflow.sources import LocalModel

KINDS = ("transformers", "onnx")
PHI3_MINI = Shape(layers=32, hidden=3072, intermediate=8192, heads=32)
GIGABYTES = {"transformers": PHI3_MINI.parameters * 2 / 1e9, "onnx": 2.6}
SHARD_BYTES = 5_000_000_000
MEMORY_TARGET = 1.0  # GB, whatever the size
COPIES, FIXED = 1.2, 4.0  # the first packaging: at most so many times cp -r, and seconds on top
AGAIN_TARGET, LINKS_TARGET = 5.0, 8.0  # seconds
DISK_TARGET = 1.0  # MB
CHUNK_BYTES = 16_000_000
PEAK, SECONDS, WHOLE = "peak_gb", "seconds", "whole_seconds"
FIRST, AGAIN, LINKS = "first", "again", "links"


def main() -> None:
    parser = work.parser("packaging", __doc__, rounds=3)
    parser.add_argument("--gigabytes", type=float, help="of another size")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument(
        "--child", nargs=3, metavar=("KIND", "FOLDER", "CASE"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.child:
        kind, folder, case = options.child
        print(json.dumps(log(kind, Path(folder), case == LINKS)))
        return
    place = work.prepare(options.work)
    figures = [
        figure
        for kind in ([options.only] if options.only else KINDS)
        for figure in measure(kind, options.gigabytes or GIGABYTES[kind], place, options.rounds)
    ]
    show("packaging weights", figures)
    write(options.json, "packaging", figures)


def measure(kind: str, gigabytes: float, place: Path, rounds: int) -> list[Figure]:
    name = f"{kind}, {gigabytes:.1f} GB"
    copies: list[float] = []
    disk: list[float] = []
    found: dict[str, list[dict[str, float]]] = {FIRST: [], AGAIN: [], LINKS: []}
    with tempfile.TemporaryDirectory(prefix="weights-", dir=place) as folder:
        weights = Path(folder) / kind
        with console.step(f"write {name}"):
            write_weights(kind, weights, gigabytes)
        copy_seconds(weights, Path(folder) / "copy")  # uncounted: the first touches new memory
        with console.progress(f"package and copy {name}", rounds) as bar:
            for _ in range(rounds):
                copies.append(copy_seconds(weights, Path(folder) / "copy"))
                with work.run_store(Path(folder)):
                    found[FIRST].append(package(kind, weights, FIRST, Path(folder) / "cache"))
                    before = disk_bytes(Path(folder))
                    found[AGAIN].append(package(kind, weights, AGAIN, Path(folder) / "cache"))
                    disk.append((disk_bytes(Path(folder)) - before) / 1e6)
                with work.run_store(Path(folder)):
                    found[LINKS].append(package(kind, weights, LINKS, Path(folder) / "other"))
                for cache in ("cache", "other"):
                    shutil.rmtree(Path(folder) / cache)
                bar.advance()

    def all_of(case: str, key: str) -> list[float]:
        return [one[key] for one in found[case]]

    on_top = [s - COPIES * c for s, c in zip(all_of(FIRST, SECONDS), copies, strict=True)]
    peaks = [max(one[PEAK] for one in round_) for round_ in zip(*found.values(), strict=True)]
    return [
        Figure(f"{name}: cp -r", copies, "s"),
        Figure("  first: logging", all_of(FIRST, SECONDS), "s"),
        Figure(f"  first: over {COPIES:g}x cp -r", on_top, "s", at_most=FIXED),
        Figure("  again: logging", all_of(AGAIN, SECONDS), "s", at_most=AGAIN_TARGET),
        Figure("  again: the whole process", all_of(AGAIN, WHOLE), "s"),
        Figure("  again: new disk", disk, "MB", at_most=DISK_TARGET),
        Figure("  links: the whole process", all_of(LINKS, WHOLE), "s", at_most=LINKS_TARGET),
        Figure("  peak memory", peaks, "GB", at_most=MEMORY_TARGET),
    ]


def package(kind: str, weights: Path, case: str, cache: Path) -> dict[str, float]:
    os.environ["SLMFLOW_CACHE"] = str(cache)
    os.sync()  # it does not pay for what others wrote
    started = time.perf_counter()
    measured = work.measured_by(["bench.packaging", "--child", kind, str(weights), case])
    return {**measured, WHOLE: time.perf_counter() - started}


def disk_bytes(folder: Path) -> int:
    """Each inode once."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({stat.st_ino: stat.st_blocks * 512 for stat in stats}.values())


def write_weights(kind: str, folder: Path, gigabytes: float) -> None:
    count = int(gigabytes * 1e9)
    if kind == "transformers":
        write_checkpoint(folder, PHI3_MINI.of_bytes(count), shard_bytes=SHARD_BYTES)
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


def log(kind: str, folder: Path, frozen: bool) -> dict[str, float]:
    """What this process took and held, in seconds and GB."""
    gc.set_threshold(100_000, 50, 50)  # as every entry point does, before it imports
    import mlflow

    from slmflow.packaging.log_model import Packaging, log_onnx, log_transformers

    settings = {
        "task": "chat",
        "model": "bench",
        **asdict(SearchOptions()),
        "threads": "auto",
    }
    files = tuple(sorted(path.name for path in folder.iterdir()))
    weights = LocalModel(folder, "bench", "sha256:0", files, frozen=frozen)
    packaging = Packaging(weights, settings, "What is the capital of Spain?", "bench")
    with mlflow.start_run():
        started = time.perf_counter()
        if kind == "transformers":
            log_transformers(packaging, "bfloat16")
        else:
            log_onnx(packaging, "chat", "onnxruntime-genai")
        seconds = time.perf_counter() - started
    return {PEAK: peak_memory() / 1e9, SECONDS: seconds}


def peak_memory() -> int:
    """Bytes of memory that this process ever had resident at once."""
    with Path("/proc/self/status").open() as status:
        peak = next(line for line in status if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


if __name__ == "__main__":
    main()
