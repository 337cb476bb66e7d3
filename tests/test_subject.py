"""Candidates that are asked: this project's models, others', and those that die of a question."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from slmflow.answering.ask import AskError, ModelProcess
from slmflow.answering.reply import Measurement, Reply, Setting
from slmflow.evaluation.candidates import Candidate, resolve
from slmflow.evaluation.results import Kind
from slmflow.evaluation.subject import DEATHS, Row, Subject
from tests.conftest import Packaged
from tests.foreign import save_chat_model, save_text_model

SPAIN = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
TEXT = "Once upon a time there was a small language model that answered questions. " * 40


@pytest.fixture
def store(packaged: Packaged, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    yield
    mlflow.set_tracking_uri(before)


def candidate(uri: str, folder: Path) -> Candidate:
    return resolve([uri], {}, folder)[0]


def answers(subject: Subject, rows: Sequence[Row]) -> list[Reply]:
    subject.begin(rows)
    return [reply for _, reply in sorted(subject.finish(), key=lambda found: found[0])]


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_packaged_model_answers_rows_together_and_each_by_itself(
    store: None, tmp_path: Path, version: str
) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 5_000}]}
    rows = [SPAIN, {"prompt": "What is the capital of Italy?"}, long]
    with Subject(candidate(f"models:/phi3-demo/{version}", tmp_path), 1) as subject:
        spain, italy, refused = answers(subject, rows)
        assert (spain.text, spain.finish_reason) == ("Madrid", "stop")
        assert (spain.prompt_tokens, spain.completion_tokens) == (13, 2)
        assert italy.text == "Rome"
        assert "allows 1024" in (refused.error or "")
        assert answers(subject, [long])[0].error == refused.error


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_measurement_has_exactly_the_tokens_that_were_asked_for(
    store: None, tmp_path: Path, version: str, batch_size: int
) -> None:
    setting = Setting(prompt_tokens=64, new_tokens=16, batch_size=batch_size)
    with Subject(candidate(f"models:/phi3-demo/{version}", tmp_path), 1) as subject:
        found = subject.measure([TEXT], setting)
    assert isinstance(found, Measurement)
    assert found.prompt_tokens == 64
    assert found.completion_tokens == 16 * batch_size
    assert len(found.step_seconds) == 15, "one a token after the first"
    assert found.first_token_seconds is not None
    assert found.seconds == pytest.approx(found.first_token_seconds + sum(found.step_seconds))


def test_what_does_not_fit_the_context_is_told_and_not_measured(
    store: None, tmp_path: Path
) -> None:
    with Subject(candidate("models:/phi3-demo/2", tmp_path), 1) as subject:
        assert "leaves 1000 tokens" in str(subject.measure([TEXT], Setting(1_001, 24, 1)))


def test_memory_is_that_of_the_models_process(store: None, tmp_path: Path) -> None:
    with Subject(candidate("models:/phi3-demo/2", tmp_path), 1) as subject:
        answers(subject, [SPAIN])
        peak, _ = subject.memory()
    assert peak is not None
    assert 50e6 < peak < 5e9


def test_another_text_model_is_asked_through_its_one_column(tmp_path: Path) -> None:
    found = candidate(save_text_model(tmp_path / "model"), tmp_path)
    assert found.kind is Kind.mlflow
    with Subject(found, 1) as subject:
        replies = answers(subject, [{"prompt": "hey"}, SPAIN])
    assert [reply.text for reply in replies] == ["HEY", "WHAT IS THE CAPITAL OF SPAIN?"]


def test_another_chat_model_is_asked_and_a_row_that_it_refuses_has_its_words(
    tmp_path: Path,
) -> None:
    with Subject(candidate(save_chat_model(tmp_path / "model"), tmp_path), 1) as subject:
        said, refused = answers(subject, [{"prompt": "hey"}, {"prompt": "NO"}])
        assert said.text == "hey"
        assert "I would rather not" in (refused.error or "")
        with pytest.raises(AskError, match="does not show"):
            list(subject.observe([SPAIN], 4, None))


def test_a_row_that_the_model_dies_of_fails_alone(tmp_path: Path) -> None:
    rows = [{"prompt": f"row {number}"} for number in range(20)]
    rows[17] = {"prompt": "DIE"}
    with Subject(candidate(save_text_model(tmp_path / "model"), tmp_path), 1) as subject:
        replies = answers(subject, rows)
    assert [number for number, reply in enumerate(replies) if reply.error] == [17]
    assert "exit code 7" in (replies[17].error or "")
    assert replies[19].text == "ROW 19"


def test_what_was_begun_behind_a_death_is_answered_all_the_same(tmp_path: Path) -> None:
    first, second = [{"prompt": "DIE"}, {"prompt": "a"}], [{"prompt": "b"}, {"prompt": "c"}]
    with Subject(candidate(save_text_model(tmp_path / "model"), tmp_path), 1) as subject:
        subject.begin(first)
        subject.begin(second)
        after_first, after_second = dict(subject.finish()), dict(subject.finish())
    assert "exit code 7" in (after_first[0].error or "")
    assert [after_first[1].text, after_second[0].text, after_second[1].text] == ["A", "B", "C"]


def test_more_text_than_a_pipe_holds_stops_nobody(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number} " + "x" * 10_000} for number in range(40)]
    with Subject(candidate(save_text_model(tmp_path / "model"), tmp_path), 1) as subject:
        subject.begin(rows)
        subject.begin(rows)
        assert len(dict(subject.finish())) == len(dict(subject.finish())) == 40


def test_a_model_that_dies_of_everything_is_given_up(tmp_path: Path) -> None:
    rows = [{"prompt": "DIE"}] * DEATHS
    with (
        Subject(candidate(save_text_model(tmp_path / "model"), tmp_path), 1) as subject,
        pytest.raises(AskError, match=f"died {DEATHS} times"),
    ):
        answers(subject, rows)


def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    uri = save_text_model(tmp_path / "model")
    (tmp_path / "model" / "foreign_text.py").write_text("raise RuntimeError('no such luck')")
    with pytest.raises(AskError, match="no such luck"), ModelProcess(uri) as process:
        process.answers([SPAIN])


def test_a_model_that_dies_as_it_is_loaded_is_not_tried_again(tmp_path: Path) -> None:
    uri = save_text_model(tmp_path / "model")
    (tmp_path / "model" / "foreign_text.py").write_text("import os\nos._exit(9)")
    with (
        Subject(candidate(uri, tmp_path), 1) as subject,
        pytest.raises(AskError, match=r"(?s)exit code 9.*while it was loaded"),
    ):
        answers(subject, [SPAIN])
