"""Scores of an answer: what each metric promises, and its values beside published ones."""

import json
import math
import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_chrf

from slmflow.errors import ConfigError
from slmflow.evaluation.data.example import Example
from slmflow.evaluation.metrics import (
    METRICS,
    Metric,
    chrf,
    contains_answer,
    correct,
    exact_match,
    is_right_wrong,
    json_schema,
    normalize,
    number,
    regex,
    rouge_l,
    score,
    select_metrics,
    token_f1,
)

REFERENCE = Path(__file__).parent / "reference"
BY_REFERENCE = ("exact_match", "contains_answer", "token_f1", "rouge_l", "chrf")
WORDS = st.text("ab c.\N{LATIN SMALL LETTER E WITH ACUTE}", max_size=12)
ASCII = st.text(st.characters(codec="ascii"), max_size=30)


def row(*references: str, **checks: Any) -> Example:
    return Example("1", prompt="?", references=references, **checks)


def published(name: str) -> list[dict[str, Any]]:
    """The cases of a file; its ``source`` says where the values come from."""
    cases: list[dict[str, Any]] = json.loads((REFERENCE / f"{name}.json").read_text())["cases"]
    return cases


@pytest.mark.parametrize("case", published("squad"), ids=lambda case: case["answer"])
def test_exact_match_and_f1_are_those_of_squads_own_evaluation(case: dict[str, Any]) -> None:
    asked = row(*case["references"])
    assert exact_match(case["answer"], asked) == case["exact_match"]
    assert token_f1(case["answer"], asked) == pytest.approx(case["token_f1"])


@pytest.mark.parametrize("case", published("rouge"), ids=lambda case: case["answer"][:20])
def test_rouge_l_has_the_values_of_the_original_rouge(case: dict[str, Any]) -> None:
    assert rouge_l(case["answer"], row(*case["references"])) == pytest.approx(
        case["rouge_l"], abs=5e-6
    )


@pytest.mark.parametrize("case", published("chrf"), ids=lambda case: case["answer"])
def test_chrf_has_the_values_that_sacrebleu_documents(case: dict[str, Any]) -> None:
    assert chrf(case["answer"], row(*case["references"])) == pytest.approx(case["chrf"], abs=1e-6)


@settings(deadline=None)
@given(ASCII, st.lists(ASCII, min_size=1, max_size=3))
@example("snake_case", ["snake case"])
def test_rouge_l_of_english_is_rouge_scores_own(answer: str, references: list[str]) -> None:
    if answer not in references:
        own = RougeScorer(["rougeL"]).score_multi(references, answer)["rougeL"].fmeasure
        assert rouge_l(answer, row(*references)) == pytest.approx(own)


def f_score_of_characters(answer: str, reference: str) -> float:
    """Popović 2015: precision and recall of the n-grams of each length, averaged; beta 2."""
    shares = []
    answer, reference = ("".join(text.split()) for text in (answer, reference))
    for n in range(1, 7):
        a, r = (
            Counter(text[i : i + n] for i in range(len(text) - n + 1))
            for text in (answer, reference)
        )
        if a and r:
            shared = (a & r).total()
            shares.append((shared / a.total(), shared / r.total()))
    precision, recall = np.mean(shares, axis=0) if shares else (0, 0)
    return float(5 * precision * recall / (4 * precision + recall)) if precision else 0.0


@settings(deadline=None)
@given(WORDS, WORDS)
@example("Co nas nejvic trapi", "Nejvice smutni jsme z toho")
def test_chrf_is_the_papers_formula(answer: str, reference: str) -> None:
    if answer != reference:
        ours = chrf(answer, row(reference))
        assert ours == pytest.approx(f_score_of_characters(answer, reference))
        assert ours == pytest.approx(corpus_chrf([answer], [[reference]]).score / 100)


@pytest.mark.parametrize("text", ["Madrid", "\N{GRINNING FACE}", "?!", "", "東京", "the"])
@pytest.mark.parametrize("name", BY_REFERENCE)
def test_a_reference_scores_full_on_itself(name: str, text: str) -> None:
    assert METRICS[name](text, row("other", text)) == 1


@pytest.mark.parametrize("name", BY_REFERENCE)
@settings(deadline=None)
@given(answer=WORDS, references=st.lists(WORDS, min_size=1, max_size=3))
def test_a_score_is_that_of_the_best_reference_in_any_order(
    name: str, answer: str, references: list[str]
) -> None:
    metric = METRICS[name]
    value = metric(answer, row(*references))
    assert value is not None and 0 <= value <= 1
    assert value == max(metric(answer, row(reference)) or 0 for reference in references)
    assert metric(answer, row(*reversed(references))) == value
    assert metric(answer, row(*references, answer)) == 1


@settings(deadline=None)
@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_an_exact_match_is_contained_and_has_full_f1(answer: str, references: list[str]) -> None:
    asked = row(*references)
    if exact_match(answer, asked):
        assert contains_answer(answer, asked) == 1
        assert token_f1(answer, asked) == 1


@pytest.mark.parametrize("name", METRICS)
def test_no_metric_applies_to_a_row_that_demands_nothing(name: str) -> None:
    assert METRICS[name]("Madrid", row()) is None


@pytest.mark.parametrize("name", METRICS)
@settings(deadline=None)
@given(answer=st.text(max_size=40))
@example(answer="[" * 100_000)  # a model that never stops
@example(answer="1," * 5_000)
@example(answer="9" * 5_000)
def test_any_text_at_all_gets_a_score(name: str, answer: str) -> None:
    demanding = row("Madrid", regex="^M", json_schema={"type": "array"}, number=3)
    if name in ("chrf", "rouge_l"):
        answer = answer[:1000]
    value = METRICS[name](answer, demanding)
    assert value is not None and 0 <= value <= 1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel  Tower!", "eiffel tower"),
        ("a, an and the", "and"),
        ("Another theory", "another theory"),
        ("it's 3.5 km", "its 35 km"),
        (" \n\t", ""),
        ("\N{LATIN CAPITAL LETTER E WITH ACUTE}t", "\N{LATIN SMALL LETTER E WITH ACUTE}t"),
    ],
)
def test_normal_form_drops_case_punctuation_articles_and_spaces(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("metric", "answer", "references", "expected"),
    [
        (exact_match, "Madrid, Spain", ["Madrid"], 0),
        (exact_match, "Paris", ["Madrid", "Paris"], 1),
        (contains_answer, "It is Madrid, of course.", ["Madrid"], 1),
        (contains_answer, "It is Madrid", ["Barcelona", "madrid"], 1),
        (contains_answer, "Madrider", ["Madrid"], 0),
        (contains_answer, "New old York", ["New York"], 0),
        (contains_answer, "York New", ["New York"], 0),
        (contains_answer, "in New York", ["The New York"], 1),
        (contains_answer, "", ["Madrid"], 0),
        (token_f1, "It is Madrid", ["Madrid"], 0.5),  # precision 1/3, recall 1
        (token_f1, "is it Madrid", ["nothing", "Madrid it is"], 1),
        (rouge_l, "is it Madrid", ["Madrid it is"], 1 / 3),  # the longest in order is one word
        (rouge_l, "München liegt in Bayern", ["Munchen liegt in Bayern"], 3 / 4),
        (rouge_l, "東京 都", ["東京 府"], 1 / 2),
        (chrf, "xyz", ["Madrid"], 0),
    ],
)
def test_an_answer_scores(
    metric: Metric, answer: str, references: list[str], expected: float
) -> None:
    assert metric(answer, row(*references)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pattern", "answer", "expected"),
    [
        ("drid", "It is Madrid.", 1),
        ("^Madrid$", "\n Madrid \n", 1),
        ("^Madrid$", "It is Madrid", 0),
        ("madrid", "Madrid", 0),
        ("(?i)madrid", "Madrid", 1),
    ],
)
def test_a_pattern_is_searched_in_the_stripped_answer(
    pattern: str, answer: str, expected: float
) -> None:
    assert regex(answer, row(regex=pattern)) == expected


CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/name"}, "people": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"name": {"type": "string", "minLength": 1}},
}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"city": "Madrid"}', 1),
        (' {"city": "Madrid", "people": 3400000}\n', 1),
        ('```json\n{"city": "Madrid"}\n```', 1),
        ('Here it is:\n```JSON\n{"city": "Madrid"}\n```\nDo you need more?', 1),
        ('```\n{"city": "Madrid"}\n```', 1),
        ('```json\n{"city": "Madrid"}\n', 1),  # a stop text took the end of the fence
        ('```json\n{"city": "say ``` here"}\n```', 1),
        ('{"city": ""}', 0),
        ('{"city": 5}', 0),
        ('{"people": 5}', 0),
        ('{"city": "Madrid", "people": NaN}', 0),
        ('{"city": "Madrid"', 0),
        ('The answer is {"city": "Madrid"}', 0),
        ('```python\n{"city": "Madrid"}\n```', 0),
        ("{'city': 'Madrid'}", 0),
        ("Madrid", 0),
        ("", 0),
    ],
)
def test_json_must_parse_and_follow_the_schema(answer: str, expected: float) -> None:
    assert json_schema(answer, row(json_schema=CITY)) == expected


def test_a_schema_is_read_in_the_dialect_that_it_names() -> None:
    tuple_of_draft_7 = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "items": [{"type": "string"}, {"type": "integer"}],
    }
    assert json_schema('["a", 1]', row(json_schema=tuple_of_draft_7)) == 1
    assert json_schema('["a", "b"]', row(json_schema=tuple_of_draft_7)) == 0


def test_a_schema_elsewhere_is_not_fetched_but_told(tmp_path: Path) -> None:
    (tmp_path / "anything.json").write_text("{}")
    elsewhere = (tmp_path / "anything.json").as_uri()
    asked = row(json_schema={"$ref": elsewhere})
    scores, failures = score("{}", asked, select_metrics(["json_schema"]))
    assert scores == {}
    assert "Unresolvable" in failures["json_schema"] and elsewhere in failures["json_schema"]


@pytest.mark.parametrize("answer", ["NaN", "[Infinity]", "[-Infinity]"])
def test_what_only_python_takes_for_json_is_none(answer: str) -> None:
    assert json_schema(answer, row(json_schema={})) == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("42", 42),
        ("The answer is 42.", 42),
        ("First 7, then 42!", 42),
        ("**42**", 42),
        ("\\boxed{42}", 42),
        ("wait...42", 42),
        ("42 km", 42),
        ("42km", 42),
        ("-42", -42),
        ("\N{MINUS SIGN}42", -42),
        ("+42", 42),
        ("x=-42", -42),
        ("50-42", 42),
        ("(1)-42", 42),
        ("8 - 42", 42),
        ("-$42", -42),
        ("$-42", -42),
        ("$1,234.50", 1234.5),
        ("US$1,234,567", 1234567),
        ("1'234'567", 1234567),
        ("1_000", 1000),
        ("12\N{NARROW NO-BREAK SPACE}345", 12345),
        ("1,2345", 2345),  # no thousands
        ("1, 234", 234),
        ("12,345,67", 67),
        (".5", 0.5),
        ("-.5", -0.5),
        ("0.50", 0.5),
        ("1.2.3 and 4", 4),
        ("1.5e3", 1500),
        ("1.5E-3", 0.0015),
        ("1.5 x 10^3", 1500),
        ("1.5\N{MULTIPLICATION SIGN}10^-3", 0.0015),
        ("$1.5 \\times 10^{3}$", 1500),
        ("50%", 50),
        ("50%", 0.5),
        ("50 %", 50),
        ("50\\%", 0.5),
        ("42 of H2O", 42),
        ("42 m^2", 42),
        ("42 in v1.2.3", 42),
        ("0", 0),
        ("-0", 0),
        ("\N{ARABIC-INDIC DIGIT FOUR}\N{ARABIC-INDIC DIGIT TWO}", 42),
    ],
)
def test_the_last_number_of_an_answer_is_read(answer: str, expected: float) -> None:
    assert number(answer, row(number=expected)) == 1


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("42 and 7", 42),
        ("forty-two", 42),
        ("", 0),
        ("H2O", 2),
        ("-42", 42),
        ("42.0000001", 42),
        ("0.5", 50),
        ("1/2", 0.5),
        ("3,5", 3.5),
        ("1e999", 42),
        ("1e-12", 0),
    ],
)
def test_another_number_or_none_is_wrong(answer: str, wanted: float) -> None:
    assert number(answer, row(number=wanted)) == 0


@given(st.floats(-1e15, 1e15, allow_subnormal=False))
def test_every_way_to_write_a_number_is_read(value: float) -> None:
    for written in (f"{value!r}", f"{value:.17e}", f"= {value!r}!"):
        assert number(written, row(number=value)) == 1
    assert number(f"{round(value):,}", row(number=float(round(value)))) == 1


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (row("Madrid"), 1),
        (row("Paris"), 0),
        (row(), None),
        (row("Paris", regex="Madrid"), 1),  # the row's checks decide, not its references
        (row(regex="Madrid", number=3), 0),
        (row(regex="Madrid", json_schema={"type": "string"}), 0),
    ],
)
def test_an_answer_is_correct_where_it_meets_all_that_its_row_demands(
    asked: Example, expected: float | None
) -> None:
    assert correct("Madrid.", asked) == expected


def test_built_in_metrics_are_found_by_name_in_the_order_asked_for() -> None:
    assert list(METRICS) == ["correct", *BY_REFERENCE, "regex", "json_schema", "number"]
    assert list(select_metrics(["chrf", "correct"]).items()) == [
        ("chrf", chrf),
        ("correct", correct),
    ]


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module of the user's own in it."""
    code = """
        from slmflow_missing_part import nothing
    """
    (tmp_path / "broken_metrics.py").write_text(textwrap.dedent(code))
    (tmp_path / "unfinished_metrics.py").write_text("def politeness(:\n")
    code = """
        def politeness(answer, example):
            return "please" in answer

        def exact_match(answer, example):
            return 1

        def one_sided(answer):
            return 1

        version = 3
    """
    (tmp_path / "polite_metrics.py").write_text(textwrap.dedent(code))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("polite_metrics", "broken_metrics", "unfinished_metrics"):
        sys.modules.pop(name, None)


def test_a_function_of_the_users_own_is_a_metric_by_its_name(own_folder: Path) -> None:
    metrics = select_metrics(["chrf", "polite_metrics:politeness"])
    assert list(metrics) == ["chrf", "politeness"]
    assert score("Madrid, please", row(), metrics) == ({"politeness": 1.0}, {})


def test_a_module_on_pythonpath_is_found_from_any_folder(own_folder: Path) -> None:
    code = "from slmflow.evaluation.metrics import select_metrics\n"
    code += "print(*select_metrics(['polite_metrics:politeness']))"
    source = str(Path(__file__).parents[1] / "src")
    path = os.pathsep.join([source, str(own_folder)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=own_folder.parent,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("politeness\n", "")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["exact_mach"], r"'exact_mach' \(did you mean exact_match\?\); built in are correct, "),
        (["zzz"], "no metric 'zzz'; built in are .*; a function of your own is module:function"),
        (["chrf", "chrf"], "chrf is asked for twice in chrf, chrf"),
        (["polite_metrics:politeness"] * 2, "politeness is asked for twice"),
        (["polite_metrics:exact_match"], "exact_match is the name of a figure already"),
        (["polite_metrics:errors"], "errors is the name of a figure already"),
        (["no_such_module:f"], "no module no_such_module in .* nor on PYTHONPATH"),
        (["polite_metrics.part:f"], "polite_metrics.part"),
        (["polite_metrics:politenes"], r"politenes in .*\.py \(did you mean politeness\?\)"),
        (["polite_metrics:version"], "no function version"),
        (["polite_metrics:one_sided"], r"takes \(answer\); a metric takes \(answer: str, example"),
        (["broken_metrics:f"], "broken_metrics cannot be imported: .*slmflow_missing_part"),
        (["unfinished_metrics:f"], "unfinished_metrics cannot be imported: SyntaxError"),
        (["polite_metrics:"], "is not module:function, as in my_metrics:politeness"),
        ([":f"], "is not module:function"),
        (["polite_metrics.py:f g"], "is not module:function"),
    ],
)
def test_a_metric_that_cannot_be_used_is_told_before_anything_runs(
    names: list[str], said: str, own_folder: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        select_metrics(names)


def scored(value: Any) -> tuple[dict[str, float], dict[str, str]]:
    return score("Madrid", row("Madrid"), {"own": lambda answer, example: value, "em": exact_match})


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, 1), (0, 0), (0.25, 0.25), (np.float32(0.5), 0.5), (np.bool_(True), 1), (1 + 1e-9, 1)],
)
def test_any_number_from_0_to_1_is_a_score(value: Any, expected: float) -> None:
    scores, failures = scored(value)
    assert (scores, failures) == ({"own": expected, "em": 1.0}, {})
    assert type(scores["own"]) is float


def test_a_metric_that_does_not_apply_leaves_no_score() -> None:
    assert scored(None) == ({"em": 1.0}, {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.5", "TypeError: returned '0.5', no number from 0 to 1 and not None"),
        ([1], "TypeError: returned [1], no number"),
        (math.nan, "ValueError: returned nan, no number from 0 to 1"),
        (math.inf, "ValueError: returned inf"),
        (7, "ValueError: returned 7"),
        (-0.1, "ValueError: returned -0.1"),
    ],
)
def test_what_is_no_score_is_told_and_the_other_metrics_go_on(value: Any, message: str) -> None:
    scores, failures = scored(value)
    assert scores == {"em": 1.0}
    assert list(failures) == ["own"]
    assert failures["own"].startswith(message)


def test_a_metric_that_raises_is_told_in_one_line_and_the_others_go_on() -> None:
    def fails(answer: str, example: Example) -> float:
        return len(answer) + None  # type: ignore[operator]

    def rambles(answer: str, example: Example) -> float:
        raise KeyError("a\nb " * 1000)

    metrics: dict[str, Metric] = {"fails": fails, "rambles": rambles, "em": exact_match}
    scores, failures = score("Madrid", row("Madrid"), metrics)
    assert scores == {"em": 1.0}
    assert failures["fails"].startswith("TypeError: unsupported operand")
    assert failures["rambles"].startswith("KeyError: ")
    assert "\n" not in failures["rambles"] and len(failures["rambles"]) <= 300


def test_a_row_with_a_broken_pattern_is_a_failure_of_that_row_only() -> None:
    scores, failures = score("Madrid", row("Madrid", regex="("), METRICS)
    assert failures["regex"].startswith(("PatternError: ", "error: "))
    assert {"exact_match", "chrf"} <= set(scores)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1, 1], True), ([1.0], True), ([0, 0.5], False), ([0, 1, 2], False), ([-1, 0], False)],
)
def test_right_or_wrong_scores_are_0_and_1_only(values: list[float], expected: bool) -> None:
    assert is_right_wrong(np.array(values)) is expected


def test_ten_thousand_short_rows_take_seconds_not_minutes() -> None:
    asked = row(
        *("Madrid", "It is the city of Madrid in Spain"),
        regex="Madrid",
        json_schema=CITY,
        number=3,
    )
    score("warm", asked, METRICS)
    begin = time.process_time()
    for index in range(500):
        score(f"The capital of Spain is Madrid, a city of {index} million", asked, METRICS)
    assert time.process_time() - begin < 1.5  # 10,000 rows: under 30 s on any machine


def test_metrics_are_imported_without_the_slow_libraries() -> None:
    code = "import sys, slmflow.evaluation.metrics; "
    code += "print([m for m in ('nltk', 'sacrebleu', 'scipy', 'torch') if m in sys.modules])"
    source = str(Path(__file__).parents[1] / "src")
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
