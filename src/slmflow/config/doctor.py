"""Settings of doctor: what is looked at, and how long it may take."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from slmflow.config.schema import Versions, WeightsPlace
from slmflow.served.search import SearchOptions


class Kind(StrEnum):
    transformers_pipeline = "transformers_pipeline"
    custom_onnx = "custom_onnx"


@dataclass
class Doctor:
    kinds: list[Kind] = field(default_factory=lambda: list(Kind))  # of models that shall work here
    length: int = 4096  # tokens of prompt and answer that memory must do for
    seconds: float = 2.3  # from the start; who is asked and has not answered by then has failed
    json: bool = False  # the findings for a program, in place of the table

    def __post_init__(self) -> None:
        """Raise ``ValueError`` naming the key, its value and what is allowed."""
        if not self.kinds:
            raise ValueError(f"doctor.kinds is empty; allowed: {', '.join(Kind)}, or both")
        if self.length < 2:
            raise ValueError(f"doctor.length is {self.length}; allowed: 2 or more")
        if self.seconds <= 0:
            raise ValueError(f"doctor.seconds is {self.seconds}; allowed: seconds above 0")


@dataclass
class DoctorConfig(Versions):
    """Of the entry point doctor."""

    search: SearchOptions = MISSING
    weights: WeightsPlace = WeightsPlace.once
    doctor: Doctor = field(default_factory=Doctor)
