"""The schema of the group ``gate``: what a candidate must show before an alias moves to it."""

import math
from dataclasses import dataclass, field, fields

from omegaconf import MISSING


@dataclass
class Condition:
    """Of one metric. What is null asks for nothing."""

    at_least: float | None = None  # the candidate's own figure
    at_most: float | None = None
    change_at_least: float | None = None  # candidate minus incumbent; negative: it may fall
    change_at_most: float | None = None
    ratio_at_least: float | None = None  # candidate over incumbent: speed, memory, size
    ratio_at_most: float | None = None


KINDS = tuple(kind.name for kind in fields(Condition))
PAIRS = tuple(zip(KINDS[::2], KINDS[1::2], strict=True))


@dataclass
class Gate:
    name: str = MISSING
    prefer: str = "decode_tokens_per_second"  # the metric that decides among those that pass
    conditions: dict[str, Condition] = field(default_factory=dict)  # by metric

    def __post_init__(self) -> None:
        """Raise ``ValueError`` naming the key, its value and what is allowed."""
        if not self.conditions:
            raise ValueError(
                "gate.conditions is empty; allowed: one metric or more, "
                "as in gate.conditions.exact_match.at_least=0.8"
            )
        for metric, condition in self.conditions.items():
            _check(f"gate.conditions.{metric}", condition)


def _check(key: str, condition: Condition) -> None:
    given = {kind: getattr(condition, kind) for kind in KINDS}
    asked = {kind: bound for kind, bound in given.items() if bound is not None}
    if not asked:
        raise ValueError(
            f"{key} asks for nothing; allowed: one or more of {', '.join(KINDS)}, or ~{key} to "
            "drop the metric"
        )
    for kind, bound in asked.items():
        if not math.isfinite(bound):
            raise ValueError(f"{key}.{kind} is {bound}; allowed: a finite number, or null")
        if kind.startswith("ratio") and bound <= 0:
            raise ValueError(f"{key}.{kind} is {bound}; allowed: above 0 (1: as the incumbent)")
    for least, most in PAIRS:
        if least in asked and most in asked and asked[least] > asked[most]:
            raise ValueError(
                f"{key}.{least} is {asked[least]} and {key}.{most} is {asked[most]}, which nothing "
                f"can meet; allowed: {least} up to {most}"
            )
