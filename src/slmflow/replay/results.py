"""What a rerun found: the data that the page, the terminal and ``rerun.json`` show."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Sameness(StrEnum):
    identical = "identical"  # every byte, token or digit
    equal = "equal within tolerance"
    different = "different"
    noise = "varies"  # times, rates and memory: never the same, never counted
    unknown = "not compared"  # not recorded then; what is missing now is different


@dataclass(frozen=True)
class Finding:
    """One thing that both runs have, compared."""

    part: str  # which run: "custom_onnx", "evaluate, custom_onnx v2", "point 3"
    what: str  # "weights", "probe tokens", "exact_match"
    sameness: Sameness
    words: str  # "all 7 files", "0.83 -> 0.81"
    details: Sequence[str] = ()


def of_one_side(part: str, what: str, recorded_then: bool) -> Finding:
    """What the run of then gave and this one did not is a difference; the other way round there is
    nothing to compare with."""
    if recorded_then:
        return Finding(part, what, Sameness.different, "recorded then, and missing now")
    return Finding(part, what, Sameness.unknown, "not recorded then")


def first_other(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The place at which two sequences that differ part."""
    others = (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(others, min(len(one), len(other)))


@dataclass(frozen=True)
class Difference:
    """Between the circumstances of then and of now. ``then`` or ``now`` None: it is not there."""

    group: str  # a key of circumstances.MEANINGS
    name: str
    then: str | None
    now: str | None


@dataclass(frozen=True)
class Circumstances:
    """What has changed around the run. ``others``: packages without influence on numbers."""

    differences: Sequence[Difference] = ()
    others: Sequence[Difference] = ()
    advice: Sequence[str] = ()  # commands to get the code of then
    recorded: bool = True  # False: the run is older than this record

    def of(self, group: str) -> list[Difference]:
        return [one for one in self.differences if one.group == group]


@dataclass(frozen=True)
class Report:
    of: str  # run id
    run_id: str | None  # of the run that was made; None: it did not begin
    name: str  # "custom_onnx phi3-demo"
    entry_point: str
    began: str  # the run of then, in UTC
    pinned: Mapping[str, Any]  # dotted keys that were resolved then
    notes: Sequence[str]  # what else is not as it was recorded
    circumstances: Circumstances
    findings: Sequence[Finding]
    error: str | None = None  # why the run did not finish

    @property
    def verdict(self) -> Sameness:
        """The worst of what counts; unknown where nothing could be compared."""
        found = {finding.sameness for finding in self.findings}
        order = (Sameness.different, Sameness.equal, Sameness.identical)
        return next((one for one in order if one in found), Sameness.unknown)

    def of_sameness(self, sameness: Sameness) -> list[Finding]:
        return [finding for finding in self.findings if finding.sameness is sameness]

    def as_json(self) -> dict[str, Any]:
        return {"format": 1, "verdict": self.verdict, **asdict(self)}
