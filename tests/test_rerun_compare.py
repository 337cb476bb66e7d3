"""What ``rerun`` calls a difference: what was recorded then and is missing now is one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slmflow import console
from slmflow.replay import figures
from slmflow.replay.answers import ANSWERS
from slmflow.replay.circumstances import compare as compare_circumstances
from slmflow.replay.compare import compare
from slmflow.replay.record import Record
from slmflow.replay.results import Finding, Report, Sameness
from slmflow.replay.show import show_report
from slmflow.replay.start import RerunDiffers, demand_the_same
from tests.records import a_record

QUESTIONS = ("What is the capital of Spain?", "Tell a story.", "Count to ten.")


def a_probe(question: str) -> dict[str, Any]:
    return {"question": question, "prompt_ids": [1, 2], "answer_ids": [3, 4]}


def a_candidate(label: str, **figures: float) -> dict[str, Any]:
    told = {name: {"value": value, "low": value, "high": value} for name, value in figures.items()}
    return {"label": label, "uri": f"models:/{label}", "digest": label, "figures": told}


def a_decision(*candidates: str, chosen: str | None) -> dict[str, Any]:
    outcome = {"metric": "exact_match", "condition": "at_least 0.1", "holds": True}
    judged = [{"label": one, "outcomes": [outcome]} for one in candidates]
    return {"candidates": judged, "chosen": chosen}


EVALUATION: dict[str, Any] = {
    "candidates": [a_candidate("one v1", exact_match=0.5), a_candidate("two v2", exact_match=0.7)],
    "comparisons": [{"label": "two v2", "reference": "one v1", "agreement": 0.9}],
    "decision": a_decision("one v1", "two v2", chosen="two v2"),
}
WHOLE = a_record(
    {"slmflow.entry_point": "main", "revision": "sha256:1", "data.digest": "sha256:2"},
    {
        "weights.json": {"files": {"model.onnx": {"sha256": "1"}}},
        "probe.json": {"probes": [a_probe(question) for question in QUESTIONS]},
        "evaluation.json": EVALUATION,
    },
)


def found(then: Record, now: Record) -> dict[str, Finding]:
    return {f"{one.part}: {one.what}": one for one in compare(then, now)}


def with_documents(record: Record, changes: Mapping[str, Any]) -> Record:
    changed = {**record.documents, **changes}
    return replace(record, documents={name: one for name, one in changed.items() if one})


def judged_without(name: str) -> Record:
    return with_documents(WHOLE, {"evaluation.json": {**EVALUATION, name: None}})


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (with_documents(WHOLE, {"weights.json": None}), "main: weights"),
        (with_documents(WHOLE, {"probe.json": None}), "main: probe tokens"),
        (
            with_documents(WHOLE, {"probe.json": {"probes": [a_probe(QUESTIONS[0])]}}),
            "main: probe tokens",
        ),
        (with_documents(WHOLE, {"evaluation.json": None}), "main: evaluation"),
        (judged_without("decision"), "main: gate"),
        (
            with_documents(WHOLE, {"evaluation.json": {**EVALUATION, "comparisons": []}}),
            "main, two v2 beside one v1: comparison",
        ),
        (
            with_documents(
                WHOLE,
                {
                    "evaluation.json": {
                        **EVALUATION,
                        "candidates": [a_candidate("one v1"), EVALUATION["candidates"][1]],
                    }
                },
            ),
            "main, one v1: exact_match",
        ),
        (
            with_documents(
                WHOLE,
                {"evaluation.json": {**EVALUATION, "candidates": EVALUATION["candidates"][1:]}},
            ),
            "main, one v1: candidate",
        ),
    ],
)
def test_what_was_recorded_then_and_is_missing_now_is_different(now: Record, told: str) -> None:
    differing = {key for key, one in found(WHOLE, now).items() if one.sameness == "different"}
    assert told in differing
    assert Sameness.different not in {one.sameness for one in found(now, WHOLE).values()}
    assert {one.sameness for one in found(WHOLE, WHOLE).values()} == {Sameness.identical}


def test_a_prompt_that_is_not_asked_any_more_is_named() -> None:
    one = with_documents(WHOLE, {"probe.json": {"probes": [a_probe(QUESTIONS[0])]}})
    told = found(WHOLE, one)["main: probe tokens"]
    assert "2 of 3 prompts" in told.words and QUESTIONS[1] in told.words


def test_a_dataset_or_a_revision_that_is_missing_now_is_different() -> None:
    old = a_record({"slmflow.entry_point": "evaluate", "revision": "a", "data.digest": "b"}, {})
    less = a_record({"slmflow.entry_point": "evaluate"}, {})
    assert {one.what for one in compare(old, less)} == {"weights", "dataset"}
    assert {one.sameness for one in compare(old, less)} == {Sameness.different}
    assert {one.sameness for one in compare(less, old)} == {Sameness.unknown}


def test_rows_of_predict_that_are_missing_now_are_different() -> None:
    manifest = {"identity": {"input": [], "model": {"digest": "m"}, "parameters": {}}, "parts": []}
    tags = {"slmflow.entry_point": "predict"}
    then, now = a_record(tags, {"manifest.json": manifest}), a_record(tags, {})
    assert found(then, now)["predict: rows"].sameness is Sameness.different
    assert found(now, then)["predict: rows"].sameness is Sameness.unknown


@pytest.mark.parametrize(
    ("name", "expected"),
    [("exact_match", Sameness.different), ("load_seconds", Sameness.noise)],
)
def test_a_figure_that_is_missing_now_is_different_and_a_time_never_is(
    name: str, expected: Sameness
) -> None:
    (told,) = figures.compare("evaluate", {name: 1.0}, {})
    assert told.sameness is expected
    assert all(one.sameness is Sameness.unknown for one in figures.compare("x", {}, {name: 1.0}))


def with_answers(folder: Path, candidates: Mapping[str, str | None]) -> Record:
    """An evaluation; of each candidate what it answered, None where its run is missing."""
    parts = []
    for label, answer in candidates.items():
        if answer is not None:
            parts.append(_Answered(folder / label, label, answer).record)
    listed = [a_candidate(label) for label in candidates]
    evaluation = {"candidates": listed, "comparisons": []}
    return a_record(
        {"slmflow.entry_point": "evaluate"}, {"evaluation.json": evaluation}, tuple(parts)
    )


class _Answered:
    def __init__(self, folder: Path, label: str, answer: str) -> None:
        folder.mkdir(parents=True)
        file = folder / ANSWERS
        pq.write_table(pa.table({"id": ["1"], "answer": [answer], "error": [None]}), file)
        plain = a_record({}, {}, parameters={"label": label})
        self.record = _Kept(plain.run, plain.documents, plain.parts, file)


class _Kept(Record):
    """A run whose answers lie in a file."""

    def __init__(self, run: Any, documents: Any, parts: Any, file: Path) -> None:
        super().__init__(run, documents, parts)
        object.__setattr__(self, "_file", file)

    def artifact(self, name: str, folder: Path) -> Path | None:
        file: Path = self._file  # type: ignore[attr-defined]
        return file


def test_answers_are_paired_by_name_where_the_run_of_one_is_missing(tmp_path: Path) -> None:
    then = with_answers(tmp_path / "then", {"one v1": "a", "two v2": "b", "three v3": "c"})
    now = with_answers(tmp_path / "now", {"one v4": None, "three v6": "c", "two v5": "b"})
    told = {key: one.sameness for key, one in found(then, now).items()}
    assert told["evaluate, one v1: answers"] is Sameness.different
    assert told["evaluate, two v2: answers"] is Sameness.identical
    assert told["evaluate, three v3: answers"] is Sameness.identical


def test_what_main_packages_anew_is_known_by_its_name_in_figures_and_gate() -> None:
    later = {
        "candidates": [
            a_candidate("two v7", exact_match=0.7),
            a_candidate("one v6", exact_match=0.5),
        ],
        "comparisons": [{"label": "two v7", "reference": "one v6", "agreement": 0.9}],
        "decision": a_decision("two v7", "one v6", chosen="two v7"),
    }
    told = found(WHOLE, with_documents(WHOLE, {"evaluation.json": later}))
    assert {one.sameness for one in told.values()} == {Sameness.identical}
    assert told["main: gate"].words == "two v2 passed"


def a_report(*findings: Finding) -> Report:
    nothing = compare_circumstances({}, {}, "1")
    return Report("1", "2", "one", "main", "then", {}, [], nothing, findings)


def test_strict_refuses_what_differs_and_a_rerun_in_which_nothing_was_compared() -> None:
    same = Finding("main", "weights", Sameness.identical, "all")
    unknown = Finding("main", "probe tokens", Sameness.unknown, "not recorded then")
    times = Finding("main", "load_seconds", Sameness.noise, "2x")
    demand_the_same(a_report(same, unknown, times))
    other = Finding("main", "size_bytes", Sameness.different, "1 -> 2")
    with pytest.raises(RerunDiffers, match="main: size_bytes: 1 -> 2"):
        demand_the_same(a_report(same, other))
    for nothing in ((), (unknown,), (times, unknown)):
        with pytest.raises(RerunDiffers, match="nothing of run 1 could be compared") as refused:
            demand_the_same(a_report(*nothing))
        assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("status", "error", "sameness"),
    [
        ("FAILED", {"slmflow.error": "the builder is away"}, Sameness.different),
        ("FAILED", {}, Sameness.unknown),  # as MLflow calls a run that Ctrl-C ended
        ("KILLED", {}, Sameness.unknown),
    ],
)
def test_a_run_that_was_stopped_has_no_end_that_could_be_the_same(
    status: str, error: dict[str, str], sameness: Sameness
) -> None:
    tags = {"slmflow.entry_point": "custom_onnx"}
    then, now = a_record(tags | error, {}, status=status), a_record(tags, {})
    (state,) = [one for one in compare(then, now) if one.what == "state"]
    assert (state.sameness, state.words) == (sameness, f"{status} -> FINISHED")


def test_every_word_of_what_differs_is_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    words = "1 differ: code/slmflow/served/transformers_runtime_of_then.py, and nothing else"
    differs = Finding("transformers_pipeline", "code and settings", Sameness.different, words)
    show_report(a_report(differs), "/a/page")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= console.WIDTH
    assert words in " ".join(" ".join(lines).split())
