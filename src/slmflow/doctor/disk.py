"""Whether what a model needs fits on the disks that it goes to."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slmflow import cache
from slmflow.console import size
from slmflow.doctor.finding import Finding, failure, ok, warning
from slmflow.doctor.folder import existing, refusal
from slmflow.doctor.needs import built_onnx_bytes
from slmflow.doctor.stores import kind_of, local_path
from slmflow.doctor.subject import Subject
from slmflow.doctor.weights import Weights, built, hub_cache
from slmflow.packaging.onnx_build import BLOCK_SIZE

CHECK = "disk"
LITTLE = 200_000_000  # bytes: below, not even logs and reports are safe


@dataclass(frozen=True)
class Need:
    """Bytes for one purpose. ``sure``: they will be written, and are no upper bound."""

    purpose: str
    folder: Path
    bytes: int
    sure: bool
    variable: str  # of the environment, that moves it


@dataclass(frozen=True)
class Disk:
    """A file system: some folder on it, and the bytes that are free."""

    folder: Path
    free: int


def check_disk(subject: Subject) -> Finding:
    wanted = needs(subject)
    if wanted is None:
        return warning(CHECK, f"what {subject.model.source} needs is not known: see weights")
    disks = {need.folder: disk_of(need.folder) for need in wanted}
    return judge([(need, disks[need.folder]) for need in wanted])


def needs(subject: Subject) -> list[Need] | None:
    """None where nothing is known of the files, or of the shapes of what is to be built."""
    checkpoint, prebuilt = subject.checkpoint.result(), subject.prebuilt.result()
    build = subject.onnx and prebuilt is None
    onnx = onnx_bytes(subject) if subject.onnx else 0
    if onnx is None or ((subject.transformers or build) and not checkpoint.files):
        return None
    fetched = checkpoint.to_fetch if subject.transformers or build else 0
    fetched += prebuilt.to_fetch if subject.onnx and prebuilt is not None else 0
    made = onnx if build and built(checkpoint, subject.hardware) is None else 0
    kept = _copied(checkpoint) if subject.transformers else 0
    kept += _copied(prebuilt) if subject.onnx and prebuilt is not None else 0
    packaged = [checkpoint.size] * subject.transformers + [onnx] * subject.onnx
    return [
        Need("downloads", hub_cache(), fetched, True, "HF_HOME"),
        Need("ONNX to build", cache.root(), made, False, "SLMFLOW_CACHE"),
        Need("weights kept once", cache.root(), kept, False, "SLMFLOW_CACHE"),
        *_packaged(subject, packaged),
    ]


def _copied(weights: Weights) -> int:
    """Bytes that the store of weights copies: of the hub's files on its own disk it makes links."""
    linked = not weights.folder and disk_of(hub_cache()) == disk_of(cache.root())
    return 0 if linked else weights.size


def _packaged(subject: Subject, sizes: Sequence[int]) -> list[Need]:
    """Links where the store of weights is on the same disk, else each content once.

    ``weights=own`` copies, and has the files in a temporary folder before MLflow copies them.
    """
    place, needs = subject.artifacts.result(), []
    if subject.own:
        temporary = Path(tempfile.gettempdir())
        needs.append(Need("temporary copy", temporary, max(sizes, default=0), False, "TMPDIR"))
    if place is not None and kind_of(place) == "folder":
        where = local_path(place)
        if subject.own or disk_of(where) != disk_of(cache.root()):
            needs.append(Need("packaged", where, sum(sizes), False, "MLFLOW_TRACKING_URI"))
    return needs


def onnx_bytes(subject: Subject) -> int | None:
    """Of the ONNX model's files: the publisher's, those built earlier, else an estimate."""
    checkpoint, prebuilt = subject.checkpoint.result(), subject.prebuilt.result()
    if prebuilt is not None:
        return prebuilt.size if prebuilt.files else None
    there, shape, hardware = built(checkpoint, subject.hardware), checkpoint.shape, subject.hardware
    if there is not None or shape is None:
        return there
    block, stored = hardware.block_size or BLOCK_SIZE, checkpoint.tensors
    weights = built_onnx_bytes(stored, shape, hardware.precision, hardware.provider, block)
    return weights + checkpoint.size - stored  # tokenizer and settings go along


def judge(needs: Sequence[tuple[Need, Disk]]) -> Finding:
    """All that goes to one file system counts together."""
    full = [_one_disk(disk, needs) for disk in dict.fromkeys(disk for _, disk in needs)]
    bad = [finding for finding in full if finding is not None]
    if bad:
        return max(bad, key=lambda finding: finding.level == "failure")
    shown = "; ".join(
        f"{size(disk.free)} free on {disk.folder}, up to {size(_sum(needs, disk))} needed"
        for disk in dict.fromkeys(disk for _, disk in needs)
    )
    return ok(CHECK, shown)


def check_cache() -> Finding:
    """The folders of weights: a build or a download ends there."""
    for folder, variable in ((cache.root(), "SLMFLOW_CACHE"), (hub_cache(), "HF_HOME")):
        why_not = refusal(folder)
        if why_not is not None:
            if variable == "HF_HOME":  # what it holds can be used nevertheless
                return warning("cache", f"downloads: {why_not}", f"export {variable}=...")
            return failure("cache", why_not, f"export {variable}=...   # a folder of yours")
    return ok("cache", f"{cache.root()} and {hub_cache()} can be written to")


def disk_of(folder: Path) -> Disk:
    there = existing(folder)
    return Disk(_mount(there), shutil.disk_usage(there).free)


def _one_disk(disk: Disk, needs: Sequence[tuple[Need, Disk]]) -> Finding | None:
    here = [need for need, on in needs if on == disk and need.bytes]
    sure = sum(need.bytes for need in here if need.sure)
    told = ", ".join(f"{need.purpose} {size(need.bytes)}" for need in here)
    largest = max(here, key=lambda need: need.bytes, default=None)
    mend = f"export {largest.variable}=...   # on another disk" if largest else "free some"
    found = f"{size(disk.free)} free on {disk.folder}"
    if sure > disk.free:
        return failure(CHECK, f"{found}, too little for {told}", mend)
    if _sum(needs, disk) > disk.free:
        return warning(CHECK, f"{found}, up to {size(_sum(needs, disk))} needed: {told}", mend)
    return warning(CHECK, f"{found}: nearly full", mend) if disk.free < LITTLE else None


def _sum(needs: Sequence[tuple[Need, Disk]], disk: Disk) -> int:
    return sum(need.bytes for need, on in needs if on == disk)


def _mount(folder: Path) -> Path:
    """Where its file system begins."""
    path = folder.resolve()
    while not os.path.ismount(path) and path != path.parent:
        path = path.parent
    return path
