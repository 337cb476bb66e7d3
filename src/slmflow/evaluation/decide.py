"""From figures to the registry: the gate's decision, recorded on versions, and the alias moved."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from slmflow import console
from slmflow.config.evaluation import SpeedSettings
from slmflow.config.gate import Gate
from slmflow.errors import ConfigError
from slmflow.evaluation.gate import judge
from slmflow.evaluation.results import ConditionOutcome, Evaluation, GateOutcome
from slmflow.evaluation.speed import MEASURED
from slmflow.tracking import promotion
from slmflow.tracking.registry import find_version
from slmflow.weights.materialise import materialise


def check_measured(gate: Gate, speed: SpeedSettings) -> None:
    """Raise ``ConfigError`` for a condition on what will not be measured."""
    unmeasured = [name for name in gate.conditions if name in MEASURED]
    if unmeasured and not speed.rounds:
        name = unmeasured[0]
        raise ConfigError(
            f"gate.conditions.{name} needs a measured speed, and speed.rounds is 0; choose "
            f"speed=standard, or take the condition out: ~gate.conditions.{name}"
        )


def with_incumbent(uris: Sequence[str], alias: str, promote: bool) -> tuple[list[str], str | None]:
    """The URIs with the alias's version first, and that version; None where there is none yet.

    Raises ``ConfigError`` where the URIs are versions of several registered models or of none, or
    where one that could be promoted is no version.
    """
    versions = {uri: find_version(uri) for uri in uris}
    names = {version.name for version in versions.values() if version is not None}
    if len(names) != 1:
        given = ", ".join(sorted(names)) or "none"
        raise ConfigError(
            f"a gate judges versions of one registered model; the models given are of: {given}. "
            "Give models=models:/NAME/VERSION,..."
        )
    strangers = [uri for uri, version in versions.items() if version is None]
    if promote and strangers:
        raise ConfigError(
            f"promote=true, and {strangers[0]} is no registered version; leave it out, or register "
            "it first"
        )
    incumbent = promotion.incumbent(names.pop(), alias)
    if incumbent is None:
        return list(uris), None
    pinned = {
        uri: uri if version is None else f"models:/{version.name}/{version.version}"
        for uri, version in versions.items()
    }
    others = [uri for uri in uris if pinned[uri] != incumbent]
    if not others:
        raise ConfigError(f"{incumbent} is the champion itself; give models=... to judge beside it")
    return [incumbent, *others], incumbent


def decide(evaluation: Evaluation, gate: Gate, alias: str, incumbent: str | None) -> Evaluation:
    """The evaluation with the gate's decision. Nothing is moved."""
    label = evaluation.candidates[0].label if incumbent is not None else None
    candidates, comparisons = evaluation.candidates, evaluation.comparisons
    decision = judge(gate, candidates, comparisons, alias, label, incumbent)
    return replace(evaluation, decision=decision)


def carry_out(evaluation: Evaluation) -> Evaluation:
    """Tag every judged version with its decision; move the alias to the chosen one.

    Raises ``TrackingError`` where the incumbent is not the one any more that was compared with.
    """
    decision = evaluation.decision
    assert decision is not None
    candidates = {candidate.label: candidate for candidate in evaluation.candidates}
    promoted = None
    for outcome in decision.candidates:
        candidate = candidates[outcome.label]
        if candidate.name is None or candidate.version is None:
            continue
        tags = _tags(evaluation, outcome)
        if outcome.label != decision.chosen:
            promotion.record(candidate.name, candidate.version, tags)
            continue
        with console.step(f"promote {candidate.label}") as told:
            name, version = candidate.name, candidate.version
            materialise(candidate.uri)  # what is in use depends on no other model
            promotion.promote(name, version, decision.alias, decision.incumbent, tags)
            promoted = candidate.uri
            told.append(f"{decision.alias} points at {promoted}")
    return replace(evaluation, decision=replace(decision, promoted=promoted))


def _brief(outcome: ConditionOutcome) -> dict[str, Any]:
    """Without its words, which a tag has no room for."""
    return {name: value for name, value in asdict(outcome).items() if name != "words"}


def _tags(evaluation: Evaluation, outcome: GateOutcome) -> dict[str, str]:
    decision = evaluation.decision
    assert decision is not None
    return {
        "gate": decision.gate,
        "gate.decision": "passed" if outcome.passed else "refused",
        "gate.conditions": json.dumps([_brief(one) for one in outcome.outcomes]),
        "gate.alias": decision.alias,
        "gate.incumbent": decision.incumbent or "none",
        "gate.run_id": evaluation.run_id,
        "data.digest": f"sha256:{evaluation.dataset.digest}",
    }
