"""The schema of every config group: types, allowed values, units and cross-field checks.

One spelling everywhere: config key = dataclass field = override = MLflow parameter. Checks read
nothing but the values: no environment, no network, no disk.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from omegaconf import MISSING

from slmflow.config.evaluation import Ask, LmEval, ParitySettings, Score, SpeedSettings
from slmflow.config.gate import Gate
from slmflow.config.prediction import Engine, Predict
from slmflow.config.sweep import Sweep
from slmflow.served.search import SearchOptions

Key = TypeVar("Key", bound=StrEnum)
Value = TypeVar("Value", bound=StrEnum)


class Target(StrEnum):
    cpu = "cpu"
    cuda = "cuda"
    directml = "directml"
    mps = "mps"


class Device(StrEnum):
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Provider(StrEnum):
    cpu = "cpu"
    cuda = "cuda"
    dml = "dml"


class Precision(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"


class WeightsPlace(StrEnum):
    once = "once"  # stored once, whatever is packaged from them: links, or a reference
    own = "own"  # copied into the folder of each model


class TaskName(StrEnum):
    chat = "chat"
    prompt = "prompt"


DTYPES = {
    Device.cpu: (Dtype.float32, Dtype.bfloat16),
    Device.cuda: (Dtype.float32, Dtype.bfloat16, Dtype.float16),
    Device.mps: (Dtype.float32, Dtype.bfloat16, Dtype.float16),
}
PRECISIONS = {
    Provider.cpu: (Precision.fp32, Precision.int8, Precision.int4),
    Provider.cuda: tuple(Precision),
    Provider.dml: (Precision.fp16, Precision.int4),
}
"""What the ONNX Runtime model builder (onnxruntime-genai 0.18) can write for a provider."""

REGISTERED_NAME = re.compile(r"[\w.-]+")
BLOCK_SIZES = (None, 16, 32, 64, 128, 256)
ACCURACY_LEVELS = (None, 0, 1, 2, 3, 4)
PACKAGES = ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-genai-directml")


@dataclass
class Prebuilt:
    """A folder of the publisher's ONNX repository, and what it was built for."""

    folder: str = MISSING
    provider: Provider = MISSING
    precision: Precision = MISSING
    block_size: int | None = None  # int4 and int8 only
    accuracy_level: int | None = None  # int4 and int8 only


@dataclass
class OnnxSource:
    """Where ready-made ONNX models lie; without a fitting one, the model is built.

    A prebuilt folder fits when it has the hardware's provider and precision, and the block size
    and accuracy level where the hardware names them. The first that fits is taken.
    """

    source: str | None = None  # hub id or folder; null: always build
    revision: str | None = None  # branch, tag or commit; null: the default branch
    prebuilt: list[Prebuilt] = field(default_factory=list)


@dataclass
class Probe:
    """One question that every packaged model is asked before its run counts as succeeded."""

    question: str = "What is the capital of Spain?"
    expect: str | None = None  # a text that the answer must contain; null: any answer


@dataclass
class Model:
    name: str = MISSING  # of the registered model
    source: str = MISSING  # hub id, or folder (relative ones: from the repository's root)
    revision: str | None = None  # branch, tag or commit; null: the default branch
    trust_remote_code: bool = False  # load by the checkpoint's own code, once trust confirms it
    onnx: OnnxSource = field(default_factory=OnnxSource)
    probe: Probe = field(default_factory=Probe)

    def __post_init__(self) -> None:
        if not REGISTERED_NAME.fullmatch(self.name):
            raise ValueError(
                f"model.name is {self.name!r}; allowed: letters, digits, '_', '-' and '.'"
            )


@dataclass
class Task:
    name: TaskName = MISSING


@dataclass
class Hardware:
    target: Target = MISSING
    device: Device = MISSING  # transformers
    dtype: Dtype = MISSING  # transformers
    provider: Provider = MISSING  # ONNX: execution provider
    precision: Precision = MISSING  # ONNX
    block_size: int | None = None  # ONNX int4, int8: weights that share one scale
    accuracy_level: int | None = None  # ONNX int4, int8: activations 4 int8, 3 bf16, 2 fp16, 1 fp32
    symmetric: bool = True  # ONNX int4, int8: no zero points
    package: str = PACKAGES[0]  # ONNX: the pip package that runs it
    threads: Any = "auto"  # int, or auto: the cores that the process has when it loads the model

    def __post_init__(self) -> None:
        """Raise ``ValueError`` naming the keys, their values and the valid pairs."""
        _pair("hardware.dtype", self.dtype, "hardware.device", self.device, DTYPES)
        _pair("hardware.precision", self.precision, "hardware.provider", self.provider, PRECISIONS)
        _one_of("hardware.block_size", self.block_size, BLOCK_SIZES)
        _one_of("hardware.accuracy_level", self.accuracy_level, ACCURACY_LEVELS)
        _one_of("hardware.package", self.package, PACKAGES)
        # type(): true and false are int, too
        if self.threads != "auto" and not (type(self.threads) is int and self.threads > 0):
            raise ValueError(
                f"hardware.threads is {self.threads!r}; allowed: auto, or a number from 1"
            )

    @property
    def quantised(self) -> bool:
        return self.precision in (Precision.int4, Precision.int8)


@dataclass
class Data:
    name: str | None = None  # null: as the file, folder or dataset is called
    path: str = MISSING  # file, folder or mlflow:DATASET; relative: from the repository's root
    limit: int | None = None  # rows; null: all
    seed: int | None = None  # of the sample of limit rows; null: the first ones

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"data.limit is {self.limit}; allowed: 1 or more, or null (all rows)")


@dataclass
class PackagingConfig:
    """Of the entry points transformers_pipeline and custom_onnx."""

    model: Model = MISSING
    task: Task = MISSING
    search: SearchOptions = MISSING
    hardware: Hardware = MISSING
    weights: WeightsPlace = WeightsPlace.once
    trust: str | None = None  # NAME@REVISION of code that may run; see model.trust_remote_code
    sweep: Sweep = field(default_factory=Sweep)


@dataclass
class TransformersPipelineConfig(PackagingConfig):
    def __post_init__(self) -> None:
        _needs_chat("transformers_pipeline", self.task)


@dataclass
class CustomOnnxConfig(PackagingConfig):
    pass


@dataclass
class EvaluationSettings:
    """What evaluate and main share."""

    data: Data = MISSING
    ask: Ask = field(default_factory=Ask)
    score: Score = field(default_factory=Score)
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    parity: ParitySettings = field(default_factory=ParitySettings)
    gate: Gate | None = None  # what a model must reach; null: nothing is asked
    promote: bool = False  # move the champion's alias to the model that passes the gate
    trace: bool = True  # every row with its scores as an MLflow trace
    lm_eval: LmEval = field(default_factory=LmEval)

    def __post_init__(self) -> None:
        if self.promote and self.gate is None:
            raise ValueError("promote=true needs a gate to pass; add gate=standard")


@dataclass
class Versions:
    """Which of the registered versions: those of a model, for a task and a hardware."""

    model: Model = MISSING
    task: Task = MISSING
    hardware: Hardware = MISSING


@dataclass
class EvaluateConfig(EvaluationSettings, Versions):
    """Of the entry point evaluate."""

    search: SearchOptions | None = None  # null: as each model was packaged
    models: list[str] = field(default_factory=list)  # URIs; none: the current one of each kind
    sweep: Sweep = field(default_factory=Sweep)


@dataclass
class PredictConfig(Versions):
    """Of the entry point predict."""

    input: str = MISSING  # file or folder, path or URL; relative: from the repository's root
    output: str = MISSING  # folder, path or URL
    engine: Engine = field(default_factory=Engine)
    predict: Predict = field(default_factory=Predict)
    search: SearchOptions | None = None  # null: as the model was packaged
    model_uri: str | None = None  # null: the current version of the model, custom_onnx first


@dataclass
class MaterialiseConfig:
    """Of the entry point materialise."""

    model_uri: str = MISSING


@dataclass
class Serve:
    host: str = "127.0.0.1"  # of the address to listen on; see README for others than loopback
    port: int = 8000  # 0: any that is free
    queue: int = 64  # requests that may wait; one more is answered with 429
    timeout: float = 300.0  # seconds from a request to its last token
    max_body_bytes: int = 1_048_576  # of one request
    max_new_tokens: int | None = None  # of one answer; null: what the model's context allows
    max_choices: int = 16  # answers that one request may ask for: n of each prompt

    def __post_init__(self) -> None:
        least = {"port": 0, "queue": 1, "max_body_bytes": 1, "max_choices": 1}
        for name, value in least.items():
            _at_least(f"serve.{name}", getattr(self, name), value)
        _at_least("serve.max_new_tokens", self.max_new_tokens, 1)
        if self.port > 65_535:
            raise ValueError(f"serve.port is {self.port}; allowed: 0 (any free one) to 65535")
        if self.timeout <= 0:
            raise ValueError(f"serve.timeout is {self.timeout}; allowed: seconds above 0")


@dataclass
class ServeConfig:
    """Of the entry point serve."""

    model: Model = MISSING
    task: Task = MISSING
    hardware: Hardware = MISSING
    serve: Serve = field(default_factory=Serve)
    search: SearchOptions | None = None  # null: as the model was packaged
    model_uri: str | None = None  # null: the current version of the model, custom_onnx first
    trace: bool = False  # served requests as MLflow traces
    trace_rate: float = 1.0  # share of the requests that are traced

    def __post_init__(self) -> None:
        if not 0 <= self.trace_rate <= 1:
            raise ValueError(f"trace_rate is {self.trace_rate}; allowed: 0 to 1 (every request)")


@dataclass
class MainConfig(EvaluationSettings, PackagingConfig):
    """Of the entry point main."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _needs_chat("main", self.task)


def _needs_chat(entry_point: str, task: Task) -> None:
    if task.name is not TaskName.chat:
        raise ValueError(
            f"task is {task.name}, and {entry_point} packages a transformers model, which serves "
            f"task=chat only; for task={task.name} use the entry point custom_onnx"
        )


def _pair(name: str, value: Value, of: str, key: Key, table: dict[Key, tuple[Value, ...]]) -> None:
    if value not in table[key]:
        valid = "; ".join(f"{of}={k}: {', '.join(values)}" for k, values in table.items())
        raise ValueError(f"{name}={value} does not go with {of}={key}; valid pairs: {valid}")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name} is {value}; allowed: {least} or more")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"{name} is {_spelt(value)}; allowed: {', '.join(_spelt(a) for a in allowed)}"
        )


def _spelt(value: object) -> str:
    return "null" if value is None else str(value)
