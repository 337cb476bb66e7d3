"""What an evaluation found: the data that the report, the gate, MLflow and the terminal show.

Plain values only, so that ``as_json`` is the whole of it. Times are seconds, sizes bytes, rates
tokens a second.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    packaged = "packaged"  # made by this project: prompts, tokens and logits can be seen
    mlflow = "mlflow"  # any other MLflow model: only its answers
    endpoint = "endpoint"  # an OpenAI-compatible URL: only its answers


class Verdict(StrEnum):
    better = "better"
    worse = "worse"
    no_difference_shown = "no difference shown"  # one that matters would have been seen
    too_few_rows = "too few rows"


@dataclass(frozen=True)
class Figure:
    """A number and how far it can be trusted.

    ``low`` and ``high``: the confidence interval of a mean over rows; the extremes over the rounds
    of a speed; the value itself where it is exact (a size) or was measured once.
    """

    value: float
    low: float
    high: float
    rows: int | None = None  # that the figure is the mean of; None: no mean over rows


@dataclass(frozen=True)
class FailedMetric:
    """A metric that raised: on how many rows, and what it said first. Those rows are left out of
    its mean."""

    rows: int
    message: str


@dataclass(frozen=True)
class Difference:
    """Candidate minus reference over the rows that have both, and what may be said of it."""

    change: Figure
    verdict: Verdict
    p_value: float | None  # McNemar's exact test, two-sided; None where scores are not 0 or 1
    rows_needed: int | None  # where there are too few: how many would do, about


@dataclass(frozen=True)
class SpeedPoint:
    """One setting, all rounds together. Rates count the whole batch."""

    prompt_tokens: int
    new_tokens: int
    batch_size: int
    first_token_seconds: tuple[float, ...]  # a measurement each
    inter_token_seconds: tuple[float, ...]  # a step each; empty where it cannot be seen
    prefill_tokens_per_second: tuple[float, ...]  # a round each; empty where it cannot be seen
    decode_tokens_per_second: tuple[float, ...]  # a round each


@dataclass(frozen=True)
class Speed:
    points: tuple[SpeedPoint, ...]
    load_seconds: tuple[float, ...]  # a round each
    peak_memory_bytes: int | None
    device_memory_bytes: int | None  # None: no device, or it cannot be seen
    not_measured: tuple[str, ...] = ()  # settings that could not be, each with its reason


class Cause(StrEnum):
    """Why a candidate answers otherwise than the reference, the first that explains it."""

    none = "none"  # the same tokens
    template = "template"  # the rendered prompts differ
    tokenizer = "tokenizer"  # equal prompts become other tokens
    weights = "weights"  # equal tokens get other probabilities: quantisation, another dtype
    search = "search"  # equal probabilities, other answers: options or runtime
    unseen = "unseen"  # one of the two does not let its prompts and probabilities be seen


@dataclass(frozen=True)
class Parity:
    """A candidate beside the reference on the same questions, greedy.

    ``first_divergence`` counts tokens of the answer (characters where ``cause`` is unseen).
    ``top1_agreement`` and the KL divergence (nats, reference from candidate, a token) are
    teacher-forced: both read the reference's own prompt and answer.
    """

    rows: int
    cause: Cause
    words: str  # the cause in a sentence or two, with the evidence
    same_prompts: int | None  # rows; None where they cannot be seen
    same_prompt_tokens: int | None
    same_answers: int
    first_divergence: int | None = None  # median over the rows that diverge; None: none does
    top1_agreement: float | None = None  # share of tokens
    kl_mean: float | None = None
    kl_max: float | None = None
    example: tuple[str, str] | None = None  # the first prompts, else answers, that differ


@dataclass(frozen=True)
class CandidateResult:
    label: str  # short and unique: "custom_onnx v2"
    uri: str
    kind: Kind
    name: str | None  # of the registered model
    version: str | None
    runtime: str | None  # transformers_pipeline, custom_onnx
    weights: str | None  # their type: int4, float32
    digest: str  # SHA-256 of the model's files and settings
    figures: Mapping[str, Figure]  # by MLflow metric name: quality, speed, size, errors (rows)
    speed: Speed | None = None
    first_error: str | None = None  # of the first row that was not answered
    failed_metrics: Mapping[str, FailedMetric] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, Mapping[str, Figure]]] = field(default_factory=dict)
    """``slices[tag][value][metric]``"""


@dataclass(frozen=True)
class Comparison:
    """A candidate against the reference: the incumbent where there is one, else the first."""

    label: str
    reference: str
    differences: Mapping[str, Difference]  # by quality metric
    ratios: Mapping[str, Figure]  # candidate over reference: speed, memory, size
    agreement: float  # share of the rows answered with the same text
    parity: Parity | None = None


@dataclass(frozen=True)
class Row:
    """One example with every candidate's answer, by label."""

    id: str
    question: str
    references: tuple[str, ...]
    tags: Mapping[str, str]
    answers: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]  # scores[label][metric]; absent: does not apply


@dataclass(frozen=True)
class DatasetFacts:
    name: str
    source: str
    digest: str  # SHA-256 of the rows that were asked
    rows: int
    of: int  # rows that the source has
    seed: int | None  # of the sample; None: the first rows


@dataclass(frozen=True)
class ConditionOutcome:
    """One condition of the gate, with the bound that it was judged on."""

    metric: str
    condition: str  # as configured: "change_at_least -0.02"
    holds: bool
    judged: float | None  # the interval's bound; None where there is nothing to judge
    value: float | None
    words: str  # "exact_match may fall by 0.02 and falls by up to 0.11 (0.84 against 0.94)"


@dataclass(frozen=True)
class GateOutcome:
    """Of one candidate."""

    label: str
    uri: str
    passed: bool
    outcomes: tuple[ConditionOutcome, ...]


@dataclass(frozen=True)
class Decision:
    gate: str  # its name
    alias: str  # champion-cpu
    incumbent: str | None  # URI of the version that the alias pointed at; None: none yet
    candidates: tuple[GateOutcome, ...]
    chosen: str | None  # label of the one that passed and is preferred
    promoted: str | None = None  # URI; None: none passed, or promote=false


@dataclass(frozen=True)
class Evaluation:
    name: str
    run_id: str
    started: str  # ISO 8601, UTC
    seconds: float
    dataset: DatasetFacts
    primary: str  # the metric that the summary leads with
    metrics: tuple[str, ...]  # quality metrics, in order
    confidence: float  # 0.95
    candidates: tuple[CandidateResult, ...]
    comparisons: tuple[Comparison, ...]
    disagreements: tuple[Row, ...]  # where candidates differ most, most first
    environment: Mapping[str, str]  # CPU, cores, memory, GPU, Python, OS, library versions
    settings: Mapping[str, Any]  # of the evaluation
    decision: Decision | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
