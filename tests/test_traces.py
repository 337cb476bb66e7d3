"""Rows in MLflow's UI: what a trace of a row holds, read back from a real store."""

from pathlib import Path

import mlflow
import pytest

from slmflow.answering.reply import Reply
from slmflow.evaluation.data.example import Example
from slmflow.evaluation.scoring import ScoredRow
from slmflow.evaluation.traces import BATCH, traced


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    made = mlflow.create_experiment("rows", artifact_location=(tmp_path / "artifacts").as_uri())
    yield made  # type: ignore[misc]
    mlflow.set_tracking_uri(before)


def row(number: int, reply: Reply | None = None, **failures: str) -> ScoredRow:
    example = Example(
        f"row-{number}", prompt=f"question {number}", references=("yes",), tags={"kind": "odd"}
    )
    return ScoredRow(example, reply or Reply(f"answer {number}"), {"correct": 1.0}, failures)


def log(experiment: str, rows: list[ScoredRow]) -> list[mlflow.entities.Trace]:
    with mlflow.start_run(experiment_id=experiment) as run:
        assert list(traced(iter(rows), None)) == rows, "rows pass through"
    return mlflow.search_traces(
        locations=[experiment], run_id=run.info.run_id, return_type="list", max_results=1000
    )


def test_a_row_is_a_trace_of_its_run_with_question_answer_and_scores(experiment: str) -> None:
    (trace,) = log(experiment, [row(0)])
    assert trace.data.request == '{"prompt": "question 0"}'
    assert trace.data.response == '"answer 0"'
    assert trace.info.tags["kind"] == "odd"
    assert trace.info.tags["row"] == "row-0"
    values = {one.name: one.value for one in trace.info.assessments}
    assert values == {"correct": 1.0, "references": ["yes"]}
    assert str(trace.info.state) == "OK"


def test_an_unanswered_row_is_an_error_and_a_failed_scorer_is_told(experiment: str) -> None:
    (trace,) = log(experiment, [row(0, Reply("", error="too long"), mine="KeyError: x")])
    assert str(trace.info.state) == "ERROR"
    assert trace.info.response_preview == "too long"
    (failed,) = [one for one in trace.info.assessments if one.name == "mine"]
    assert failed.error.error_message == "KeyError: x"


def test_errors_are_told_without_secrets_and_answers_as_they_are(experiment: str) -> None:
    told = "refused: api_key=hunter2hunter2"
    refused, answered = log(
        experiment, [row(0, Reply("", error=told), mine=f"KeyError: {told}"), row(1, Reply(told))]
    )
    if refused.info.tags["row"] != "row-0":
        refused, answered = answered, refused
    assert "hunter2" not in str(refused.to_dict())
    assert refused.info.response_preview == "refused: api_key=***"
    assert answered.info.response_preview == told


def test_more_rows_than_one_write_takes_all_arrive(experiment: str) -> None:
    traces = log(experiment, [row(number) for number in range(BATCH + 1)])
    assert {trace.info.tags["row"] for trace in traces} == {f"row-{n}" for n in range(BATCH + 1)}
    assert all(trace.data.spans for trace in traces)
