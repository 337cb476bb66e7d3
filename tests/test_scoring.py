"""Scores of all rows together, slices, agreement, and the rows where candidates differ."""

from collections.abc import Sequence

import pytest

from slmflow.answering.reply import Reply
from slmflow.config.evaluation import Score
from slmflow.evaluation.compare import agreement, differences, disagreements, ratios
from slmflow.evaluation.data.example import Example
from slmflow.evaluation.metrics import METRICS
from slmflow.evaluation.results import Figure, Verdict
from slmflow.evaluation.scoring import Tally, quality, score_rows, slices, tally

SETTINGS = Score(resamples=200)
COUNTRIES = ("Spain", "Italy", "France", "Peru")
CAPITALS = ("Madrid", "Rome", "Paris", "Lima")


def examples() -> list[Example]:
    return [
        Example(str(i), prompt=country, references=(capital,), tags={"half": str(i % 2)})
        for i, (country, capital) in enumerate(zip(COUNTRIES, CAPITALS, strict=True))
    ]


def tallied(answers: Sequence[str | Reply]) -> Tally:
    replies = [answer if isinstance(answer, Reply) else Reply(answer) for answer in answers]
    rows = score_rows(zip(examples(), replies, strict=True), METRICS)
    return tally(rows, len(replies), METRICS)


def test_quality_is_the_mean_over_the_rows_that_a_metric_applies_to() -> None:
    found = quality(tallied(["Madrid", "Rome", "Lyon", "Lima"]).scores, SETTINGS)
    assert found["exact_match"].value == 0.75
    assert found["exact_match"].rows == 4
    assert found["exact_match"].low < 0.75 < found["exact_match"].high
    assert "regex" not in found, "no row has one"


def test_a_row_without_an_answer_counts_as_wrong_and_is_told() -> None:
    found = tallied(["Madrid", Reply("Rome", error="no such luck"), "Paris", "Lima"])
    assert found.scores["exact_match"].tolist() == [1, 0, 1, 1]
    assert (found.unanswered, found.first_error) == (1, "no such luck")


def test_a_scorer_that_raises_leaves_its_row_out_and_says_so() -> None:
    def picky(answer: str, example: Example) -> float:
        if answer == "Lyon":
            raise KeyError("Lyon")
        return 1.0

    replies = [Reply(text) for text in ("Madrid", "Rome", "Lyon", "Lima")]
    rows = score_rows(zip(examples(), replies, strict=True), {"picky": picky})
    found = tally(rows, 4, ["picky"])
    assert found.failed["picky"].rows == 1
    assert "KeyError" in found.failed["picky"].message
    assert quality(found.scores, SETTINGS)["picky"].rows == 3


def test_slices_are_the_rows_of_each_value_of_a_tag() -> None:
    found = slices(tallied(["Madrid", "x", "Paris", "Lima"]), SETTINGS)
    assert found["half"]["0"]["correct"].value == 1
    assert found["half"]["1"]["correct"].value == 0.5


def test_differences_are_paired_and_judged() -> None:
    good, bad = tallied(CAPITALS), tallied(["Madrid", "x", "y", "z"])
    found = differences(bad, good, SETTINGS)["exact_match"]
    assert found.change.value == -0.75
    assert found.verdict is Verdict.too_few_rows
    assert found.rows_needed is not None
    assert found.rows_needed > 4


def test_agreement_counts_equal_texts() -> None:
    assert agreement(tallied(CAPITALS), tallied(["Madrid", "Rome", "x", "y"])) == 0.5


def test_ratios_pair_rounds_and_compare_sizes() -> None:
    one = {"size_bytes": Figure(10, 10, 10), "load_seconds": Figure(5, 2, 8)}
    other = {"size_bytes": Figure(40, 40, 40), "load_seconds": Figure(1.5, 1, 2)}
    found = ratios(one, other, {"load_seconds": [2, 8]}, {"load_seconds": [1, 2]})
    assert found["size_bytes"].value == 0.25
    assert (found["load_seconds"].low, found["load_seconds"].high) == (2, 4)
    assert found["load_seconds"].value == pytest.approx(5 / 1.5), "as the figures beside it"


def test_rows_are_shown_by_how_much_candidates_differ() -> None:
    sides = []
    for label, answers in (("a", CAPITALS), ("b", ("Madrid", "Rome", "Lyon", "Lima!"))):
        pairs = [(e, Reply(text)) for e, text in zip(examples(), answers, strict=True)]
        sides.append((label, pairs, tallied(answers)))
    first, second = disagreements(sides, "correct", 10)
    assert (first.question, first.answers) == ("France", {"a": "Paris", "b": "Lyon"})
    assert first.scores["a"]["correct"] == 1
    assert first.scores["b"]["correct"] == 0
    assert second.question == "Peru", "other words, the same score"
    assert [row.id for row in disagreements(sides, "correct", 1)] == [first.id]
