"""Search options: what is allowed, and what each runtime is told."""

import re
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmflow.served.search import SearchOptions, to_genai, to_transformers

GREEDY = SearchOptions()
SAMPLED = SearchOptions(temperature=0.7, top_p=0.95, top_k=50, seed=3)
BEAMS = SearchOptions(num_beams=4, length_penalty=0.5)
PENALISED = SearchOptions(repetition_penalty=1.2, no_repeat_ngram_size=3)
COUNTED = SearchOptions(frequency_penalty=0.5, presence_penalty=-1)
LONG = SearchOptions(min_new_tokens=7)

RANGES: list[tuple[str, list[Any], list[Any], str]] = [
    ("max_new_tokens", [1, 10_000, None], [0, -1], "1 or more, or null"),
    ("max_length", [2, 10_000, None], [0, 1, -1], "2 or more, or null"),
    ("min_new_tokens", [0, 1, 64], [-1], "0 (none) or more"),
    ("temperature", [0, 0.01, 100], [-0.01, 101, float("nan"), float("inf")], "0 (greedy) to 100"),
    ("top_p", [0.01, 1], [0, 1.01, -1, float("nan")], "above 0, up to 1 (every token)"),
    ("top_k", [0, 1, 50_000], [-1], "0 (every token) or more"),
    ("repetition_penalty", [0.1, 1, 2], [0, -1, float("nan")], "above 0; 1 changes nothing"),
    ("no_repeat_ngram_size", [0, 1, 5], [-1], "0 (off) or more"),
    ("frequency_penalty", [-2, 0, 0.5, 2], [-2.1, 3, float("nan")], "-2 to 2; 0 changes nothing"),
    ("presence_penalty", [-2, 0, 0.5, 2], [-2.1, 3, float("nan")], "-2 to 2; 0 changes nothing"),
    ("num_beams", [1, 8], [0, -1], "1 (no beams) or more"),
    ("seed", [None, 0, 2**31 - 1], [-1, 2**31], "0 to 2147483647, or null"),
    (
        "stop",
        [[], ["a"], ["a", "<|end|>"]],
        [[""], ["a", ""], "END"],
        "a list of texts, none of them empty",
    ),
]


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, good, _, _ in RANGES for value in good]
)
def test_a_value_within_its_range_is_kept(option: str, value: Any) -> None:
    bounded = replace(GREEDY, max_length=50)  # so that either bound can be null
    assert getattr(replace(bounded, **{option: value}), option) == value


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [(option, value, allowed) for option, _, bad, allowed in RANGES for value in bad],
)
def test_a_value_outside_its_range_is_refused_with_what_is_allowed(
    option: str, value: Any, allowed: str
) -> None:
    said = f"search.{option} is {value!r}; allowed: {allowed}"
    with pytest.raises(ValueError, match=re.escape(said)):
        replace(GREEDY, **{option: value})


def test_every_option_has_its_range_tested() -> None:
    unbounded = {"length_penalty"}  # negative ones favour short answers
    assert {option for option, *_ in RANGES} | unbounded == {
        option.name for option in fields(SearchOptions)
    }


def test_an_answer_needs_a_bound() -> None:
    with pytest.raises(ValueError, match=r"max_new_tokens and search.max_length are both null"):
        SearchOptions(max_new_tokens=None, max_length=None)


def test_an_answer_cannot_be_longer_than_its_bound() -> None:
    said = "search.min_new_tokens is 65 and search.max_new_tokens is 64; allowed: as many as"
    with pytest.raises(ValueError, match=re.escape(said)):
        SearchOptions(min_new_tokens=65, max_new_tokens=64)
    with pytest.raises(ValueError, match=r"search.min_new_tokens is 7 and search.max_new_tokens"):
        LONG.changed({"max_new_tokens": 6})
    assert SearchOptions(min_new_tokens=65, max_new_tokens=None, max_length=9).min_new_tokens == 65


def test_settings_written_before_an_option_existed_are_read() -> None:
    older = {name: value for name, value in asdict(GREEDY).items() if name != "min_new_tokens"}
    assert SearchOptions.from_mapping(older) == GREEDY


def test_beams_and_temperature_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"search.num_beams is 2 and search.temperature is 0.5"):
        SearchOptions(num_beams=2, temperature=0.5)


@pytest.mark.parametrize("name", ["frequency_penalty", "presence_penalty"])
def test_beams_and_penalties_by_count_exclude_each_other(name: str) -> None:
    said = "search.frequency_penalty and search.presence_penalty need search.num_beams 1; it is 2"
    with pytest.raises(ValueError, match=re.escape(said)):
        SearchOptions(num_beams=2, **{name: 0.5})


@pytest.mark.parametrize(
    ("options", "penalises"),
    [
        (GREEDY, False),
        (PENALISED, False),  # the runtimes' own penalties
        (COUNTED, True),
        (replace(COUNTED, presence_penalty=0), True),
        (replace(COUNTED, frequency_penalty=0), True),
    ],
)
def test_options_say_whether_logits_must_be_changed(
    options: SearchOptions, penalises: bool
) -> None:
    assert options.penalises == penalises


def test_a_change_is_checked_like_a_new_set_of_options() -> None:
    assert GREEDY.changed({"temperature": 0.5}) == SearchOptions(temperature=0.5)
    with pytest.raises(ValueError, match=r"search.top_p is 2"):
        GREEDY.changed({"top_p": 2})
    with pytest.raises(ValueError, match="beams do not sample"):
        BEAMS.changed({"temperature": 0.5})


@pytest.mark.parametrize("options", [GREEDY, SAMPLED, BEAMS, PENALISED, COUNTED, LONG])
def test_options_survive_their_mapping(options: SearchOptions) -> None:
    assert SearchOptions.from_mapping(asdict(options)) == options


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"temprature.*temperature"):
        SearchOptions.from_mapping({"temprature": 1})


@pytest.mark.parametrize(
    ("max_new_tokens", "max_length", "prompt", "context", "expected"),
    [
        (64, None, 10, 100, 64),
        (64, None, 50, 100, 50),
        (64, 30, 10, 100, 20),
        (15, 30, 10, 100, 15),
        (None, 30, 10, 100, 20),
        (None, 300, 10, 100, 90),
        (None, 30, 30, 100, 0),
        (None, 30, 50, 100, -20),
        (64, None, 100, 100, 0),
    ],
)
def test_the_tightest_bound_holds(
    max_new_tokens: int | None, max_length: int | None, prompt: int, context: int, expected: int
) -> None:
    options = SearchOptions(max_new_tokens=max_new_tokens, max_length=max_length)
    assert options.new_tokens(prompt, context) == expected


BOUND = st.none() | st.integers(2, 200)


@settings(deadline=None)
@given(BOUND, BOUND, st.integers(1, 200), st.integers(1, 200))
def test_an_answer_never_outgrows_any_bound(
    max_new_tokens: int | None, max_length: int | None, prompt: int, context: int
) -> None:
    if max_new_tokens is None and max_length is None:
        max_new_tokens = 1
    options = SearchOptions(max_new_tokens=max_new_tokens, max_length=max_length)
    new_tokens = options.new_tokens(prompt, context)
    assert prompt + new_tokens <= min(context, max_length or context)
    assert new_tokens <= (max_new_tokens or context)


SHARED = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": 50}
BEAMING = {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True}
PENALISING = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (GREEDY, {"do_sample": False}),
        (SAMPLED, {**SAMPLING, "random_seed": 3}),
        (replace(SAMPLED, seed=None), SAMPLING),
        (replace(GREEDY, seed=3), {"do_sample": False}),
        (BEAMS, {"do_sample": False, **BEAMING}),
        (PENALISED, {"do_sample": False, **PENALISING}),
        (COUNTED, {"do_sample": False}),
        (LONG, {"do_sample": False, "min_length": 17}),
        (replace(GREEDY, stop=["."], max_new_tokens=5), {"do_sample": False}),
    ],
)
def test_the_onnx_runtime_is_told(options: SearchOptions, expected: dict[str, Any]) -> None:
    lengths = {"max_length": 30, "min_length": 10}  # with the prompt
    assert to_genai(options, 10, 20) == {**lengths, **SHARED, **expected}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (GREEDY, {"do_sample": False}),
        (SAMPLED, SAMPLING),
        (BEAMS, {"do_sample": False, **BEAMING}),
        (PENALISED, {"do_sample": False, **PENALISING}),
        (COUNTED, {"do_sample": False}),
        (LONG, {"do_sample": False, "min_new_tokens": 7}),
        (replace(GREEDY, stop=["."], seed=3), {"do_sample": False}),
    ],
)
def test_transformers_is_told(options: SearchOptions, expected: dict[str, Any]) -> None:
    assert to_transformers(options, 20) == {"max_new_tokens": 20, **SHARED, **expected}


def test_every_option_reaches_the_runtimes_or_is_applied_here() -> None:
    told = set(to_genai(SAMPLED, 1, 1)) | set(to_genai(BEAMS, 1, 1))
    told |= set(to_transformers(LONG, 1))
    applied_here = {"max_new_tokens", "max_length", "seed", "stop"}
    applied_here |= {"frequency_penalty", "presence_penalty"}  # to the logits, step by step
    assert {option.name for option in fields(SearchOptions)} - applied_here <= told


@given(st.integers(0, 64), st.integers(1, 64), st.integers(1, 100))
def test_the_room_that_is_left_bounds_the_shortest_answer(
    least: int, room: int, prompt: int
) -> None:
    options = SearchOptions(min_new_tokens=least)
    onnx = to_genai(options, prompt, room)
    floor = to_transformers(options, room).get("min_new_tokens", 0)
    assert floor == onnx["min_length"] - prompt == min(least, room)
