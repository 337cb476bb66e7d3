"""May a candidate take the incumbent's place? Pure: figures in, a decision with its reasons out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from slmflow.config.gate import KINDS, Gate
from slmflow.errors import UserError
from slmflow.evaluation.gate_words import asked, found, number
from slmflow.evaluation.results import (
    CandidateResult,
    Comparison,
    ConditionOutcome,
    Decision,
    Figure,
    GateOutcome,
)
from slmflow.figures import LOWER_IS_BETTER

ROUNDING = 1e-9  # 0.86 - 0.84 is a little more than 0.02 in binary


class GateRefused(UserError):
    """No candidate passed. Names every condition that did not hold, by candidate."""

    exit_code = 2  # 1 is an evaluation that failed; this one worked and says no

    def __init__(self, decision: Decision) -> None:
        where = f"{decision.alias} stays on {decision.incumbent or 'nothing'}"
        lines = [f"no candidate passed the gate {decision.gate}; {where}"]
        for candidate in decision.candidates:
            failed = [outcome.words for outcome in candidate.outcomes if not outcome.holds]
            lines += [f"  {candidate.label}: {words}" for words in failed]
        if not decision.candidates:
            lines.append("  there was nothing to judge but the incumbent itself")
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class _Case:
    """One candidate and what it is judged against."""

    candidate: CandidateResult
    alias: str
    has_incumbent: bool  # the alias points at a version
    incumbent: CandidateResult | None  # that version, where it was evaluated
    comparison: Comparison | None  # of the candidate with it


class _CannotJudge(Exception):
    """The condition does not hold; says why."""


def judge(
    gate: Gate,
    candidates: Sequence[CandidateResult],
    comparisons: Sequence[Comparison],
    alias: str,
    incumbent_label: str | None,
    incumbent_uri: str | None,
) -> Decision:
    """Each candidate but the incumbent, on the end of each interval that is worse for it.

    Where the alias points at nothing yet (``incumbent_uri`` None), conditions on a change or a
    ratio hold.
    """
    labels = {candidate.label: candidate for candidate in candidates}
    incumbent = labels.get(incumbent_label) if incumbent_label is not None else None
    against = {one.label: one for one in comparisons if one.reference == incumbent_label}
    outcomes = []
    for candidate in candidates:
        if candidate.label == incumbent_label or candidate.uri == incumbent_uri:
            continue
        comparison = against.get(candidate.label)
        case = _Case(candidate, alias, incumbent_uri is not None, incumbent, comparison)
        outcomes.append(_judge_one(gate, case))
    passed = [labels[outcome.label] for outcome in outcomes if outcome.passed]
    chosen = max(passed, key=lambda one: _rank(one, gate.prefer), default=None)
    return Decision(
        gate=gate.name,
        alias=alias,
        incumbent=incumbent_uri,
        candidates=tuple(outcomes),
        chosen=chosen.label if chosen is not None else None,
    )


def _rank(candidate: CandidateResult, metric: str) -> tuple[bool, float]:
    """Highest is best; a candidate without the figure comes last."""
    figure = candidate.figures.get(metric)
    if figure is None or math.isnan(figure.value):
        return False, 0.0
    return True, -figure.value if metric in LOWER_IS_BETTER else figure.value


def _judge_one(gate: Gate, case: _Case) -> GateOutcome:
    outcomes = tuple(
        _judge_condition(metric, kind, bound, case)
        for metric, condition in gate.conditions.items()
        for kind in KINDS
        if (bound := getattr(condition, kind)) is not None
    )
    passed = all(outcome.holds for outcome in outcomes)
    return GateOutcome(case.candidate.label, case.candidate.uri, passed, outcomes)


def _judge_condition(metric: str, kind: str, bound: float, case: _Case) -> ConditionOutcome:
    condition = f"{kind} {bound:g}"
    demand = asked(metric, kind, bound, case.alias)
    compares = kind.startswith(("change", "ratio"))
    try:
        _demand_measured(metric, case.candidate)
        if compares and not case.has_incumbent:
            words = f"{demand}; {case.alias} points at no version yet, so there is none to compare"
            return ConditionOutcome(metric, condition, True, None, None, words)
        figure = _figure(metric, kind, case)
    except _CannotJudge as reason:
        return ConditionOutcome(metric, condition, False, None, None, f"{demand}; {reason}")
    least = kind.endswith("at_least")
    judged = figure.low if least else figure.high
    holds = judged >= bound - ROUNDING if least else judged <= bound + ROUNDING
    words = f"{demand}; {found(kind, figure)}"
    if compares and case.incumbent is not None:
        words += _both(metric, case.candidate, case.incumbent)
    return ConditionOutcome(metric, condition, holds, judged, figure.value, words)


def _demand_measured(metric: str, candidate: CandidateResult) -> None:
    failed = candidate.failed_metrics.get(metric)
    if failed is not None:
        raise _CannotJudge(
            f"of {candidate.label} it could not be computed on {failed.rows} rows "
            f"({failed.message})"
        )
    if metric not in candidate.figures:
        names = _listed(metric, candidate.figures)
        raise _CannotJudge(f"of {candidate.label} it was not measured{names}")


def _figure(metric: str, kind: str, case: _Case) -> Figure:
    """What the condition is about: the candidate's figure, its change or its ratio."""
    if not kind.startswith(("change", "ratio")):
        return case.candidate.figures[metric]
    if case.incumbent is None or case.comparison is None:
        raise _CannotJudge(f"the version that {case.alias} points at was not evaluated beside it")
    _demand_measured(metric, case.incumbent)
    if kind.startswith("ratio"):
        ratios = case.comparison.ratios
        if metric not in ratios:
            names = _listed(metric, ratios)
            raise _CannotJudge(f"there is no ratio of it; ask for a change instead{names}")
        return ratios[metric]
    difference = case.comparison.differences.get(metric)
    if difference is not None:
        return difference.change
    # Figures that are not compared row by row: the extremes of the two, as far apart as can be.
    one, other = case.candidate.figures[metric], case.incumbent.figures[metric]
    return Figure(one.value - other.value, one.low - other.high, one.high - other.low)


def _both(metric: str, candidate: CandidateResult, incumbent: CandidateResult) -> str:
    one, other = candidate.figures[metric].value, incumbent.figures[metric].value
    return f" ({number(one)} against {number(other)})"


def _listed(metric: str, known: Mapping[str, object]) -> str:
    close = get_close_matches(metric, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{hint}; there are {', '.join(known) or 'none'}"
