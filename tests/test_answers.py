"""Answers are kept as they come, found again, and never mixed up."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slmflow import console
from slmflow.answering.reply import Reply
from slmflow.config.evaluation import Ask
from slmflow.evaluation.answers import AnswerStore
from slmflow.evaluation.candidates import Candidate
from slmflow.evaluation.data.dataset import Dataset, open_dataset
from slmflow.evaluation.generation import Answers
from slmflow.evaluation.results import Kind

MODEL = Candidate("a model", "models:/m/1", Kind.packaged, "digest", {}, repeatable=True)


@dataclass
class Parrot:
    """Says each prompt again; stops working after so many rows, refuses what is told."""

    patience: int = 1_000_000
    refused: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)
    begun: list[list[str]] = field(default_factory=list)

    def begin(self, rows: Sequence[dict[str, Any]]) -> None:
        self.begun.append([row["prompt"] for row in rows])

    def finish(self) -> Iterator[tuple[int, Reply]]:
        prompts = self.begun.pop(0)
        for index in reversed(range(len(prompts))):
            if len(self.asked) >= self.patience:
                raise KeyboardInterrupt
            self.asked.append(prompts[index])
            failed = prompts[index] in self.refused
            yield index, Reply("", error="refused") if failed else Reply(f"{prompts[index]}!")


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path / "cache"))


def dataset(tmp_path: Path, count: int) -> Dataset:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "row {number}"}}\n' for number in range(count)))
    return open_dataset("prompts", file, None, None)


def ask_all(parrot: Parrot, rows: Dataset, ask: Ask, model: Candidate = MODEL) -> list[Reply]:
    with AnswerStore(model) as store:
        answers = Answers(store, rows, ask)
        with console.progress("ask a parrot", len(rows)) as bar:
            replies = [reply for _, reply in answers.asked(parrot, bar)]  # type: ignore[arg-type]
        assert [reply for _, reply in answers] == replies, "again, from disk"
        return replies


def test_an_interrupted_evaluation_asks_only_what_was_not_answered(tmp_path: Path) -> None:
    rows, ask = dataset(tmp_path, 50), Ask(window_rows=8)
    cut_off = Parrot(patience=20)
    with pytest.raises(KeyboardInterrupt):
        ask_all(cut_off, rows, ask)
    second = Parrot()
    replies = ask_all(second, rows, ask)
    assert sorted(cut_off.asked + second.asked) == sorted(f"row {n}" for n in range(50))
    assert [reply.text for reply in replies] == [f"row {number}!" for number in range(50)]


def test_the_next_rows_are_begun_before_the_first_are_handed_out(tmp_path: Path) -> None:
    parrot, rows = Parrot(), dataset(tmp_path, 12)
    with AnswerStore(MODEL) as store, console.progress("ask a parrot", 12) as bar:
        answered = Answers(store, rows, Ask(window_rows=4)).asked(parrot, bar)  # type: ignore[arg-type]
        next(answered)
        assert len(parrot.asked) == 4
        assert [len(window) for window in parrot.begun] == [4]


def test_a_second_evaluation_asks_nothing(tmp_path: Path) -> None:
    rows = dataset(tmp_path, 10)
    first = ask_all(Parrot(), rows, Ask())
    assert ask_all(Parrot(patience=0), rows, Ask()) == first


def test_reuse_false_asks_everything_again(tmp_path: Path) -> None:
    rows = dataset(tmp_path, 10)
    ask_all(Parrot(), rows, Ask())
    again = Parrot()
    ask_all(again, rows, Ask(reuse=False))
    assert len(again.asked) == 10


def test_rows_that_failed_are_told_and_asked_again_the_next_time(tmp_path: Path) -> None:
    rows = dataset(tmp_path, 10)
    replies = ask_all(Parrot(refused=("row 3",)), rows, Ask(window_rows=4))
    assert [number for number, reply in enumerate(replies) if reply.error] == [3]
    again = Parrot()
    assert ask_all(again, rows, Ask(window_rows=4))[3].text == "row 3!"
    assert again.asked == ["row 3"]


@pytest.mark.parametrize(
    "other", [replace(MODEL, digest="other"), replace(MODEL, parameters={"temperature": 0.5})]
)
def test_another_model_or_other_parameters_share_no_answers(
    tmp_path: Path, other: Candidate
) -> None:
    rows = dataset(tmp_path, 4)
    ask_all(Parrot(), rows, Ask())
    asked = Parrot()
    ask_all(asked, rows, Ask(), other)
    assert len(asked.asked) == 4


def test_the_number_of_threads_is_no_other_model(tmp_path: Path) -> None:
    rows = dataset(tmp_path, 4)
    ask_all(Parrot(), rows, Ask())
    ask_all(Parrot(patience=0), rows, Ask(), replace(MODEL, parameters={"threads": 1}))


REQUESTS = st.dictionaries(st.sampled_from(["prompt", "messages"]), st.text(), min_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(st.tuples(REQUESTS, st.text(st.characters(exclude_categories=["Cs"]))), max_size=8))
def test_what_was_kept_last_for_a_request_is_found(
    kept: list[tuple[dict[str, str], str]],
) -> None:
    with AnswerStore(MODEL) as store:
        store.forget()
        store.keep((request, Reply(text)) for request, text in kept)
        last = {str(sorted(request.items())): text for request, text in kept}
        found = store.find([request for request, _ in kept])
        for (request, _), reply in zip(kept, found, strict=True):
            assert reply == Reply(last[str(sorted(request.items()))])
        assert store.find([{"prompt": "never asked", "messages": "x"}]) == [None]
