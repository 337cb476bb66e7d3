"""What a sweep's page, table and terminal say of it."""

import csv
import io
import math
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser
from rich.cells import cell_len

from slmflow import console
from slmflow.config.sweep import Direction
from slmflow.drawing import units
from slmflow.sweeps.report import words
from slmflow.sweeps.report.axes import objective, varying
from slmflow.sweeps.report.html import render_html
from slmflow.sweeps.report.table import render_csv
from slmflow.sweeps.results import PointResult, State, SweepResult
from slmflow.sweeps.show import fitting, show_sweep
from tests.sample_sweep import (
    HOSTILE,
    hostile,
    judged,
    large,
    nothing_finished,
    point,
    sample,
    single,
)
from tests.test_page import a_browser, a_page
from tests.test_report import Outline

SAMPLES = {
    "sample": sample(),
    "single": single(),
    "nothing_finished": nothing_finished(),
    "hostile": hostile(),
    "large": large(),
    "empty": judged([]),
}
every_sample = pytest.mark.parametrize("name", SAMPLES)


@cache
def html_of(name: str) -> str:
    return render_html(SAMPLES[name])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as browser:
        yield browser


def rows_of(result: SweepResult) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render_csv(result), newline="")))


def quality(number: int, correct: float, speed: float = 1.0) -> PointResult:
    figures = {"correct": correct, "decode_tokens_per_second": speed}
    return point(number, {"k": str(number)}, figures)


# CSV.


def test_the_table_has_a_row_a_point_and_every_metric_of_any() -> None:
    rows = rows_of(sample())
    assert list(rows[0]) == [
        *("number", "state", "hardware.precision", "build.block_size", "build.accuracy_level"),
        *("correct", "decode_tokens_per_second", "peak_memory_bytes", "size_bytes", "exact_match"),
        *("seconds", "attempts", "models", "message", "run_id"),
    ]
    assert [row["number"] for row in rows] == [str(number) for number in range(12)]
    assert (rows[5]["hardware.precision"], rows[5]["state"]) == ("int8", "finished")
    assert float(rows[5]["correct"]) == sample().points[5].figures["correct"]
    assert rows[8]["message"] == "BuildError: fp32 takes no accuracy_level\nallowed: 0"
    assert (rows[11]["state"], rows[11]["seconds"], rows[11]["run_id"]) == ("waiting", "", "")


@given(st.text(), st.text(), st.floats())
def test_a_program_reads_back_what_was_typed_and_measured(
    value: str, message: str, figure: float
) -> None:
    one = point(0, {"task.system": value}, {"correct": figure}, State.failed, message)
    (row,) = rows_of(judged([one]))
    assert row["task.system"] == units.printable(value)
    assert row["message"] == units.printable(message)
    assert float(row["correct"]) == figure or math.isnan(figure)


# Sentences.


def test_the_best_point_is_told_with_what_decided() -> None:
    assert words.counts(sample()) == "12 points: 8 finished, 2 failed, 1 killed, 1 not run"
    assert words.verdicts(sample())[0] == (
        "Point 5 is the best: hardware.precision=int8 build.block_size=32 "
        "build.accuracy_level=4. It has the highest correct, 83.4% (as has point 4), and of "
        "these the highest decode tokens/s, 246 (next: point 4, 166)"
    )
    assert words.unfinished(sample()) == "Points 8 and 9 failed, point 10 was killed"


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (((0.5, 1), (0.25, 2)), "It has the highest correct, 50.0% (next: point 1, 25.0%)"),
        (((0.5, 1), (0.49999, 2)), "It has the highest correct, 50.0% (just before point 1, 50.0%"),
        (
            ((0.5, 9), (0.5, 2)),
            "Of points that all have the same correct, 50.0%, it has the highest decode tokens/s",
        ),
        (((0.5, 2), (0.5, 2)), "Every finished point has the same correct, 50.0% and decode"),
        (((0.5, 2),), "No other point finished"),
    ],
)
def test_why_a_point_is_the_best(figures: tuple[tuple[float, float], ...], said: str) -> None:
    result = judged([quality(number, *given) for number, given in enumerate(figures)])
    assert said in words.best(result)


def test_ties_are_told_plainly() -> None:
    result = judged([quality(number, 0.5) for number in range(3)])
    assert words.verdicts(result)[1] == (
        "Points 0, 1 and 2 are equally good in correct and decode tokens/s; the earliest of them "
        "is named"
    )


def test_without_a_best_point_the_reason_is_told() -> None:
    assert words.best(nothing_finished()) == "No point finished, so none is the best"
    unmeasured = judged([point(0, {"a": "1"})], ("correct",))
    assert words.best(unmeasured) == "No finished point measured correct, so none is the best"


def test_an_objective_that_nobody_measured_is_named() -> None:
    assert words.verdicts(large())[-1] == (
        "Not measured by any finished point: peak memory and size"
    )


def test_the_same_message_of_many_points_is_told_once() -> None:
    assert words.troubles(sample()) == [
        ("Points 8 and 9 failed", "BuildError: fp32 takes no accuracy_level\nallowed: 0"),
        ("Point 10 killed", "its process was killed, most likely for want of memory"),
    ]


def test_keys_are_as_short_as_they_can_be_told_apart() -> None:
    keys = ["search.temperature", "gate.limits.correct", "limits.correct", "model"]
    assert words.short_keys(keys) == [
        *("temperature", "gate.limits.correct", "limits.correct", "model")
    ]


def test_values_that_begin_alike_are_told_by_their_ends() -> None:
    assert words.short_values(["organisation/one", "organisation/two"], 8) == [
        "\N{HORIZONTAL ELLIPSIS}ion/one",
        "\N{HORIZONTAL ELLIPSIS}ion/two",
    ]
    assert words.short_values(["0.30000000000000004", "0.1"], 8) == ["0.3", "0.1"]


# The page.


@every_sample
def test_the_page_is_whole_runs_nothing_and_asks_for_nothing(name: str) -> None:
    page, result = Outline(html_of(name)), SAMPLES[name]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not {"script", "img", "iframe", "a", "object"} & {tag for tag, _ in page.tags}
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert words.counts(result) in page.text
    images = [one for one in page.all("svg") if one.get("role") == "img"]
    assert all(str(one["aria-labelledby"]).split()[0] in ids for one in images)


def test_the_best_point_stands_first_and_the_failed_ones_last() -> None:
    ranked = [one.number for one in words.ranked(sample())]
    assert ranked == [5, 4, 7, 6, 1, 0, 3, 2, 11, 10, 8, 9]
    text = Outline(html_of("sample")).text
    assert text.index("78.6%") < text.index("BuildError")


def test_every_one_of_200_points_is_in_the_table() -> None:
    page = Outline(html_of("large"))
    assert len([one for one in page.all("th") if one.get("scope") == "row"]) == 400


def test_hostile_texts_are_shown_as_texts() -> None:
    html = html_of("hostile")
    assert "<script>" not in html
    assert "&lt;script&gt;alert" in html
    assert "\x1b" not in html
    assert "\u202e" not in words.best(hostile())


def test_a_plot_has_its_figures_in_words() -> None:
    text = Outline(html_of("sample")).text
    assert "point 5 (best): 83.4% at 246 decode tokens/s" in text
    assert "12 points over" not in text  # one has not begun
    assert "11 points over precision, block_size, accuracy_level, correct (higher is" in text


def test_without_quality_and_speed_the_first_two_objectives_are_drawn_or_the_only_one() -> None:
    points = [point(n, {"k": "v"}, {"size_bytes": n + 1.0, "load_seconds": 2.0}) for n in range(3)]
    assert "size against load" in render_html(judged(points, ("size_bytes", "load_seconds")))
    assert "The points in the order of the sweep. Lower is better." in render_html(
        judged(points, ("size_bytes",))
    )


CUT_LABELS = """() => [...document.querySelectorAll("svg text")].filter((text) => {
  const [box, frame] = [text, text.ownerSVGElement].map((it) => it.getBoundingClientRect());
  return box.left < frame.left - 2 || box.right > frame.right + 2;
}).map((text) => text.textContent.trim())"""

SMALLEST_LABEL = """() => Math.min(100, ...[...document.querySelectorAll("svg text")]
  .map((text) => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))"""

finite = st.floats(-1e150, 1e150)


@given(st.lists(st.one_of(finite, st.none()), min_size=1, max_size=12), st.sampled_from(Direction))
@settings(deadline=None)
def test_better_is_to_the_right_on_every_axis(
    values: list[float | None], direction: Direction
) -> None:
    points = [
        point(number, {}, {} if value is None else {"correct": value})
        for number, value in enumerate(values)
    ]
    axis = objective("correct", direction, points)
    sign = 1 if direction is Direction.maximize else -1
    placed = sorted(
        (sign * v, p) for v, p in zip(values, axis.places, strict=True) if v is not None
    )
    assert all(-1e-9 <= place <= 1 + 1e-9 for _, place in placed)
    assert [place for _, place in placed] == sorted(place for _, place in placed)


def test_an_axis_names_its_best_value_at_the_right() -> None:
    points = [point(number, {}, {"size_bytes": 1e9 * (number + 1)}) for number in range(3)]
    for direction, ends in (
        (Direction.minimize, ("3.0 GB", "1.0 GB")),
        (Direction.maximize, ("1.0 GB", "3.0 GB")),
    ):
        ticks = dict(objective("size_bytes", direction, points).ticks)
        assert (ticks[0.0], ticks[1.0]) == ends


@given(st.lists(st.sampled_from(["a", "b", "0.5", "1e3", HOSTILE, ""]), min_size=1, max_size=9))
def test_points_lie_nearest_to_the_mark_of_what_they_chose(texts: list[str]) -> None:
    axis = varying("k", texts, texts)
    marks = dict(zip(_in_order(texts), (place for place, _ in axis.ticks), strict=True))
    for text, place in zip(texts, axis.places, strict=True):
        assert place is not None
        assert 0 <= place <= 1
        assert min(marks, key=lambda other: abs(marks[other] - place)) == text


def _in_order(texts: list[str]) -> list[str]:
    """Of numbers alone their own, of others as they were typed."""
    distinct = list(dict.fromkeys(texts))
    return sorted(distinct, key=float) if set(distinct) <= {"0.5", "1e3"} else distinct


@every_sample
def test_a_browser_shows_the_page_on_a_phone_and_on_a_screen(browser: Browser, name: str) -> None:
    with browser.new_context() as context, a_page(context) as page:
        page.set_content(html_of(name))
        page.evaluate("document.querySelectorAll('details').forEach((it) => it.open = true)")
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate(CUT_LABELS) == []
            assert page.evaluate(SMALLEST_LABEL) >= 9


# The terminal.


@every_sample
def test_the_terminal_says_the_same_within_80_columns(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = SAMPLES[name]
    show_sweep(result)
    shown = capsys.readouterr().out
    told = " ".join(shown.split())
    assert words.counts(result) in told
    assert words.best(result).split(":")[0] in told
    # A word that was typed is never broken, however long.
    wide = [line for line in shown.splitlines() if cell_len(line) > console.WIDTH]
    assert all(max(map(cell_len, line.split())) > console.WIDTH - 4 for line in wide)
    assert "\x1b" not in shown


def test_the_terminal_shows_ten_points_and_says_of_how_many(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_sweep(large())
    shown = capsys.readouterr().out
    assert "best 10 of 200 points" in shown
    assert "4 more messages are in the sweep's report" in shown


cells = st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=3, max_size=3)


@given(st.lists(cells, min_size=1, max_size=14))
def test_columns_fit_whatever_is_in_them(columns: list[list[str]]) -> None:
    columns[0] = ["point", "1", "2"]
    fitted = fitting(columns, 80)
    widths = [max(map(cell_len, column)) for column in fitted]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80
    assert fitted[0] == columns[0]
    if sum(max(map(cell_len, column)) + 2 for column in columns) <= 80:
        assert fitted == columns
