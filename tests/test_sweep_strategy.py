"""Which points run next, and that a resume chooses as one long session would have."""

import math
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from slmflow.config.sweep import Strategy, Sweep
from slmflow.sweeps.results import PointResult, State
from slmflow.sweeps.space import Choices, Interval, Space
from slmflow.sweeps.strategy import Grid, Point, Tpe
from slmflow.sweeps.study import build_study

QUALITY, SPEED = "correct", "decode_tokens_per_second"
WIDE: Mapping[str, Space] = {
    "search.temperature": Interval(0.0, 1.5),
    "search.top_k": Interval(1, 1000, integer=True, log=True),
    "hardware.precision": Choices(("int4", "int8", "'a,b'")),
}
SMALL: Mapping[str, Space] = {"a": Choices(("x", "y")), "b": Interval(1, 3, integer=True)}

Figures = Callable[[Mapping[str, str]], Mapping[str, float]]


def overrides_of(point: Point) -> dict[str, str]:
    return dict((text.split("=", 1)[0], text.split("=", 1)[1]) for text in point)


def result(
    number: int, point: Point, figures: Mapping[str, float], state: State = State.finished
) -> PointResult:
    return PointResult(number, overrides_of(point), f"run{number}", state, figures, 1.0)


def setting(*objectives: str, **others: Any) -> Sweep:
    return Sweep(objectives=list(objectives or (QUALITY,)), strategy=Strategy.tpe, **others)


def run(tpe: Tpe, figures: Figures, first: int = 0, most: int = 1000) -> list[PointResult]:
    """The sweep's own loop: ask, run, tell."""
    done: list[PointResult] = []
    while len(done) < most and (points := tpe.ask()):
        for point in points:
            done.append(result(first + len(done), point, figures(overrides_of(point))))
            tpe.tell(done[-1])
    return done


def hill(overrides: Mapping[str, str]) -> dict[str, float]:
    return {QUALITY: -((float(overrides["search.temperature"]) - 0.7) ** 2)}


# The grid.


def test_a_grid_asks_for_every_point_once() -> None:
    points = [("a=1", "b=x"), ("a=2", "b=x")]
    grid = Grid(points)
    assert grid.ask() == points
    assert grid.ask() == []


def test_a_resumed_grid_leaves_out_what_is_settled_and_repeats_the_rest() -> None:
    states = (State.finished, State.failed, State.pruned, State.killed, State.running)
    points: list[Point] = [(f"a={number}", "b=1,2=3") for number in range(6)]
    grid = Grid(points)
    for number, state in enumerate(states):
        grid.tell(result(number, points[number][::-1], {}, state))
    assert grid.ask() == [points[1], points[3], points[4], points[5]]


# Spaces.


@pytest.mark.parametrize(
    "make",
    [
        lambda: Choices(()),
        lambda: Interval(2.0, 1.0),
        lambda: Interval(math.nan, 1.0),
        lambda: Interval(0.0, 1.0, log=True),
        lambda: Interval(0.0, 1.0, step=0.0),
        lambda: Interval(0.5, 3.0, integer=True),
    ],
)
def test_a_space_that_cannot_be_says_what_is_allowed(make: Callable[[], Space]) -> None:
    with pytest.raises(ValueError, match="allowed: "):
        make()


finite = st.floats(-1e12, 1e12)
intervals = st.one_of(
    st.tuples(finite, finite).map(lambda ends: Interval(min(ends), max(ends))),
    st.tuples(st.integers(1, 10**6), st.integers(0, 10**6), st.booleans()).map(
        lambda given: Interval(given[0], given[0] + given[1], integer=True, log=given[2])
    ),
    st.tuples(st.floats(1e-9, 1.0), st.floats(1.0, 1e9)).map(
        lambda ends: Interval(*ends, log=True)
    ),
    st.tuples(st.integers(-50, 50), st.integers(1, 40), st.sampled_from([0.1, 0.25, 0.3])).map(
        lambda given: Interval(given[0] / 10, given[0] / 10 + given[1] * given[2], step=given[2])
    ),
)


@given(intervals, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_hydra_reads_back_the_number_that_was_chosen(interval: Interval, seed: int) -> None:
    tpe = Tpe({"k": interval}, setting(seed=seed, trials=3, batch=3))
    for (text,) in tpe.ask():
        value = OverridesParser.create().parse_override(text).value()
        assert type(value) is (int if interval.integer else float)
        assert value == interval.read(text.removeprefix("k="))
        assert interval.low <= value <= interval.high + (1e-9 if interval.step else 0)


def test_steps_that_are_a_little_off_reach_the_end_all_the_same() -> None:
    tenths = Interval(0.0, 0.7999999999999999, step=0.1)
    texts = [f"k={number / 10}" for number in range(9)]
    assert sorted(text for (text,) in Tpe({"k": tenths}, setting(batch=20)).ask()) == texts


def test_choices_are_typed_as_they_were_given() -> None:
    points = Tpe({"k": WIDE["hardware.precision"]}, setting(batch=20)).ask()
    assert set(points) == {("k=int4",), ("k=int8",), ("k='a,b'",)}


# TPE.


def test_tpe_runs_as_many_trials_as_it_is_given_and_learns_from_them() -> None:
    space = {"search.temperature": WIDE["search.temperature"]}
    chosen = setting(trials=40, seed=3)
    done, unlearnt = (
        run(Tpe(space, chosen), figures) for figures in (hill, lambda _: {QUALITY: 0})
    )
    assert len(done) == len(unlearnt) == 40
    off, blind = (
        [abs(float(one.overrides["search.temperature"]) - 0.7) for one in given[20:]]
        for given in (done, unlearnt)
    )
    assert median(off) < 0.2 < median(blind)


def test_no_more_points_are_asked_for_at_once_than_the_batch() -> None:
    tpe = Tpe(WIDE, setting(trials=10, batch=4))
    assert [len(tpe.ask()) for _ in range(4)] == [4, 4, 2, 0]


@given(st.integers(1, 24), st.sampled_from([(QUALITY,), (QUALITY, SPEED)]), st.integers(1, 4))
@settings(max_examples=12, deadline=None)
def test_a_resume_chooses_what_one_long_session_would_have_chosen(
    stop: int, objectives: tuple[str, ...], batch: int
) -> None:
    def figures(overrides: Mapping[str, str]) -> dict[str, float]:
        return hill(overrides) | {SPEED: 1.0 / int(overrides["search.top_k"])}

    chosen = setting(*objectives, trials=24, batch=batch, seed=7)
    whole = run(Tpe(WIDE, chosen), figures)
    resumed = Tpe(WIDE, chosen)
    for one in whole[:stop]:
        resumed.tell(one)
    # Within a batch too: what it had chosen and never begun is chosen again.
    assert whole[:stop] + run(resumed, figures, first=stop) == whole


def test_what_was_killed_within_a_batch_is_asked_for_again_before_anything_new() -> None:
    chosen = setting(trials=16, batch=4)
    whole = run(Tpe(WIDE, chosen), hill)
    resumed = Tpe(WIDE, chosen)
    for one in whole[:8]:
        killed = one.number in (5, 6)
        point = tuple(f"{key}={value}" for key, value in one.overrides.items())
        resumed.tell(result(one.number, point, {}, State.killed) if killed else one)
    again = resumed.ask()
    assert [overrides_of(point) for point in again] == [dict(whole[n].overrides) for n in (5, 6)]
    for one in whole[5:7]:
        resumed.tell(one)
    assert run(resumed, hill, first=8) == whole[8:]


def test_another_seed_chooses_other_points() -> None:
    assert Tpe(WIDE, setting(seed=1)).ask() != Tpe(WIDE, setting(seed=2)).ask()


def test_a_used_up_space_ends_the_sweep_with_every_combination_run_once() -> None:
    values = tuple(f"v{number}" for number in range(40))
    space: Mapping[str, Space] = {"a": Choices(values), "b": Interval(0, 1, integer=True)}

    def favourite(overrides: Mapping[str, str]) -> dict[str, float]:
        return {QUALITY: float(overrides["a"] == "v3")}

    done = run(Tpe(space, setting(trials=100, batch=8)), favourite)
    assert len(done) == 80
    assert len({tuple(one.overrides.items()) for one in done}) == 80


def test_points_that_fail_are_not_chosen_again_and_count_as_trials() -> None:
    tpe = Tpe(SMALL, setting(trials=4))
    asked = []
    while points := tpe.ask():
        asked += points
        tpe.tell(result(len(asked), points[0], {}, State.failed))
    assert len(set(asked)) == len(asked) == 4


def test_failed_pruned_and_incomplete_points_are_told_truthfully() -> None:
    told = (
        ({QUALITY: 0.5}, State.finished, "COMPLETE"),
        ({QUALITY: 0.9}, State.failed, "FAIL"),
        ({QUALITY: 0.9}, State.killed, "FAIL"),
        ({QUALITY: 0.2}, State.pruned, "PRUNED"),
        ({}, State.pruned, "PRUNED"),
        ({SPEED: 9.0}, State.finished, "FAIL"),
        ({QUALITY: math.nan}, State.finished, "FAIL"),
        ({QUALITY: math.inf}, State.finished, "FAIL"),
    )
    results = [
        result(number, ("a=x", "b=1"), figures, state)
        for number, (figures, state, _) in enumerate(told)
    ]
    trials = build_study(SMALL, setting().directions, results, (), (0, 0)).trials
    assert [trial.state.name for trial in trials] == [name for _, _, name in told]
    assert [trial.values for trial in trials] == [[0.5]] + [None] * 7
    assert trials[3].intermediate_values == {0: 0.2}


def test_an_objective_that_nothing_measures_changes_no_choice() -> None:
    done = run(Tpe(WIDE, setting("perplexity", QUALITY, trials=20)), hill)
    assert done == run(Tpe(WIDE, setting(QUALITY, trials=20)), hill)


def test_a_point_of_another_space_is_no_reason_to_stop() -> None:
    tpe = Tpe(SMALL, setting(trials=3))
    tpe.tell(result(0, ("a=gone", "b=99"), {QUALITY: 1.0}))
    tpe.tell(result(1, ("c=1",), {}, State.failed))
    assert len(tpe.ask()) == 1


# Pruning.


def followed(prune: bool = True) -> Tpe:
    """Three points whose running means ended at 0.5, 0.6 and 0.7."""
    tpe = Tpe(WIDE, setting(trials=10, batch=3, prune=prune))
    for number, (point, last) in enumerate(zip(tpe.ask(), (0.5, 0.6, 0.7), strict=True)):
        for step, value in ((10, 1.0), (20, last)):
            assert not tpe.should_stop(number, step, value)
        tpe.tell(result(number, point, {QUALITY: last}))
    return tpe


@pytest.mark.parametrize(("value", "stops"), [(0.4, True), (0.59, True), (0.6, False), (1, False)])
def test_a_point_below_the_median_at_the_same_step_stops(value: float, stops: bool) -> None:
    tpe = followed()
    assert not tpe.should_stop(3, 10, 1.0)  # a lucky start saves nobody
    assert tpe.should_stop(3, 20, value) is stops


def test_nothing_stops_without_pruning_or_anything_to_compare_with() -> None:
    assert not followed(prune=False).should_stop(3, 20, 0.0)
    assert not followed().should_stop(3, 15, 0.0)  # a step that no other point told of
    assert not followed().should_stop(3, 20, math.nan)
    assert not Tpe(WIDE, setting(prune=True)).should_stop(0, 20, 0.0)
