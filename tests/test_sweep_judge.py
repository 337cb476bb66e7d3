"""Which point wins: laws that hold for any figures."""

import math
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmflow.config.sweep import Direction
from slmflow.sweeps.judge import best, front, measured, ties
from slmflow.sweeps.results import PointResult, State

QUALITY, SPEED, SIZE = "correct", "decode_tokens_per_second", "size_bytes"
OBJECTIVES = {QUALITY: Direction.maximize, SPEED: Direction.maximize, SIZE: Direction.minimize}


def point(
    number: int, figures: Mapping[str, float] | None = None, state: State = State.finished
) -> PointResult:
    return PointResult(number, {"k": str(number)}, f"run{number}", state, figures or {}, 1.0)


few_values = st.sampled_from([0.0, 0.5, 1.0, math.inf, -math.inf, math.nan])
sweeps = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(list(OBJECTIVES)), few_values),
        st.sampled_from([State.finished, State.finished, State.failed, State.pruned]),
    ),
    max_size=8,
).map(lambda rows: [point(number, *row) for number, row in enumerate(rows)])


def test_the_first_objective_chooses_and_the_next_ones_break_ties() -> None:
    points = [
        point(0, {QUALITY: 0.8, SPEED: 900.0}),
        point(1, {QUALITY: 0.9, SPEED: 100.0}),
        point(2, {QUALITY: 0.9, SPEED: 200.0}),
    ]
    assert best(OBJECTIVES, points) == 2
    assert ties(OBJECTIVES, points) == ()
    assert front(OBJECTIVES, points) == (0, 2)


def test_less_is_better_where_the_objective_says_so() -> None:
    points = [point(0, {SIZE: 5.0}), point(1, {SIZE: 3.0}), point(2, {SIZE: 4.0})]
    assert best(OBJECTIVES, points) == 1
    assert front(OBJECTIVES, points) == (1,)


def test_an_objective_that_no_finished_point_measured_does_not_count() -> None:
    points = [
        point(0, {QUALITY: 1.0}, State.failed),
        point(1, {QUALITY: math.nan, SPEED: 1.0}),
        point(2, {SPEED: 2.0}),
    ]
    assert list(measured(OBJECTIVES, points)) == [SPEED]
    assert best(OBJECTIVES, points) == 2


def test_a_point_without_the_figure_loses_to_any_that_has_it() -> None:
    points = [point(0, {SPEED: 9.0}), point(1, {QUALITY: 0.0}), point(2, {QUALITY: math.nan})]
    assert best(OBJECTIVES, points) == 1


def test_equal_points_are_told_as_ties_and_the_earliest_is_best() -> None:
    points = [point(number, {QUALITY: 0.5, SPEED: 1.0}) for number in (3, 1, 2)]
    assert best(OBJECTIVES, points) == 1
    assert ties(OBJECTIVES, points) == (2, 3)
    assert front(OBJECTIVES, points) == (1, 2, 3)


@pytest.mark.parametrize("points", [[], [point(0)], [point(0, {QUALITY: 1.0}, State.killed)]])
def test_without_a_measured_finished_point_nobody_wins(points: list[PointResult]) -> None:
    assert measured(OBJECTIVES, points) == {}
    assert best(OBJECTIVES, points) is None
    assert ties(OBJECTIVES, points) == front(OBJECTIVES, points) == ()


@given(sweeps)
def test_the_best_and_its_ties_are_on_the_front(points: list[PointResult]) -> None:
    found = best(OBJECTIVES, points)
    assert (found is None) == (not measured(OBJECTIVES, points))
    if found is not None:
        assert {found, *ties(OBJECTIVES, points)} <= set(front(OBJECTIVES, points))


@given(sweeps, st.randoms())
def test_the_order_in_which_points_are_given_decides_nothing(
    points: list[PointResult], random: Random
) -> None:
    mixed = list(points)
    random.shuffle(mixed)
    assert best(OBJECTIVES, mixed) == best(OBJECTIVES, points)
    assert front(OBJECTIVES, mixed) == front(OBJECTIVES, points)


@given(sweeps)
def test_the_front_is_what_no_finished_point_beats(points: list[PointResult]) -> None:
    """The definition, taken word by word."""
    counted = measured(OBJECTIVES, points)

    def value(one: PointResult, name: str) -> float:
        given = one.figures.get(name, math.nan)
        if math.isnan(given):
            return -math.inf
        # The infinite is brought down, so that it differs from what is missing.
        return max(-1e9, min(1e9, given if counted[name] is Direction.maximize else -given))

    rows = {
        one.number: [value(one, name) for name in counted]
        for one in points
        if one.state is State.finished
    }
    beaten = {
        number
        for number, row in rows.items()
        for other in rows.values()
        if other != row and all(a >= b for a, b in zip(other, row, strict=True))
    }
    blank = {number for number, row in rows.items() if set(row) <= {-math.inf}}
    assert set(front(OBJECTIVES, points)) == set(rows) - beaten - blank


@given(sweeps)
def test_a_point_that_failed_never_wins(points: list[PointResult]) -> None:
    finished = {one.number for one in points if one.state is State.finished}
    assert set(front(OBJECTIVES, points)) <= finished
    assert {best(OBJECTIVES, points)} - {None} <= finished
