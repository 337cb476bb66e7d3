"""What was found, in sentences: the same ones in the HTML report, in Markdown, in the terminal.

A sentence that starts with a candidate's label has no full stop, so that it can go into a list.
"""

from datetime import datetime

from slmflow.drawing import units
from slmflow.evaluation.results import (
    CandidateResult,
    Cause,
    Comparison,
    DatasetFacts,
    Decision,
    Difference,
    Evaluation,
    Row,
    Verdict,
)
from slmflow.figures import LOWER_IS_BETTER

RIGHT_OR_WRONG = frozenset({"correct", "exact_match", "contains_answer"})
"""Metrics of which a 1 is a question answered right."""

ONE_ROUND = "One round was measured, so that no range can be told."
ROUNDS = (
    "Rounds of the candidates were interleaved, so that a busy machine met all of them alike. "
    "Rates and loading times are medians over the rounds; the range beside them is that of the "
    "slowest and the fastest round, not a confidence interval."
)
BOXES = (
    "Dot: median. Thick: the middle half of the measurements. Thin: from the fastest to the 99th "
    "percentile."
)
COLUMNS = (
    "first: seconds until the first token, what the runtime sets up for a request included; "
    "prefill: the prompt's tokens over that time. next: seconds from one token to the next; "
    "decode: tokens over all of that time, so that a stall counts there which p50 leaves out."
)
PARETO = (
    "The larger a mark, the more memory at its peak; a hollow one was not measured. The dashed "
    "line joins the candidates that no other beats in both."
)
QUALITY = (
    "Better and worse are differences too large for chance. No difference shown: one that matters "
    "would have been seen. Too few rows: one that matters could have been missed."
)
PARITY = (
    "Greedy answers to the same questions, and the first cause that explains why they differ. "
    "Agreement and KL divergence are taken while both models read the reference's own answer."
)
SLICES = (
    "Among many slices some differ by chance alone, the more so the fewer rows they have: "
    "take them as questions, not as findings."
)
FAILED = "Rows on which a metric failed are left out of its mean."
NO_QUALITY = "No quality metric applied to these rows, for want of references for example."
NO_SPEED = "Speed was not measured."


def against(comparison: Comparison, evaluation: Evaluation) -> str:
    """What choosing the candidate over the reference means, in a sentence."""
    metric = evaluation.primary
    difference = comparison.differences.get(metric)
    if difference is None:
        quality = f"shares no scored row with {comparison.reference}"
    elif metric in RIGHT_OR_WRONG:
        changed = _range(difference, "fewer", "more")
        quality = f"answers {changed} questions right than {comparison.reference}"
    else:
        quality = f"scores {_range(difference, 'lower', 'higher', metric)} in {metric}"
        quality = f"{quality} than {comparison.reference}"
    if difference is not None:
        quality = f"{quality} ({verdict(difference)})"
    return f"{comparison.label} {_listed([quality, *_costs(comparison)])}"


def alone(candidate: CandidateResult, evaluation: Evaluation) -> str:
    """The quality of one candidate, beside no other."""
    metric = evaluation.primary
    figure = candidate.figures.get(metric)
    if figure is None:
        return f"{candidate.label} has no score: no quality metric applied to its rows"
    value = units.show(metric, figure.value)
    if metric in RIGHT_OR_WRONG:
        said = f"{candidate.label} answers {value} of the questions right"
    else:
        said = f"{candidate.label} scores {value} in {metric}"
    width = units.spread(metric, figure.low, figure.value, figure.high)
    return f"{said} ({width} with {confidence(evaluation)} confidence)" if width else said


def verdict(difference: Difference) -> str:
    """The verdict with its evidence: "worse, p = 0.0002"."""
    if difference.verdict is Verdict.too_few_rows:
        needed = difference.rows_needed
        more = f": about {units.count(needed)} would be needed" if needed else ""
        evidence = units.p_value(difference.p_value)
        return f"too few rows to tell{f', {evidence}' if evidence else ''}{more}"
    evidence = units.p_value(difference.p_value)
    return ", ".join(filter(None, [difference.verdict.value, evidence]))


def verdicts(evaluation: Evaluation) -> list[str]:
    """A sentence a comparison; where there is none, a sentence a candidate."""
    if evaluation.comparisons:
        return [against(comparison, evaluation) for comparison in evaluation.comparisons]
    return [alone(candidate, evaluation) for candidate in evaluation.candidates]


def gate(decision: Decision) -> str:
    """What the gate decided and what became of it."""
    before = decision.incumbent or "no version yet"
    if decision.promoted:
        return f"{decision.chosen} passed: {decision.alias} now points at {decision.promoted} " + (
            f"(before: {before})"
        )
    stays = f"{decision.alias} still points at {before}"
    if decision.chosen:
        return f"{decision.chosen} passed and would be promoted; {stays}, as promotion is off"
    if len(decision.candidates) == 1:
        return f"{decision.candidates[0].label} did not pass; {stays}"
    return f"No candidate passed; {stays}"


def gate_passed(decision: Decision) -> bool:
    return any(candidate.passed for candidate in decision.candidates)


def rows(dataset: DatasetFacts) -> str:
    if dataset.rows == dataset.of:
        return f"all {units.count(dataset.rows)} rows"
    some = f"{units.count(dataset.rows)} of {units.count(dataset.of)} rows"
    return f"the first {some}" if dataset.seed is None else f"{some} (seed {dataset.seed})"


def confidence(evaluation: Evaluation) -> str:
    return f"{100 * evaluation.confidence:g}%"


def moment(iso: str) -> str:
    """ISO 8601 as a date that no reader can take for another."""
    then = datetime.fromisoformat(iso)
    return f"{then.day} {then:%B %Y, %H:%M} UTC"


def rounds(evaluation: Evaluation) -> str:
    speeds = [one.speed for one in evaluation.candidates if one.speed is not None]
    counts = [len(p.decode_tokens_per_second) for one in speeds for p in one.points]
    counts += [len(one.load_seconds) for one in speeds]
    return ROUNDS if max(counts, default=0) > 1 else ONE_ROUND


def not_measured(evaluation: Evaluation) -> list[str]:
    """Settings of speed that a candidate could not do."""
    return [
        f"{one.label} was not timed with {said}"
        for one in evaluation.candidates
        if one.speed is not None
        for said in one.speed.not_measured
    ]


def unanswered(candidate: CandidateResult, evaluation: Evaluation) -> str | None:
    """None where every row was answered, or nobody counted."""
    figure = candidate.figures.get("errors")
    if figure is None or figure.value == 0:
        return None
    number = units.show("errors", errors(candidate))
    why = f"; the first: {units.clip(candidate.first_error, 300)}" if candidate.first_error else ""
    return f"{candidate.label} gave no answer to {number} of {evaluation.dataset.rows} rows{why}"


def errors(candidate: CandidateResult) -> float | None:
    """Rows without an answer. As a mean over rows the figure is their share, else their number."""
    figure = candidate.figures.get("errors")
    return None if figure is None else round(figure.value * (figure.rows or 1))


def _range(difference: Difference, less: str, more: str, metric: str = "") -> str:
    """ "2.3 to 8 points fewer"; on both sides of 0: "between 2 points fewer and 1 point more"."""
    low, high = sorted((difference.change.low, difference.change.high))

    def side(value: float) -> str:
        if metric and not units.is_share(metric):
            return units.show(metric, abs(value))
        return units.points(value)

    unit = "" if metric and not units.is_share(metric) else " points"
    if low < 0 < high:
        return f"between {side(low)}{unit} {less} and {side(high)}{unit} {more}"
    ends = sorted({abs(low), abs(high)})
    shown = list(dict.fromkeys(side(end) for end in ends))
    return f"{' to '.join(shown)}{unit} {less if low < 0 else more}"


def _costs(comparison: Comparison) -> list[str]:
    """Speed and memory; where memory was not seen, the size."""
    said = []
    for name, other, same in (
        ("decode_tokens_per_second", "decodes {} as fast", "decodes about as fast"),
        ("first_token_seconds", "takes {} the time to the first token", ""),
        ("peak_memory_bytes", "needs {} the memory", "needs about as much memory"),
        ("size_bytes", "has {} the size", "is about as large"),
    ):
        figure = comparison.ratios.get(name)
        if figure is None or (name == "size_bytes" and "peak_memory_bytes" in comparison.ratios):
            continue
        shown = units.ratio(figure.value)
        if figure.low <= 1 <= figure.high or shown == units.ratio(1):
            said += [same] if same else []
        else:
            said.append(other.format(shown))
    return said


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def better_is(metric: str) -> str:
    return "lower is better" if metric in LOWER_IS_BETTER else "higher is better"


def scores(row: Row, label: str) -> str:
    given = row.scores.get(label, {})
    return ", ".join(f"{name} {value:.3g}" for name, value in given.items())


def parity_facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Names and values of what was counted; what could not be seen is left out."""
    parity = comparison.parity
    if parity is None:
        return []
    unit = "character" if parity.cause is Cause.unseen else "token"
    found = [
        ("same prompt", _of(parity.same_prompts, parity.rows)),
        ("same prompt tokens", _of(parity.same_prompt_tokens, parity.rows)),
        ("same answer", _of(parity.same_answers, parity.rows)),
        (f"first differing {unit}, median", _optional(parity.first_divergence)),
        ("top-1 agreement", _optional(parity.top1_agreement, "share")),
        ("KL, mean", _optional(parity.kl_mean, "kl", " nats a token")),
        ("KL, largest", _optional(parity.kl_max, "kl", " nats")),
    ]
    return [(name, value) for name, value in found if value]


def _of(number: int | None, rows: int) -> str:
    return "" if number is None else f"{units.count(number)} of {units.count(rows)}"


def _optional(value: float | None, name: str = "errors", unit: str = "") -> str:
    return "" if value is None else units.show(name, value) + unit
