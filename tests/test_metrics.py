"""Scores, results and the evaluation sets they are made from."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmflow.answering.ask import Reply, Session
from slmflow.errors import DataError
from slmflow.evaluation.compare import Result, agreement, score, summarize
from slmflow.evaluation.dataset import SHOWN_ERRORS, Example, read_dataset
from slmflow.evaluation.metrics import (
    METRICS,
    chrf,
    contains_answer,
    exact_match,
    normalize,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel  Tower!", "eiffel tower"),
        ("a, an and the", "and"),
        ("Another theory", "another theory"),
        ("it's 3.5 km", "its 35 km"),
        (" \n\t", ""),
        ("\N{LATIN CAPITAL LETTER E WITH ACUTE}t\N{LATIN SMALL LETTER E WITH ACUTE}", "\xe9t\xe9"),
    ],
)
def test_normal_form_drops_case_punctuation_articles_and_spaces(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("metric", "answer", "references", "expected"),
    [
        (exact_match, "Madrid", ["Madrid"], 1),
        (exact_match, "the madrid.", ["Madrid!"], 1),
        (exact_match, "Madrid, Spain", ["Madrid"], 0),
        (exact_match, "Paris", ["Madrid", "Paris"], 1),
        (exact_match, "", ["Madrid"], 0),
        (contains_answer, "It is Madrid, of course.", ["Madrid"], 1),
        (contains_answer, "It is Madrid", ["Barcelona", "madrid"], 1),
        (contains_answer, "Madrider", ["Madrid"], 0),
        (contains_answer, "New old York", ["New York"], 0),
        (contains_answer, "York New", ["New York"], 0),
        (contains_answer, "in New York", ["The New York"], 1),
        (contains_answer, "", ["Madrid"], 0),
        (token_f1, "Madrid", ["Madrid"], 1),
        (token_f1, "It is Madrid", ["Madrid"], 0.5),  # precision 1/3, recall 1
        (token_f1, "red red blue", ["red blue blue"], 2 / 3),  # words count as often as they stand
        (token_f1, "is it Madrid", ["nothing", "Madrid it is"], 1),
        (token_f1, "Paris", ["Madrid"], 0),
        (token_f1, "", ["Madrid"], 0),
        (token_f1, "the", ["a"], 1),  # nothing is left of either
        (chrf, "Madrid", ["Madrid"], 1),
        (chrf, "xyz", ["Madrid"], 0),
        (chrf, "", ["Madrid"], 0),
    ],
)
def test_an_answer_scores(
    metric: Callable[[str, Sequence[str]], float],
    answer: str,
    references: list[str],
    expected: float,
) -> None:
    assert metric(answer, references) == pytest.approx(expected)


def test_chrf_honours_a_near_miss_between_nothing_and_all() -> None:
    assert 0.1 < chrf("Madird", ["Madrid"]) < 0.9
    assert chrf("Madrid", ["Lisbon", "Madrid"]) == pytest.approx(1)


WORDS = st.text("ab c.", max_size=12)


@pytest.mark.parametrize("name", METRICS)
@settings(deadline=None)
@given(answer=WORDS, references=st.lists(WORDS, min_size=1, max_size=3))
def test_scores_lie_between_0_and_1_and_grow_with_more_references(
    name: str, answer: str, references: list[str]
) -> None:
    metric = METRICS[name]
    value = metric(answer, references)
    assert 0 <= value <= 1.000001
    assert value == pytest.approx(max(metric(answer, [reference]) for reference in references))
    assert metric(answer, [*references, answer]) >= value - 1e-9


@settings(deadline=None)
@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_an_exact_match_is_contained_and_has_full_f1(answer: str, references: list[str]) -> None:
    if exact_match(answer, references):
        assert contains_answer(answer, references) == 1
        assert token_f1(answer, references) == 1


EXAMPLES = [Example("1", ("Madrid",)), Example("2", ("Paris", "Lutetia"))]


def test_scores_have_one_value_an_example_in_their_order() -> None:
    scores = score([Reply("It is Madrid", 1.0), Reply("lutetia", 1.0)], EXAMPLES)
    assert set(scores) == set(METRICS)
    assert scores["exact_match"] == [0, 1]
    assert scores["contains_answer"] == [1, 1]
    assert scores["token_f1"] == [0.5, 1]
    with pytest.raises(ValueError, match="zip"):
        score([Reply("Madrid", 1.0)], EXAMPLES)


FAST = Reply("a", 1.0, first_token_seconds=0.2, completion_tokens=10)
SLOW = Reply("b", 3.0, first_token_seconds=0.4, completion_tokens=20)


def test_a_summary_holds_means_medians_and_rates() -> None:
    session = Session([FAST, SLOW, SLOW], load_seconds=2.5, peak_memory_bytes=1000)
    assert summarize(session, {"exact_match": [0.0, 1.0, 1.0]}, 500) == {
        "exact_match": pytest.approx(2 / 3),
        "answer_seconds_median": 3.0,
        "tokens_per_second": pytest.approx(50 / 7),
        "first_token_seconds_median": 0.4,
        "load_seconds": 2.5,
        "peak_memory_bytes": 1000.0,
        "size_bytes": 500.0,
    }


def test_what_a_model_does_not_tell_is_left_out_of_its_summary() -> None:
    untold = replace(SLOW, first_token_seconds=None, completion_tokens=None)
    nothing = summarize(Session([untold, untold]), {}, None)
    assert set(nothing) == {"answer_seconds_median", "load_seconds", "peak_memory_bytes"}
    some = summarize(Session([FAST, untold]), {}, None)
    assert some["tokens_per_second"] == 10  # over the time of those that tell
    assert some["first_token_seconds_median"] == 0.2


def result(label: str, *texts: str) -> Result:
    return Result(label, label, "-", [Reply(text, 1.0) for text in texts], {}, {})


def test_agreement_is_the_share_of_equal_texts_for_every_pair() -> None:
    models = [result("a", "x", "y"), result("b", "x", "z"), result("c", "X", "z")]
    assert agreement(models) == {("a", "b"): 0.5, ("a", "c"): 0.0, ("b", "c"): 0.5}
    assert agreement(models[:1]) == {}
    with pytest.raises(ValueError, match="zip"):
        agreement([result("a", "x"), result("b", "x", "z")])


QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Capital of Spain?"}],
    "references": ["Madrid"],
}
PROMPT = {"prompt": "Spain's capital is", "references": ["Madrid", "the city of Madrid"]}


def write_lines(folder: Path, *rows: Any) -> Path:
    path = folder / "set.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_bytes("\n".join(lines).encode())
    return path


def test_rows_become_examples(tmp_path: Path) -> None:
    tagged = {**QUESTION, "id": 7, "tags": {"topic": "cities", "level": 2}}
    path = write_lines(tmp_path, QUESTION, "", PROMPT, "  ", tagged, "")
    dataset = read_dataset("demo", path, None)
    assert (dataset.name, dataset.path) == ("demo", path)
    assert dataset.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    chat, prompt, labelled = dataset.examples
    assert (chat.id, prompt.id, labelled.id) == ("1", "3", "7")
    assert chat.request == {"messages": QUESTION["messages"]}
    assert chat.question == "Capital of Spain?"
    assert prompt.request == {"prompt": "Spain's capital is"}
    assert prompt.references == ("Madrid", "the city of Madrid")
    assert labelled.tags == {"topic": "cities", "level": "2"}


def test_the_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = write_lines(tmp_path, *({**PROMPT, "id": i} for i in range(5)))
    assert [example.id for example in read_dataset("demo", path, 2).examples] == ["0", "1"]
    assert len(read_dataset("demo", path, 50).examples) == 5


def test_a_row_is_a_line_whatever_its_texts_hold(tmp_path: Path) -> None:
    separators = "a\N{LINE SEPARATOR}b\N{NEXT LINE}c"
    row = json.dumps({**PROMPT, "prompt": separators}, ensure_ascii=False)
    path = write_lines(tmp_path, row + "\r", PROMPT)
    first, second = read_dataset("demo", path, None).examples
    assert first.question == separators
    assert second.id == "2"


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = write_lines(tmp_path, "\N{ZERO WIDTH NO-BREAK SPACE}" + json.dumps(PROMPT))
    assert len(read_dataset("demo", path, None).examples) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "is no JSON: Expecting property name enclosed in double quotes, column 2"),
        ("[1]", "is no JSON object"),
        ('"text"', "is no JSON object"),
        ("null", "is no JSON object"),
        ({}, "needs either messages or prompt"),
        ({**QUESTION, "prompt": "x"}, "needs either messages or prompt"),
        ({**PROMPT, "refs": []}, "unknown field 'refs'"),
        ({"prompt": "x"}, "references must be a list"),
        ({"prompt": "x", "references": []}, "references must be a list"),
        ({"prompt": "x", "references": "Madrid"}, "references must be a list"),
        ({"prompt": "x", "references": [1]}, "references must be a list"),
        ({**PROMPT, "prompt": " "}, "prompt must be a text"),
        ({**PROMPT, "prompt": None}, "prompt must be a text"),
        ({**PROMPT, "prompt": ["x"]}, "prompt must be a text"),
        ({**QUESTION, "messages": []}, "messages must be role"),
        ({**QUESTION, "messages": None}, "messages must be role"),
        ({**QUESTION, "messages": 5}, "messages must be role"),
        ({**QUESTION, "messages": QUESTION["messages"][0]}, "messages must be role"),
        ({**QUESTION, "messages": [{"role": "tool", "content": "x"}]}, "system, user, assistant"),
        ({**QUESTION, "messages": [{"role": "user", "content": 5}]}, "messages must be role"),
        ({**QUESTION, "messages": ["x"]}, "messages must be role"),
        ({**PROMPT, "tags": None}, "tags must be an object"),
        ({**PROMPT, "tags": ["a"]}, "tags must be an object"),
    ],
)
def test_a_bad_row_is_named_with_its_line(row: Any, said: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path, QUESTION, "", row, PROMPT)
    with pytest.raises(DataError) as refusal:
        read_dataset("demo", path, limit=1)
    file, problem = str(refusal.value).splitlines()
    assert file == f"{path}:"
    assert problem.strip().startswith("line 3: ")
    assert said in problem


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(json.dumps(PROMPT).encode() + b'\n{"prompt": "\xff", "references": ["x"]}\n')
    with pytest.raises(DataError, match=r"line 2: .*utf-8"):
        read_dataset("demo", path, None)


def test_every_bad_row_is_listed_up_to_a_bound(tmp_path: Path) -> None:
    path = write_lines(tmp_path, "{", PROMPT, "[]", "{}")
    with pytest.raises(DataError) as refusal:
        read_dataset("demo", path, None)
    assert [line.strip().split(":")[0] for line in str(refusal.value).splitlines()[1:]] == [
        "line 1",
        "line 3",
        "line 4",
    ]
    path = write_lines(tmp_path, *["{}"] * (SHOWN_ERRORS + 5))
    with pytest.raises(DataError, match="and 5 more") as refusal:
        read_dataset("demo", path, None)
    assert str(refusal.value).count("line ") == SHOWN_ERRORS


@pytest.mark.parametrize("content", ["", "\n\n", "   \n"])
def test_a_set_without_rows_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        read_dataset("demo", write_lines(tmp_path, content), None)


def test_a_set_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.path=.*missing.jsonl cannot be read"):
        read_dataset("demo", tmp_path / "missing.jsonl", None)
    with pytest.raises(DataError, match=r"data.path=.* cannot be read"):
        read_dataset("demo", tmp_path, None)
