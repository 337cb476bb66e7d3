"""Two ``evaluation.json``: every candidate's figures, what compares them, the gate's decision."""

from collections.abc import Iterator, Mapping
from typing import Any

from slmflow.replay import figures
from slmflow.replay.candidates import labels, paired
from slmflow.replay.record import Record
from slmflow.replay.results import Finding, Sameness, of_one_side

BESIDE = ("same_prompts", "same_prompt_tokens", "same_answers", "top1_agreement", "kl_mean")
"""Of a parity: what two models have in common, as numbers."""


def compare_evaluations(part: str, then: Record, now: Record) -> Iterator[Finding]:
    was, is_now = then.documents.get("evaluation.json"), now.documents.get("evaluation.json")
    if was is None and is_now is None:
        return
    if was is None or is_now is None:
        yield of_one_side(part, "evaluation", recorded_then=was is not None)
        return
    both = paired(was, is_now)
    yield from _candidates(part, was, is_now, both)
    yield from _comparisons(part, was, is_now, both)
    yield from _gate(part, was, is_now, both)


def _candidates(
    part: str, then: Mapping[str, Any], now: Mapping[str, Any], both: Mapping[str, str]
) -> Iterator[Finding]:
    mine = {one["label"]: one for one in now["candidates"]}
    for one in then["candidates"]:
        where = f"{part}, {one['label']}"
        if one["label"] not in both:
            yield of_one_side(where, "candidate", recorded_then=True)
            continue
        other = mine[both[one["label"]]]
        if one["uri"] == other["uri"]:
            yield _model(where, one, other)
        yield from figures.compare(where, _values(one), _values(other))
        yield from _intervals(where, one, other)
    for label in mine:
        if label not in both.values():
            yield of_one_side(f"{part}, {label}", "candidate", recorded_then=False)


def _comparisons(
    part: str, then: Mapping[str, Any], now: Mapping[str, Any], both: Mapping[str, str]
) -> Iterator[Finding]:
    """Of candidates that are there on both sides: of others, that is told already."""
    mine = {(one["label"], one["reference"]): one for one in now["comparisons"]}
    for one in then["comparisons"]:
        where = f"{part}, {one['label']} beside {one['reference']}"
        if one["label"] not in both or one["reference"] not in both:
            continue
        other = mine.get((both[one["label"]], both[one["reference"]]))
        if other is None:
            yield of_one_side(where, "comparison", recorded_then=True)
        else:
            yield from figures.compare(where, _beside(one), _beside(other))


def _model(part: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Finding:
    same = then["digest"] == now["digest"]
    words = str(then["uri"]) if same else f"{then['uri']} has other files by now"
    return Finding(part, "model", Sameness.identical if same else Sameness.different, words)


def _values(candidate: Mapping[str, Any]) -> dict[str, float]:
    return {name: figure["value"] for name, figure in candidate["figures"].items()}


def _bounds(candidate: Mapping[str, Any]) -> dict[str, float]:
    """Of intervals, which have a seed; not of times, which are extremes over rounds."""
    return {
        f"{name}.{end}": figure[end]
        for name, figure in candidate["figures"].items()
        if figure["low"] != figure["high"] and not figures.is_noise(name)
        for end in ("low", "high")
    }


def _intervals(part: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Finding]:
    """One finding where all are the same."""
    found = list(figures.compare(part, _bounds(then), _bounds(now)))
    if found and all(one.sameness is Sameness.identical for one in found):
        yield Finding(part, "intervals", Sameness.identical, f"all {len(found) // 2}")
    else:
        yield from found


def _beside(comparison: Mapping[str, Any]) -> dict[str, float]:
    parity = comparison.get("parity") or {}
    numbers = {name: parity[name] for name in BESIDE if parity.get(name) is not None}
    return {"agreement": comparison["agreement"], **numbers}


def _gate(
    part: str, then: Mapping[str, Any], now: Mapping[str, Any], both: Mapping[str, str]
) -> Iterator[Finding]:
    """Condition by condition. Those on times may fall either way, and with them the choice."""
    was, is_now = then.get("decision"), now.get("decision")
    if not was and not is_now:
        return
    if not was or not is_now:
        yield of_one_side(part, "gate", recorded_then=bool(was))
        return
    named = {label: label for label in labels(then)}, {now: then for then, now in both.items()}
    before, after = _outcomes(was, named[0]), _outcomes(is_now, named[1])
    others = [key for key in before if before[key] != after.get(key)]
    counted = [key for key in others if not figures.is_noise(key[1])]
    choices = _chosen(was, named[0]), _chosen(is_now, named[1])
    shown = " -> ".join(dict.fromkeys(choices))
    if counted:
        told = [f"{metric} {condition}" for _, metric, condition in counted]
        words = f"{len(counted)} conditions came out otherwise: {told[0]}"
        yield Finding(part, "gate", Sameness.different, words, told)
    elif others or choices[0] != choices[1]:
        yield Finding(part, "gate", Sameness.noise, f"{shown}, by what was timed")
    else:
        yield Finding(part, "gate", Sameness.identical, shown)


def _outcomes(
    decision: Mapping[str, Any], named: Mapping[str, str]
) -> dict[tuple[str, str, str], bool]:
    """``named``: labels of then by those of the decision."""
    return {
        (named.get(candidate["label"], ""), outcome["metric"], outcome["condition"]): outcome[
            "holds"
        ]
        for candidate in decision["candidates"]
        for outcome in candidate["outcomes"]
    }


def _chosen(decision: Mapping[str, Any], named: Mapping[str, str]) -> str:
    if decision["chosen"] is None:
        return "none passed"
    return f"{named.get(decision['chosen'], decision['chosen'])} passed"
