"""What the report says, as HTML and as Markdown; ``test_report_page.py`` looks at it."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len

from slmflow.drawing import units
from slmflow.evaluation.report import words
from slmflow.evaluation.report.diff import LONGEST, diff
from slmflow.evaluation.report.html import render_html
from slmflow.evaluation.report.markdown import code, escape, render_markdown
from slmflow.evaluation.report.pareto import Dot, frontier
from slmflow.evaluation.results import (
    Comparison,
    Decision,
    Difference,
    Evaluation,
    Figure,
    GateOutcome,
    Verdict,
)
from tests.sample_evaluation import (
    ENDPOINT,
    METRICS,
    QUANTISED,
    REFERENCE,
    SCRIPT,
    exact,
    mean,
    sample,
    tiny,
)

VOID = frozenset({"meta", "wbr", "link", "br", "img", "hr", "input"})
RENDERERS = (render_html, render_markdown)
MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


class Outline(HTMLParser):
    """Texts, tags and ids of a page whose tags must be closed in the order they were opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute of <{tag}> stands twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def page() -> Outline:
    return Outline(render_html(sample()))


def comparison(difference: Difference | None, **ratios: Figure) -> Comparison:
    differences = {"exact_match": difference} if difference is not None else {}
    return Comparison(QUANTISED, REFERENCE, differences, ratios, agreement=0.5)


# Sentences.


def test_a_worse_candidate_is_told_with_its_evidence_and_what_it_gains() -> None:
    assert words.verdicts(sample())[0] == (
        "custom_onnx v2 answers 2.3 to 8 points fewer questions right than transformers_pipeline "
        "v1 (worse, p = 0.0002), decodes 5.4x as fast, takes 0.26x the time to the first token and "
        "needs 0.43x the memory"
    )


def test_too_few_rows_are_never_told_as_no_difference() -> None:
    said = words.verdicts(sample())[1]
    assert "between 3.4 points fewer and 1.2 points more questions right" in said
    assert "too few rows to tell, p = 0.21: about 1,900 would be needed" in said
    assert "no difference" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Figure(0.04, 0.03, 0.05), "answers 3 to 5 points more questions right"),
        (Figure(-0.04, -0.05, -0.03), "answers 3 to 5 points fewer questions right"),
        (Figure(0.03, 0.03, 0.03), "answers 3 points more questions right"),
        (Figure(0.02, 0.0, 0.04), "answers 0 to 4 points more questions right"),
        (Figure(-0.02, -0.04, 0.0), "answers 0 to 4 points fewer questions right"),
        (Figure(0.0, -0.01, 0.01), "between 1 points fewer and 1 points more questions right"),
    ],
)
def test_an_interval_is_told_from_its_near_to_its_far_end(change: Figure, said: str) -> None:
    difference = Difference(change, Verdict.no_difference_shown, None, None)
    assert said in words.against(comparison(difference), sample())


def test_a_score_that_counts_no_right_answers_is_told_as_a_score() -> None:
    evaluation = replace(sample(), primary="token_f1")
    said = words.verdicts(evaluation)[0]
    assert "scores 0.9 to 4.5 points lower in token_f1 than transformers_pipeline v1" in said
    assert "questions right" not in said


def test_of_a_figure_without_percent_the_difference_has_no_points() -> None:
    change = Difference(Figure(0.3, 0.2, 0.45), Verdict.worse, None, None)
    one = replace(comparison(None), differences={"perplexity": change})
    said = words.against(one, replace(sample(), primary="perplexity"))
    assert "scores 0.200 to 0.450 higher in perplexity" in said


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (Figure(5.39, 5.1, 5.6), "decodes 5.4x as fast"),
        (Figure(1.02, 0.97, 1.06), "decodes about as fast"),
        (Figure(1.004, 1.001, 1.008), "decodes about as fast"),
        (Figure(0.5, 0.4, 0.6), "decodes 0.50x as fast"),
    ],
)
def test_rounds_that_overlap_are_not_told_as_faster(ratio: Figure, said: str) -> None:
    assert said in words.against(comparison(None, decode_tokens_per_second=ratio), sample())


def test_a_comparison_without_a_common_score_says_so() -> None:
    said = words.against(comparison(None, size_bytes=exact(0.25)), sample())
    assert said == (f"{QUANTISED} shares no scored row with {REFERENCE} and has 0.25x the size")


def test_one_candidate_is_told_by_itself() -> None:
    one = replace(tiny().candidates[0], figures={"exact_match": mean(0.84, 0.04)})
    said = words.verdicts(replace(tiny(), candidates=(one,)))
    assert said == [
        f"custom_onnx v1 answers 84.0% of the questions right (80.0{DASH}88.0 with 95% confidence)"
    ]


@pytest.mark.parametrize(
    ("chosen", "promoted", "said"),
    [
        ("b", "models:/m/2", "b passed: champion now points at models:/m/2 (before: models:/m/1)"),
        ("b", None, "b passed and would be promoted; champion still points at models:/m/1"),
        (None, None, "No candidate passed; champion still points at models:/m/1"),
    ],
)
def test_the_gate_says_what_became_of_the_alias(
    chosen: str | None, promoted: str | None, said: str
) -> None:
    outcomes = tuple(GateOutcome(label, "", label == chosen, ()) for label in "ab")
    decision = Decision("g", "champion", "models:/m/1", outcomes, chosen, promoted)
    assert words.gate(decision).startswith(said)


# Numbers.


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("exact_match", 0.8425, "84.2%"),
        ("first_token_seconds", 0.0484, "48.4 ms"),
        ("load_seconds", 61.24, "61.2 s"),
        ("size_bytes", 3_421_000_000, "3.4 GB"),
        ("size_bytes", 900, "900 B"),
        ("decode_tokens_per_second", 1234.5, "1,234"),
        ("decode_tokens_per_second", 5.431, "5.43"),
        ("errors", 3, "3"),
        ("reference_log_likelihood", -0.61, f"{MINUS}0.610"),
        ("perplexity", math.inf, "\N{INFINITY}"),
        ("perplexity", math.nan, "unknown"),
        ("exact_match", None, DASH),
    ],
)
def test_a_figure_is_shown_in_the_unit_of_its_name(
    name: str, value: float | None, shown: str
) -> None:
    assert units.show(name, value) == shown


def test_a_range_has_the_unit_of_its_value() -> None:
    assert units.spread("load_seconds", 0.98, 1.02, 1.1) == f"0.98{DASH}1.10"
    assert units.spread("size_bytes", 5, 5, 5) == ""


@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(sorted(units.TITLES)))
def test_any_number_can_be_shown(value: float, name: str) -> None:
    shown = units.show(name, value)
    assert shown.strip()
    assert not re.match(rf"{MINUS}[0.,]+\D*$", shown), "a zero has no sign"


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 2), min_size=1, max_size=8))
def test_a_candidate_is_off_the_frontier_just_if_another_beats_it(
    found: list[tuple[int, int]],
) -> None:
    dots = [Dot(at, "", speed, quality, None) for at, (speed, quality) in enumerate(found)]
    best = frontier(dots)
    assert all(one.speed <= other.speed for one, other in pairwise(best))
    for dot in dots:
        beaten = any(
            other.speed >= dot.speed
            and other.quality >= dot.quality
            and (other.speed, other.quality) != (dot.speed, dot.quality)
            for other in dots
        )
        assert beaten is (dot not in best)


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_diff_keeps_both_texts_and_marks_what_differs(one: str, other: str) -> None:
    left, right = diff(one, other)
    assert any(piece.differs for piece in left + right) is (_lines(one) != _lines(other))
    same = ["".join(p.text for p in side if not p.differs) for side in (left, right)]
    assert same[0] == same[1]
    for text, side in ((one, left), (other, right)):
        assert len("".join(piece.text for piece in side)) >= len(_lines(text))


def test_white_space_that_differs_can_be_seen() -> None:
    left, right = diff("a b\n", "a  b")
    assert [piece.text for piece in left if piece.differs] == ["\u21b5\n"]
    assert [piece.text for piece in right if piece.differs] == ["\xb7"]


def test_a_diff_of_texts_that_repeat_themselves_ends_soon() -> None:
    started = time.process_time()
    left, right = diff("the end. " * 10_000, "a the end. " * 10_000)
    assert time.process_time() - started < 2
    for side in (left, right):
        assert 0 < sum(len(piece.text) for piece in side) <= 2 * LONGEST


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n")


# Both renderings.


@pytest.mark.parametrize("render", RENDERERS)
def test_every_candidate_metric_condition_and_failure_is_told(
    render: Callable[[Evaluation], str],
) -> None:
    evaluation = sample()
    told = _text(render(evaluation))
    assert evaluation.decision is not None
    expected = [REFERENCE, QUANTISED, ENDPOINT, *METRICS, "perplexity", "400 of 1,319 rows"]
    expected += [*words.verdicts(evaluation), words.gate(evaluation.decision), evaluation.run_id]
    expected += [
        outcome.words for one in evaluation.decision.candidates for outcome in one.outcomes
    ]
    expected += [one.parity.words for one in evaluation.comparisons if one.parity is not None]
    expected += [f"{ENDPOINT} gave no answer to 3 of 400 rows", "an answer of 9,000 tokens"]
    expected += ["seed 7", "84.2%", f"80.7{DASH}87.9", "no difference shown", "87.1 ms", "2.1 GB"]
    expected += ["geography", "arithmetic", "capitals-017", "Barcelona, of course.", "0.18.1"]
    assert [text for text in expected if text not in told] == []


@pytest.mark.parametrize("render", RENDERERS)
def test_what_was_not_measured_is_left_out_or_said(render: Callable[[Evaluation], str]) -> None:
    told = _text(render(tiny()))
    assert words.NO_SPEED in told
    assert words.NO_QUALITY in told
    for absent in ("Gate", "Parity", "Slices", "differ most", "What failed", "unknown", "None"):
        assert absent not in told


@pytest.mark.parametrize("render", RENDERERS)
def test_an_evaluation_is_rendered_the_same_every_time(
    render: Callable[[Evaluation], str],
) -> None:
    assert render(sample()) == render(sample())


@pytest.mark.parametrize("render", RENDERERS)
@pytest.mark.parametrize("left_out", ["speed", "decision", "comparisons", "figures", "metrics"])
def test_any_part_may_be_missing(render: Callable[[Evaluation], str], left_out: str) -> None:
    whole = sample()
    less = {
        "speed": replace(
            whole, candidates=tuple(replace(one, speed=None) for one in whole.candidates)
        ),
        "decision": replace(whole, decision=None),
        "comparisons": replace(whole, comparisons=()),
        "figures": replace(
            whole, candidates=tuple(replace(one, figures={}) for one in whole.candidates)
        ),
        "metrics": replace(whole, metrics=(), primary="a metric that nobody has"),
    }
    assert REFERENCE in _text(render(less[left_out]))


def test_more_than_thirty_values_of_a_tag_are_cut_and_that_is_said() -> None:
    first, *others = sample().candidates
    many = {f"value {at}": {"exact_match": mean(0.5, 0.1, 4)} for at in range(100)}
    one = replace(first, slices={"id": many})
    told = _text(render_html(replace(sample(), candidates=(one, *others))))
    assert "value 29" in told
    assert "value 30" not in told
    assert "70 more values are not shown" in told


def test_a_ninth_candidate_still_has_a_mark_and_a_colour() -> None:
    first, *_ = sample().candidates
    many = tuple(replace(first, label=f"candidate {at}") for at in range(9))
    page = Outline(render_html(replace(sample(), candidates=many, comparisons=())))
    assert "candidate 8" in page.text


# HTML.


def test_the_page_is_well_formed_and_its_ids_are_unique(page: Outline) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 10
    referred = [
        name
        for _, attributes in page.tags
        for name in (attributes.get("aria-labelledby") or "").split()
    ]
    referred += re.findall(r"url\(#([^)]*)\)", render_html(sample()))
    referred += [(link["href"] or "")[1:] for link in page.all("use")]
    assert set(referred) <= set(ids)


def test_the_page_asks_for_nothing_and_runs_nothing(page: Outline) -> None:
    assert page.all("script") == page.all("img") == page.all("iframe") == []
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    handlers = [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    assert handlers == []
    assert "@import" not in render_html(sample())


def test_hostile_texts_are_shown_as_they_are(page: Outline) -> None:
    assert SCRIPT in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "\u2400\u241b[31m \N{REPLACEMENT CHARACTER}" in page.text
    render_html(sample()).encode()  # no lone surrogate is left


HARD = st.text(st.one_of(st.characters(), st.sampled_from("<>&\"'`{}%$\\|*_#\n\x00\ud800")))


@given(HARD)
@settings(deadline=None, max_examples=10)
def test_any_text_comes_through_html_as_text(text: str) -> None:
    one = sample().disagreements[0]
    row = replace(one, answers={REFERENCE: f"[[{text}]]"})
    outline = Outline(
        render_html(replace(tiny(), candidates=sample().candidates[:1], disagreements=(row,)))
    )
    assert f"[[{units.printable(text)}]]" in outline.text


def test_every_table_has_a_caption_and_its_headers_a_scope(page: Outline) -> None:
    tables = len(page.all("table"))
    assert len(page.all("caption")) == tables > 10
    assert {header.get("scope") for header in page.all("th")} == {"row", "col"}


def test_headings_leave_out_no_level(page: Outline) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_plot_is_an_image_with_a_title_and_a_description(page: Outline) -> None:
    plots = page.all("svg")
    assert len(plots) == 5
    assert all(plot["role"] == "img" and plot["aria-labelledby"] for plot in plots)
    assert "exact_match: 89.2%, 84.2%, 87.8%" in page.text
    assert f"On the frontier: {REFERENCE}, {ENDPOINT}, {QUANTISED}" in page.text


def test_plots_have_only_colours_that_follow_the_page() -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", render_html(sample()), flags=re.S))
    assert "var(--mark-2)" in drawn
    assert re.findall(r"(?:fill|stroke): *#\w+", drawn) == []


# Markdown.


def test_raw_tables_fit_a_hundred_columns() -> None:
    long = replace(
        sample().candidates[0], label="a label of forty characters and then some more " * 3
    )
    for evaluation in (sample(), tiny(), replace(sample(), candidates=(long,), comparisons=())):
        lines = [line for line in render_markdown(evaluation).splitlines() if line[:1] == "|"]
        assert lines
        assert max(map(cell_len, lines)) <= 100


def test_hostile_texts_format_nothing_in_markdown() -> None:
    html = _rendered(render_markdown(sample()))
    assert not re.search(r"<(script|img|a)\b", html)
    assert "**no** [no](http://no.example)" in html
    assert "<h1" not in html


@given(HARD)
def test_any_text_in_a_code_span_comes_through(text: str) -> None:
    html = _rendered(f"- {units.printable(code(text))}")
    line = units.printable(units.clip(" ".join(text.split()), 300))
    shown = Outline(html).text.strip()
    assert shown == (line if line.strip() else "empty")
    assert html.count("<") == 6  # a list, its item, and code or emphasis


@given(HARD)
def test_any_escaped_text_is_a_paragraph_of_nothing_but_text(text: str) -> None:
    html = _rendered(units.printable(escape(text)))
    line = units.printable(" ".join(text.split()))
    assert Outline(html).text.replace("\u200b", "").strip() == line.replace("\u200b", "").strip()
    assert html == "" or re.fullmatch(r"<p>[^<]*</p>\n", html)


@pytest.mark.parametrize("text", ["@nobody", "see #12", "http://a.example", "www.a.example"])
def test_nobody_is_mentioned_and_nothing_is_linked(text: str) -> None:
    assert text not in escape(text)


def _rendered(markdown: str) -> str:
    return (
        MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    )


def _text(rendered: str) -> str:
    """Words of a page, or of Markdown once it is a page."""
    page = rendered if rendered.startswith("<!doctype") else _rendered(rendered)
    return Outline(page).text.replace("\u200b", "")
