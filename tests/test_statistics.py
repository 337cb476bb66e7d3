"""Intervals, tests and verdicts: against published values, scipy, and simulation."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from slmflow.evaluation.results import Difference, Figure, Verdict
from slmflow.evaluation.statistics import (
    difference,
    mcnemar,
    mean_interval,
    quantiles,
    ratio,
)

REFERENCE = Path(__file__).parent / "reference"
MIRRORED = {Verdict.better: Verdict.worse, Verdict.worse: Verdict.better}

Array = np.ndarray
RIGHT_WRONG = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
GRADES = st.floats(0, 1, allow_subnormal=False)
GRADED = st.lists(st.tuples(GRADES, GRADES), min_size=1, max_size=60)
PAIRS = RIGHT_WRONG | GRADED


def published(name: str) -> list[dict[str, Any]]:
    """The cases of a file; its ``source`` says where the values come from."""
    cases: list[dict[str, Any]] = json.loads((REFERENCE / f"{name}.json").read_text())["cases"]
    return cases


def interval(values: Any, seed: int = 1, resamples: int = 999) -> Figure:
    return mean_interval(values, 0.95, resamples, seed)


def compare(candidate: Any, reference: Any, matters: float = 0.05, seed: int = 1) -> Difference:
    return difference(
        candidate, reference, confidence=0.95, resamples=999, seed=seed, matters=matters
    )


def pairs(both: int, only_first: int, only_second: int, neither: int) -> tuple[Array, Array]:
    """Right and wrong answers of two models, by how many rows which of them got right."""
    counts = (both, only_first, only_second, neither)
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


def test_graded_scores_have_scipys_bootstrap_interval_of_the_mean() -> None:
    values = np.random.default_rng(7).beta(2, 2, size=300)
    found = mean_interval(values, 0.9, 2000, seed=3)
    own = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=2000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert found.rows == 300
    # in batches other draws are made than at once: the same up to the bootstrap's own noise
    assert (found.low, found.high) == pytest.approx((own.low, own.high), abs=1e-3)


def test_a_paired_difference_has_scipys_bootstrap_interval_of_the_changes() -> None:
    rng = np.random.default_rng(7)
    ours, theirs = rng.random(300), rng.random(300)
    own = stats.bootstrap(
        (ours - theirs,),
        np.mean,
        n_resamples=999,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    change = compare(ours, theirs).change
    assert (change.low, change.high) == pytest.approx((own.low, own.high), abs=4e-3)
    assert change.value == pytest.approx(np.mean(ours - theirs))


def holds(figure: Figure, truth: float) -> bool:
    """A bound may be the truth itself, but for rounding: means of few values lie on a grid."""
    return figure.low - 1e-9 <= truth <= figure.high + 1e-9


def coverage(draw: Any, truth: float, rows: int) -> float:
    rng = np.random.default_rng(11)
    found = [interval(draw(rng, rows), seed=index, resamples=499) for index in range(200)]
    return float(np.mean([holds(figure, truth) for figure in found]))


@pytest.mark.parametrize("rows", [5, 20, 100])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, n: rng.random(n) < 0.5, 0.5),
        (lambda rng, n: rng.random(n) < 0.97, 0.97),
        (lambda rng, n: rng.beta(2, 5, n), 2 / 7),
        (lambda rng, n: np.where(rng.random(n) < 0.05, 0.0, 0.9), 0.855),  # seldom a bad row
        (lambda rng, n: rng.beta(0.2, 0.2, n), 0.5),
    ],
    ids=["half right", "nearly all right", "graded", "seldom bad", "good or bad"],
)
def test_95_of_100_intervals_hold_the_truth(draw: Any, truth: float, rows: int) -> None:
    assert coverage(draw, truth, rows) >= 0.9


def test_95_of_100_intervals_of_a_difference_hold_the_truth() -> None:
    rng = np.random.default_rng(5)
    held = []
    for index in range(200):
        skill = rng.random(60)  # rows that are easy for one are easy for the other
        ours, theirs = rng.random(60) < skill, rng.random(60) < 0.8 * skill
        change = compare(ours, theirs, seed=index).change
        held.append(holds(change, 0.1))
    assert np.mean(held) >= 0.9


def test_equal_models_are_called_different_no_more_often_than_was_allowed() -> None:
    rng = np.random.default_rng(5)
    verdicts = [
        compare(rng.random(40) < 0.7, rng.random(40) < 0.7, seed=index).verdict
        for index in range(200)
    ]
    assert np.mean([verdict in MIRRORED for verdict in verdicts]) <= 0.07


@pytest.mark.parametrize("case", published("wilson"))
def test_rows_all_right_or_all_wrong_have_wilsons_interval(case: dict[str, Any]) -> None:
    found = interval(np.arange(case["rows"]) < case["right"])
    assert (found.low, found.high) == pytest.approx((case["low"], case["high"]), abs=1e-6)


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_right_or_wrong_scores_never_claim_more_than_wilsons_interval(rows: list[bool]) -> None:
    found = interval(rows, resamples=199)
    own = stats.binomtest(sum(rows), len(rows)).proportion_ci(0.95, "wilson")
    assert found.high - found.low >= own.high - own.low - 1e-9


@pytest.mark.parametrize("rows", [1, 6, 100, 10_000])
@pytest.mark.parametrize("grade", [0.0, 0.3, 1.0])
def test_graded_scores_that_are_all_equal_are_as_sure_as_the_rule_of_three(
    grade: float, rows: int
) -> None:
    values = np.full(rows, grade)
    if grade in (0, 1):
        values[0] = 0.5  # else they are right or wrong
    found = interval(values)
    unseen = 1 - 0.05 ** (1 / rows)
    assert unseen <= 3 / rows
    mean = values.mean()
    assert found.low <= mean * (1 - unseen) + 1e-12
    assert found.high >= mean + (1 - mean) * unseen - 1e-12
    if grade == 0.3:
        assert found.low == pytest.approx(0.3 * (1 - unseen))
        assert found.high == pytest.approx(0.3 + 0.7 * unseen)


@settings(deadline=None)
@given(st.lists(GRADES | st.sampled_from([0.0, 1.0]), min_size=1, max_size=50))
@example([1.0])
@example([0.0])
@example([0.5])
def test_an_interval_holds_its_mean_and_stays_on_the_scale(values: list[float]) -> None:
    found = interval(values, resamples=99)
    assert -1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12
    assert found.low < found.high  # finitely many rows are never certain
    assert found.value == pytest.approx(np.mean(values))
    assert found.rows == len(values)


def test_values_beyond_0_and_1_have_the_bootstraps_interval() -> None:
    found = interval([2.0, 3.0, 5.0, 7.0] * 10)
    assert 3.5 < found.low < 4.25 < found.high < 5
    assert interval([3.0]) == Figure(3.0, 3.0, 3.0, 1)


def test_more_confidence_and_fewer_rows_widen_an_interval() -> None:
    values = np.random.default_rng(1).random(400)
    narrow, wide = (mean_interval(values, level, 999, 1) for level in (0.8, 0.99))
    assert wide.low < narrow.low and narrow.high < wide.high
    few = mean_interval(values[:40], 0.8, 999, 1)
    assert few.high - few.low > 2 * (narrow.high - narrow.low)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(1).random(50)
    assert interval(values, seed=4) == interval(values, seed=4)
    assert interval(values, seed=4) != interval(values, seed=5)
    assert compare(values, values[::-1], seed=4) == compare(values, values[::-1], seed=4)
    assert compare(values, values[::-1], seed=4) != compare(values, values[::-1], seed=5)


def test_ten_thousand_rows_need_no_more_than_some_tens_of_megabytes() -> None:
    values = np.random.default_rng(1).random(10_000)
    tracemalloc.start()
    found = interval(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6  # at once: 999 * 10,000 * 16 bytes
    assert found.high - found.low == pytest.approx(4 * values.std() / 100, rel=0.1)


@pytest.mark.parametrize("values", [[], [[0.5, 0.5]], [float("nan")], [0.5, float("inf")]])
def test_no_rows_or_no_numbers_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="one finite value a row"):
        interval(values)


@pytest.mark.parametrize("case", published("mcnemar"), ids=lambda case: str(case["only_first"]))
def test_mcnemars_p_is_the_published_one(case: dict[str, Any]) -> None:
    counts = [case[name] for name in ("both", "only_first", "only_second", "neither")]
    p_value = compare(*pairs(*counts)).p_value
    assert p_value == pytest.approx(case["p"], abs=case["within"])


@given(RIGHT_WRONG)
def test_mcnemars_p_is_the_binomial_test_of_the_discordant_rows(
    rows: list[tuple[bool, bool]],
) -> None:
    gained = sum(ours and not theirs for ours, theirs in rows)
    lost = sum(theirs and not ours for ours, theirs in rows)
    expected = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1
    assert mcnemar([int(ours) - int(theirs) for ours, theirs in rows]) == pytest.approx(expected)


def test_graded_scores_have_no_mcnemar_test() -> None:
    assert compare([0.5, 1, 0], [1, 1, 0]).p_value is None
    assert compare([1, 1, 0], [0.5, 1, 0]).p_value is None


@pytest.mark.parametrize(
    ("counts", "matters", "verdict"),
    [
        # both right, only the candidate, only the reference, neither
        ((6, 0, 0, 0), 0.05, Verdict.too_few_rows),
        ((0, 0, 0, 1), 0.05, Verdict.too_few_rows),
        ((0, 0, 1, 0), 0.05, Verdict.too_few_rows),
        ((0, 0, 5, 0), 0.05, Verdict.too_few_rows),  # McNemar's p is 0.0625
        ((0, 0, 6, 0), 0.05, Verdict.worse),  # and 0.03
        ((0, 6, 0, 0), 0.05, Verdict.better),
        ((300, 2, 25, 73), 0.05, Verdict.worse),
        ((300, 25, 2, 73), 0.05, Verdict.better),
        ((300, 13, 14, 73), 0.05, Verdict.no_difference_shown),
        ((300, 13, 14, 73), 0.01, Verdict.too_few_rows),
        ((400, 0, 0, 0), 0.05, Verdict.no_difference_shown),
        ((400, 0, 0, 0), 0.005, Verdict.too_few_rows),
        ((395, 0, 5, 0), 0.05, Verdict.no_difference_shown),  # p is 0.0625
        ((9000, 30, 80, 890), 0.02, Verdict.worse),  # small, and certain
    ],
)
def test_a_verdict_needs_rows_enough_for_it(
    counts: tuple[int, int, int, int], matters: float, verdict: Verdict
) -> None:
    candidate, reference = pairs(*counts)
    found = compare(candidate, reference, matters)
    assert found.verdict is verdict
    assert found.change.value == pytest.approx((counts[1] - counts[2]) / sum(counts))
    assert found.change.rows == sum(counts)
    assert (found.rows_needed is not None) == (verdict is Verdict.too_few_rows)


@pytest.mark.parametrize(
    ("candidate", "reference", "verdict"),
    [
        ([0.5], [0.5], Verdict.too_few_rows),
        ([0.9], [0.1], Verdict.too_few_rows),
        ([0.4] * 6, [0.5] * 6, Verdict.too_few_rows),
        ([0.4, 0.400001] * 3, [0.5] * 6, Verdict.too_few_rows),  # alike is as few as equal
        ([0.4] * 400, [0.5] * 400, Verdict.worse),
        ([0.5] * 400, [0.5] * 400, Verdict.no_difference_shown),
        (np.linspace(0.2, 0.8, 90), np.linspace(0, 0.6, 90), Verdict.better),
    ],
)
def test_graded_scores_are_judged_by_their_interval(
    candidate: Any, reference: Any, verdict: Verdict
) -> None:
    assert compare(candidate, reference).verdict is verdict


def test_no_discordant_row_still_leaves_a_band_that_one_more_does_not_narrow() -> None:
    none, one = compare(*pairs(400, 0, 0, 0)).change, compare(*pairs(399, 0, 1, 0)).change
    assert none.low == pytest.approx(-(1 - 0.05 ** (1 / 400)))
    assert none.high == pytest.approx(-none.low)
    assert one.low < none.low
    assert one.high > 0


def test_the_rows_needed_are_those_that_shrink_the_interval_to_what_matters() -> None:
    found = compare(*pairs(60, 13, 14, 13), matters=0.05)
    half = (found.change.high - found.change.low) / 2
    exact = 100 * (half / 0.05) ** 2
    assert found.rows_needed is not None
    assert exact <= found.rows_needed <= exact * 1.1
    assert found.rows_needed % 10 == 0
    enough = round(found.rows_needed / 100) + 1
    many = compare(*pairs(60 * enough, 13 * enough, 14 * enough, 13 * enough), matters=0.05)
    assert many.verdict is Verdict.no_difference_shown


@settings(deadline=None)
@given(PAIRS, st.floats(0.001, 0.9))
def test_the_rows_needed_are_more_than_there_are_in_two_digits(
    rows: list[tuple[float, float]], matters: float
) -> None:
    found = compare(*zip(*rows, strict=True), matters=matters)
    if found.rows_needed is not None:
        assert found.rows_needed > len(rows)
        assert found.rows_needed == float(f"{found.rows_needed:.1e}")


@settings(deadline=None)
@given(PAIRS)
@example([(0, 1)] * 6)
@example([(1, 1)] * 6)
def test_candidate_and_reference_exchanged_turn_the_difference_round(
    rows: list[tuple[float, float]],
) -> None:
    ours, theirs = (np.array(column, float) for column in zip(*rows, strict=True))
    one, other = compare(ours, theirs), compare(theirs, ours)
    assert other.change.value == pytest.approx(-one.change.value)
    assert other.change.low == pytest.approx(-one.change.high)
    assert other.change.high == pytest.approx(-one.change.low)
    assert other.verdict is MIRRORED.get(one.verdict, one.verdict)
    assert (other.p_value is None) == (one.p_value is None)
    assert other.p_value is None or other.p_value == pytest.approx(one.p_value)


@settings(deadline=None)
@given(PAIRS)
def test_a_verdict_follows_from_the_interval_and_the_p_value(
    rows: list[tuple[float, float]],
) -> None:
    found = compare(*zip(*rows, strict=True))
    change = found.change
    assert -1 - 1e-12 <= change.low <= change.value <= change.high <= 1 + 1e-12
    if found.verdict in MIRRORED:
        assert change.low > 0 if found.verdict is Verdict.better else change.high < 0
        assert found.p_value is None or found.p_value < 0.05
    else:
        few = (change.high - change.low) / 2 > 0.05
        assert found.verdict is (Verdict.too_few_rows if few else Verdict.no_difference_shown)


def test_a_model_does_not_differ_from_itself() -> None:
    values = np.random.default_rng(1).random(500)
    found = compare(values, values)
    assert found.change.value == 0
    assert found.verdict is Verdict.no_difference_shown


def test_arrays_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rows of the candidate, 3 of the reference"):
        compare([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="matters=0"):
        compare([1, 0], [1, 0], matters=0)


def test_a_ratio_is_the_geometric_mean_of_the_rounds_and_their_extremes() -> None:
    assert ratio([20, 80, 40], [10, 10, 10]) == Figure(pytest.approx(4), 2, 8)
    assert ratio([5], [10]) == Figure(0.5, 0.5, 0.5)


SPEEDS = st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6)), min_size=1, max_size=9)


@given(SPEEDS)
def test_a_ratio_lies_between_its_extremes_and_its_inverse_is_the_ratio_exchanged(
    rounds: list[tuple[float, float]],
) -> None:
    ours, theirs = map(list, zip(*rounds, strict=True))
    one, other = ratio(ours, theirs), ratio(theirs, ours)
    assert one.low <= one.value <= one.high
    assert other.value == pytest.approx(1 / one.value)
    assert (other.low, other.high) == pytest.approx((1 / one.high, 1 / one.low))
    assert one.rows is None


@pytest.mark.parametrize(
    ("candidate", "reference"), [([], []), ([1], [0]), ([0], [1]), ([1, 2], [1]), ([1], [])]
)
def test_a_ratio_of_nothing_is_refused(candidate: list[float], reference: list[float]) -> None:
    with pytest.raises(ValueError, match="no ratio"):
        ratio(candidate, reference)


def test_quantiles_are_those_of_the_samples() -> None:
    assert quantiles([float(n) for n in range(101)]) == {"p50": 50, "p90": 90, "p99": 99}
    assert quantiles([3.0]) == {"p50": 3, "p90": 3, "p99": 3}
    with pytest.raises(ValueError, match="without samples"):
        quantiles([])


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_quantiles_grow_and_lie_among_the_samples(samples: list[float]) -> None:
    found = quantiles(samples)
    assert min(samples) <= found["p50"] <= found["p90"] <= found["p99"] <= max(samples)
