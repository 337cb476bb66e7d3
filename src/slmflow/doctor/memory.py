"""Whether a model fits into memory: weights, KV cache, and the ONNX builder where it has to run."""

from dataclasses import dataclass

from slmflow import machine
from slmflow.config.schema import Device, Precision, Provider
from slmflow.console import size
from slmflow.doctor.disk import onnx_bytes
from slmflow.doctor.finding import Finding, failure, ok, warning
from slmflow.doctor.needs import (
    BUILDER_FACTOR,
    DTYPE_BYTES,
    PACKED_FACTOR,
    PROCESS_BYTES,
    kv_cache_bytes,
    kv_value_bytes,
    transformers_bytes,
)
from slmflow.doctor.subject import Subject
from slmflow.doctor.weights import built
from slmflow.machine import Memory

CHECK = "memory"


@dataclass(frozen=True)
class Load:
    """Bytes of one process. ``sure``: no less will do, as far as weights and cache go."""

    kind: str
    sure: int
    rest: int  # the runtime's own, and more beams than one, an estimate
    told: str
    cure: str  # what needs less

    @property
    def bytes(self) -> int:
        return self.sure + self.rest


def check_memory(subject: Subject) -> Finding:
    loads = needs(subject)
    if loads is None:
        return warning(CHECK, f"what {subject.model.source} needs is not known: see weights")
    hardware = subject.hardware
    on_gpu = hardware.device is Device.cuda or hardware.provider is Provider.cuda
    gpu = machine.cuda_memory() if on_gpu else None
    where, has = ("GPU memory", gpu) if gpu is not None else ("memory", machine.memory())
    return judge(loads, has, where)


def needs(subject: Subject) -> list[Load] | None:
    """One process at a time: packaging holds no weights, checking and serving hold one model."""
    checkpoint, prebuilt = subject.checkpoint.result(), subject.prebuilt.result()
    hardware = subject.hardware
    shape = checkpoint.shape or (prebuilt.shape if prebuilt is not None else None)
    if not subject.kinds:
        return []
    if shape is None or (subject.transformers and not checkpoint.files):
        return None
    length = min(subject.length, shape.context)
    loads = []
    if subject.transformers:
        weights = transformers_bytes(checkpoint.tensors, shape, hardware.dtype)
        kv = kv_cache_bytes(shape, length, DTYPE_BYTES[hardware.dtype])
        told = f"weights {size(weights)} in {hardware.dtype}, {_cache(kv, subject.beams)}"
        cure = "hardware.dtype=bfloat16" if DTYPE_BYTES[hardware.dtype] == 4 else "model=..."
        rest = kv * (subject.beams - 1) + PROCESS_BYTES["transformers"]
        loads.append(Load("transformers", weights + kv, rest, told, cure))
    if subject.onnx:
        files = onnx_bytes(subject)
        if files is None:
            return None
        kv = kv_cache_bytes(shape, length, kv_value_bytes(hardware.precision, hardware.provider))
        told = f"weights {size(files)} in {hardware.precision}, {_cache(kv, subject.beams)}"
        packed = PACKED_FACTOR - 1 if hardware.quantised else 0
        cure = "model=..." if hardware.precision is Precision.int4 else "hardware.precision=int4"
        rest = int(files * packed) + kv * (subject.beams - 1) + PROCESS_BYTES["onnx"]
        loads.append(Load("ONNX", files + kv, rest, told, cure))
        if prebuilt is None and built(checkpoint, hardware) is None:
            most = BUILDER_FACTOR * checkpoint.tensors
            told = f"about {BUILDER_FACTOR} times the checkpoint"
            cure = "model=...   # one with a prebuilt ONNX model (model.onnx)"
            loads.append(Load("building ONNX", 0, most, told, cure))
    return loads


def _cache(kv: int, beams: int) -> str:
    """As each beam has a cache of its own."""
    return f"KV cache {size(kv * beams)}" + (f" for {beams} beams" if beams > 1 else "")


def judge(loads: list[Load], has: Memory, where: str) -> Finding:
    """Never enough is a failure, not now or not for sure a warning."""
    if not loads:
        return ok(CHECK, f"{size(has.available)} of {size(has.total)} {where} free")
    most = max(loads, key=lambda load: load.bytes)
    found = f"{size(has.available)} of {size(has.total)} {where} free"
    need = f"{most.kind} needs about {size(most.bytes)} ({most.told})"
    impossible = [load for load in loads if load.sure > has.total]
    if impossible:
        load = impossible[0]
        found = f"{size(has.total)} of {where} in all, {load.kind} needs {size(load.bytes)}"
        return failure(CHECK, f"{found} ({load.told})", load.cure)
    if most.bytes > has.available:
        return warning(CHECK, f"{found}; {need}", most.cure)
    return ok(CHECK, f"{found}; {need}")
