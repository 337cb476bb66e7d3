"""What a gate asks, what it finds, and what it says."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from slmflow.config.explain import explain, is_config_error
from slmflow.config.gate import KINDS, Condition, Gate
from slmflow.config.load import typed
from slmflow.errors import ConfigError
from slmflow.evaluation.gate import GateRefused, judge
from slmflow.evaluation.results import (
    CandidateResult,
    Comparison,
    ConditionOutcome,
    Decision,
    Difference,
    FailedMetric,
    Figure,
    Kind,
    Verdict,
)

ALIAS = "champion-cpu"
CHAMPION = "models:/demo/1"
CONF = Path(__file__).resolve().parents[1] / "conf"


def figure(value: float, low: float | None = None, high: float | None = None) -> Figure:
    return Figure(value, value if low is None else low, value if high is None else high)


def candidate(label: str, **figures: Figure) -> CandidateResult:
    number = label.removeprefix("v")
    return CandidateResult(
        label=label,
        uri=f"models:/demo/{number}",
        kind=Kind.packaged,
        name="demo",
        version=number,
        runtime=None,
        weights=None,
        digest="",
        figures=figures,
    )


def comparison(
    label: str,
    changes: Mapping[str, Figure] | None = None,
    ratios: Mapping[str, Figure] | None = None,
) -> Comparison:
    differences = {
        metric: Difference(change, Verdict.no_difference_shown, None, None)
        for metric, change in (changes or {}).items()
    }
    return Comparison(label, "v1", differences, ratios or {}, agreement=1.0)


V1 = candidate(
    "v1", correct=figure(0.94, 0.9, 0.97), speed=figure(36.0, 35.0, 37.0), errors=figure(0.0)
)
V2 = candidate(
    "v2", correct=figure(0.84, 0.71, 0.92), speed=figure(31.0, 30.0, 33.0), errors=figure(2.0)
)
V2_AGAINST_V1 = comparison(
    "v2", {"correct": figure(-0.1, -0.11, 0.02)}, {"speed": figure(0.86, 0.82, 0.95)}
)


def gate(metric: str, prefer: str = "speed", **bounds: float) -> Gate:
    return Gate(name="tried", prefer=prefer, conditions={metric: Condition(**bounds)})


def outcome_of(metric: str, kind: str, bound: float, of: CandidateResult = V2) -> ConditionOutcome:
    asked = gate(metric, **{kind: bound})
    decision = judge(asked, [V1, of], [V2_AGAINST_V1], ALIAS, "v1", CHAMPION)
    (outcome,) = decision.candidates[0].outcomes
    assert outcome.condition == f"{kind} {bound:g}"
    assert decision.candidates[0].passed is outcome.holds
    assert decision.chosen == ("v2" if outcome.holds else None)
    return outcome


@pytest.mark.parametrize(
    ("metric", "kind", "bound", "holds", "judged", "words"),
    [
        (
            *("correct", "at_least", 0.7, True, 0.71),
            "correct must be at least 0.7; it is 0.84 and may be as low as 0.71",
        ),
        # the mean would pass
        ("correct", "at_least", 0.8, False, 0.71, "it is 0.84 and may be as low as 0.71"),
        ("correct", "at_most", 0.95, True, 0.92, "it is 0.84 and may be as high as 0.92"),
        ("correct", "at_most", 0.9, False, 0.92, "correct must be at most 0.9; it is 0.84"),
        ("errors", "at_most", 0, False, 2, "errors must be at most 0; it is 2"),
        (
            *("correct", "change_at_least", -0.02, False, -0.11),
            "correct may fall by at most 0.02; it may fall by up to 0.11 (0.84 against 0.94)",
        ),
        ("correct", "change_at_least", -0.1, False, -0.11, "it may fall by up to 0.11"),
        ("correct", "change_at_least", -0.11, True, -0.11, "correct may fall by at most 0.11"),
        ("correct", "change_at_least", 0, False, -0.11, "correct may not fall; it may fall"),
        ("correct", "change_at_least", 0.1, False, -0.11, "correct must rise by at least 0.1"),
        (
            "correct",
            "change_at_most",
            0.02,
            True,
            0.02,
            "rise by at most 0.02; it may rise by up to",
        ),
        ("correct", "change_at_most", 0.01, False, 0.02, "may rise by at most 0.01"),
        ("correct", "change_at_most", -0.1, False, 0.02, "correct must fall by at least 0.1"),
        # no quality: the worst of the one against the best of the other
        ("speed", "change_at_least", -6.5, False, -7, "it may fall by up to 7 (31 against 36)"),
        ("speed", "change_at_least", -7, True, -7, "speed may fall by at most 7"),
        ("speed", "change_at_most", -2, True, -2, "it falls by at least 2"),
        ("errors", "change_at_most", 1, False, 2, "it rises by 2 (2 against 0)"),
        (
            *("speed", "ratio_at_least", 0.85, False, 0.82),
            "speed must be at least 0.85 times that of champion-cpu; it is 0.86 times and may be "
            "as low as 0.82 times (31 against 36)",
        ),
        ("speed", "ratio_at_least", 0.8, True, 0.82, "as low as 0.82 times"),
        ("speed", "ratio_at_most", 0.9, False, 0.95, "as high as 0.95 times"),
        ("speed", "ratio_at_most", 0.95, True, 0.95, "at most 0.95 times"),
    ],
)
def test_each_condition_is_judged_on_the_end_that_is_worse_and_said_in_words(
    metric: str, kind: str, bound: float, holds: bool, judged: float, words: str
) -> None:
    outcome = outcome_of(metric, kind, bound)
    assert (outcome.holds, outcome.judged) == (holds, pytest.approx(judged))
    assert words in outcome.words


def test_a_bound_that_is_met_but_for_rounding_is_met() -> None:
    rounded = replace(V2, figures={**V2.figures, "correct": figure(0.86 - 0.84 - 0.04)})
    assert rounded.figures["correct"].low != -0.02
    assert outcome_of("correct", "at_least", -0.02, rounded).holds


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_measured_does_not_hold_and_names_what_was(kind: str) -> None:
    outcome = outcome_of("corect", kind, 0.5)
    assert (outcome.holds, outcome.judged) == (False, None)
    assert (
        "of v2 it was not measured (did you mean correct?); there are correct, speed, errors"
        in (outcome.words)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_metric_that_failed_on_some_rows_does_not_hold(kind: str) -> None:
    failed = replace(V2, failed_metrics={"correct": FailedMetric(3, "no such column")})
    outcome = outcome_of("correct", kind, 0.5, failed)
    assert not outcome.holds
    assert "of v2 it could not be computed on 3 rows (no such column)" in outcome.words


def test_a_metric_that_failed_for_the_incumbent_cannot_be_compared() -> None:
    failing = replace(V1, failed_metrics={"correct": FailedMetric(1, "no")})
    asked = gate("correct", at_least=0.5, change_at_least=-0.5)
    decision = judge(asked, [failing, V2], [V2_AGAINST_V1], ALIAS, "v1", CHAMPION)
    own, change = decision.candidates[0].outcomes
    assert (own.holds, change.holds) == (True, False)
    assert "of v1 it could not be computed on 1 rows" in change.words


def test_a_ratio_of_what_has_none_does_not_hold() -> None:
    outcome = outcome_of("correct", "ratio_at_least", 0.1)
    assert not outcome.holds
    assert "ask for a change instead; there are speed" in outcome.words


def test_a_figure_that_is_no_number_does_not_hold() -> None:
    unknown = replace(V2, figures={"correct": figure(math.nan)})
    assert not outcome_of("correct", "at_least", 0, unknown).holds
    assert not outcome_of("correct", "at_most", 1, unknown).holds


def test_without_an_incumbent_comparisons_hold_and_say_why() -> None:
    asked = gate("correct", at_least=0.5, change_at_least=0.5, ratio_at_least=2)
    decision = judge(asked, [V2], [], ALIAS, None, None)
    own, change, ratio = decision.candidates[0].outcomes
    assert own.holds and change.holds and ratio.holds
    for outcome in (change, ratio):
        assert "champion-cpu points at no version yet" in outcome.words
    assert decision.incumbent is None
    assert decision.chosen == "v2"
    misspelt = judge(gate("corect", change_at_least=0), [V2], [], ALIAS, None, None)
    assert misspelt.chosen is None


def test_an_incumbent_that_was_not_evaluated_cannot_be_compared_with() -> None:
    asked = gate("correct", change_at_least=-1)
    decision = judge(asked, [V2], [], ALIAS, None, CHAMPION)
    (outcome,) = decision.candidates[0].outcomes
    assert not outcome.holds
    assert "the version that champion-cpu points at was not evaluated beside it" in outcome.words


def test_a_comparison_with_another_than_the_incumbent_is_not_taken_for_one() -> None:
    other = replace(V2_AGAINST_V1, reference="v3")
    asked = gate("correct", change_at_least=-1)
    assert judge(asked, [V1, V2], [other], ALIAS, "v1", CHAMPION).chosen is None


def test_the_incumbent_itself_is_not_judged() -> None:
    decision = judge(gate("correct", at_least=0), [V1], [], ALIAS, "v1", CHAMPION)
    assert (decision.candidates, decision.chosen) == ((), None)
    assert "nothing to judge but the incumbent" in str(GateRefused(decision))


def of_three(prefer: str) -> Decision:
    three = [
        candidate("v2", correct=figure(0.8), speed=figure(10.0), size_bytes=figure(5.0)),
        candidate("v3", correct=figure(0.9), speed=figure(10.0), size_bytes=figure(3.0)),
        candidate("v4", correct=figure(0.1), speed=figure(99.0), size_bytes=figure(1.0)),
        candidate("v5", correct=figure(0.9)),
    ]
    return judge(gate("correct", prefer, at_least=0.5), three, [], ALIAS, "v1", CHAMPION)


@pytest.mark.parametrize(
    ("prefer", "chosen"),
    [
        ("correct", "v3"),  # more is better; v5 ties and came later
        ("size_bytes", "v3"),  # less is better; v4 has least and did not pass
        ("speed", "v2"),  # a tie
        ("never_measured", "v2"),
    ],
)
def test_of_those_that_pass_the_preferred_is_chosen(prefer: str, chosen: str) -> None:
    decision = of_three(prefer)
    assert [outcome.passed for outcome in decision.candidates] == [True, True, False, True]
    assert decision.chosen == chosen


def test_a_refusal_names_each_condition_that_failed_of_each_candidate() -> None:
    conditions = {"correct": Condition(at_least=0.8), "errors": Condition(at_most=0)}
    slow = candidate("v3", correct=figure(0.5), errors=figure(0.0))
    decision = judge(Gate("tried", "speed", conditions), [V1, V2, slow], [], ALIAS, "v1", CHAMPION)
    error = GateRefused(decision)
    assert error.exit_code == 2
    assert str(error).splitlines() == [
        "no candidate passed the gate tried; champion-cpu stays on models:/demo/1",
        "  v2: correct must be at least 0.8; it is 0.84 and may be as low as 0.71",
        "  v2: errors must be at most 0; it is 2",
        "  v3: correct must be at least 0.8; it is 0.5",
    ]


NUMBERS = st.floats(-10, 10)


@st.composite
def figures(draw: st.DrawFn) -> Figure:
    low, value, high = sorted(draw(st.tuples(NUMBERS, NUMBERS, NUMBERS)))
    return Figure(value, low, high)


@given(
    metric=st.sampled_from(["correct", "speed", "unknown"]),
    kind=st.sampled_from(KINDS),
    bound=NUMBERS,
    tighter=st.floats(0, 10),
    own=figures(),
    champions=figures(),
    compared=figures(),
    first=st.booleans(),
)
def test_asking_for_more_never_turns_a_refusal_into_a_pass(
    metric: str, kind: str, bound: float, tighter: float,
    own: Figure, champions: Figure, compared: Figure, first: bool,
) -> None:  # fmt: skip
    one = candidate("v2", correct=own, speed=own)
    other = candidate("v1", correct=champions, speed=champions)
    against = comparison("v2", {"correct": compared}, {"speed": compared})
    incumbent = (None, None) if first else ("v1", CHAMPION)
    more = bound + tighter if kind.endswith("at_least") else bound - tighter
    assume(min(bound, more) > 0 or not kind.startswith("ratio"))
    asked, asked_more = (
        judge(gate(metric, **{kind: limit}), [other, one], [against], ALIAS, *incumbent)
        for limit in (bound, more)
    )
    passed, passed_more = (decision.candidates[-1].passed for decision in (asked, asked_more))
    assert passed or not passed_more


# The config


@dataclass
class Entry:
    """As an entry point has it."""

    gate: Gate | None = None
    promote: bool = False


@pytest.fixture(scope="module", autouse=True)
def composer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("conf")
    entry = {"defaults": ["schema/gated@_here_", {"gate": None}, "_self_"]}
    (folder / "entry.yaml").write_text(yaml.safe_dump(entry))
    (folder / "gate").symlink_to(CONF / "gate")
    ConfigStore.instance().store(group="schema", name="gated", node=Entry)
    with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        yield


def config_of(*overrides: str) -> Any:
    return typed(compose("entry", overrides=list(overrides)))


def refusal_of(*overrides: str) -> str:
    try:
        config = config_of(*overrides)
    except ConfigError as error:
        return str(error)
    except Exception as error:
        assert is_config_error(error), f"{error!r} would be shown as a bug"
        return explain(error)
    raise AssertionError(f"{overrides} was accepted: {config}")


GATES = sorted(path.stem for path in (CONF / "gate").glob("*.yaml"))


@pytest.mark.parametrize("option", GATES)
def test_every_gate_composes_and_bears_its_own_name(option: str) -> None:
    gate = config_of(f"gate={option}").gate
    assert isinstance(gate, Gate)
    assert gate.name == option
    assert all(isinstance(condition, Condition) for condition in gate.conditions.values())


def test_there_are_gates_and_none_is_chosen_unasked() -> None:
    assert set(GATES) >= {"first", "standard", "strict"}
    assert config_of().gate is None


def test_one_number_is_changed_and_the_rest_stays() -> None:
    plain = config_of("gate=standard").gate
    changed = config_of("gate=standard", "gate.conditions.correct.change_at_least=-0.01").gate
    assert changed.conditions["correct"] == Condition(change_at_least=-0.01)
    assert changed.conditions.keys() == plain.conditions.keys()
    assert changed.conditions["errors"] == plain.conditions["errors"] == Condition(at_most=0)


def test_a_condition_is_added_for_any_metric_and_taken_away() -> None:
    added = config_of("gate=standard", "+gate.conditions={rouge_l:{at_least:0.3}}").gate
    assert added.conditions["rouge_l"] == Condition(at_least=0.3)
    assert len(added.conditions) == len(config_of("gate=standard").gate.conditions) + 1
    assert "errors" not in config_of("gate=standard", "~gate.conditions.errors").gate.conditions


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("gate=standrd", ["gate=standrd", "did you mean standard?", "first, standard, strict"]),
        ("gate.conditions.correct.at_lest=1", ["at_lest", "did you mean at_least?"]),
        ("gate.conditions.rouge_l.at_least=1", ["rouge_l", "gate.conditions has correct, errors"]),
        ("+gate.conditions={rouge_l:{at_lest:1}}", ["rouge_l.at_lest", "did you mean at_least?"]),
        ("gate.conditions.errors.at_most=few", ["gate.conditions.errors.at_most", "'few'"]),
        ("gate.conditions.errors.at_most=null", ["gate.conditions.errors asks for nothing"]),
        ("gate.conditions.errors.at_most=nan", ["errors.at_most is nan", "a finite number"]),
        (
            "gate.conditions.errors.at_least=1",
            ["gate.conditions.errors.at_least is 1.0", "at_most is 0.0", "nothing can meet"],
        ),
        ("gate.conditions.errors.ratio_at_least=0", ["ratio_at_least is 0.0", "above 0"]),
        ("gate.conditions={}", []),
    ],
)
def test_a_wrong_gate_is_told_with_key_value_and_what_is_allowed(
    override: str, said: list[str]
) -> None:
    gate = [] if override.startswith("gate=") else ["gate=standard"]
    if not said:  # merged: an empty mapping changes nothing
        assert config_of(*gate, override).gate == config_of(*gate).gate
        return
    message = refusal_of(*gate, override)
    for part in said:
        assert part in message


@pytest.mark.parametrize("least", [kind for kind in KINDS if kind.endswith("at_least")])
def test_a_pair_that_nothing_can_meet_is_refused(least: str) -> None:
    most = least.replace("at_least", "at_most")
    with pytest.raises(ValueError, match=f"{least} is 2.0.*{most} is 1.0.*nothing can meet"):
        gate("correct", **{least: 2.0, most: 1.0})
    assert gate("correct", **{least: 1.0, most: 1.0}).conditions


def test_a_gate_that_asks_for_nothing_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gate\.conditions is empty.*at_least=0\.8"):
        OmegaConf.to_object(OmegaConf.structured(Gate(name="tried", conditions={})))
