"""A job that is cut off anywhere goes on where it was: every row once, no other job's rows."""

import json
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmflow.answering.reply import Reply
from slmflow.config.prediction import Engine, Predict
from slmflow.prediction.errors import PredictionError
from slmflow.prediction.model import ModelSpec
from slmflow.prediction.owner import BEAT_SECONDS, OWNER, owned
from slmflow.prediction.part import PartDone, PartJob, answer_part
from slmflow.prediction.pinned import Pinned
from slmflow.prediction.places import below, find, write_json
from slmflow.prediction.predict import Run, Summary, carry_out

MODEL = Pinned(ModelSpec("models:/echo/1"), "digest-1", {"temperature": 0.5})


class Echo:
    """Answers with the prompt, refuses what asks for it."""

    def replies(
        self, rows: Sequence[Mapping[str, Any]], answered: Callable[[int], None]
    ) -> list[Reply]:
        answered(len(rows))
        return [
            Reply("", error="I would rather not")
            if row["prompt"] == "NO"
            else Reply(row["prompt"], "stop", 1, 2)
            for row in rows
        ]


class Killed(Exception):
    """Nothing but the end of the process would do the same."""


def echo(jobs: Iterable[PartJob], answered: Callable[[int], None]) -> Generator[PartDone]:
    for job in jobs:
        yield answer_part(job, Echo(), answered)  # type: ignore[arg-type]


def killed_after(parts: int, recorded: bool) -> Run:
    """The next part is written then, and, where ``recorded`` is, its record, but nobody is told."""

    def run(jobs: Iterable[PartJob], answered: Callable[[int], None]) -> Generator[PartDone]:
        for number, job in enumerate(jobs):
            done = answer_part(job, Echo(), answered)  # type: ignore[arg-type]
            if number == parts:
                system, path = find(job.done)
                if not recorded:
                    system.rm_file(path)
                raise Killed
            yield done

    return run


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write_rows(tmp_path / "rows.jsonl", [f"row {number}" for number in range(10)])


def write_rows(path: Path, prompts: Iterable[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return str(path)


def do(rows: str, output: Path | str, run: Run = echo, **settings: Any) -> Summary:
    model = settings.pop("model", MODEL)
    return carry_out(rows, str(output), model, Predict(**{"part_rows": 4} | settings), run)


def answers(output: Path | str) -> list[Any]:
    return list(pq.read_table(output)["answer"].to_pylist())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text("abcN\0O", max_size=3) | st.just("NO"), min_size=1, max_size=30),
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=3),
)
def test_a_job_that_is_killed_again_and_again_has_every_row_once(
    prompts: list[str], part_rows: int, kills: list[tuple[int, bool]]
) -> None:
    place, output = f"memory://{uuid4().hex}/rows.jsonl", f"memory://{uuid4().hex}"
    with fsspec.open(place, "w") as file:
        file.write("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    counted: list[int] = []

    def counting(jobs: Iterable[PartJob], answered: Callable[[int], None]) -> Iterator[PartDone]:
        return echo(jobs, counted.append)

    for parts, recorded in kills:
        with suppress(Killed):
            do(place, output, killed_after(parts, recorded), part_rows=part_rows)
    summary = do(place, output, counting, part_rows=part_rows)
    system, path = find(output)
    names = sorted(name for name in system.ls(path, detail=False) if name.endswith(".parquet"))
    found = [row for name in names for row in pq.read_table(name, filesystem=system).to_pylist()]
    assert [row["row"] for row in found] == list(range(len(prompts)))
    for row, prompt in zip(found, prompts, strict=True):
        asked = prompt.strip() and prompt != "NO"
        assert row["answer"] == (prompt if asked else None)
        assert (row["error"] is None) == bool(asked)
    assert sum(counted) == sum(part.rows for part in summary.new)
    assert (
        summary.rows
        == len(prompts)
        == sum(summary.manifest["parts"][n]["rows"] for n in range(len(names)))
    )


def test_only_unfinished_parts_are_repeated(rows: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(Killed):
        do(rows, output, killed_after(1, recorded=False))
    assert not (output / "_manifest.json").exists()
    before = (output / "part-00000.parquet").stat().st_mtime_ns
    (output / "_partial-part-00001.parquet.0").write_text("what a killed process leaves")
    summary = do(rows, output)
    assert [part.number for part in summary.new] == [1, 2]
    assert (output / "part-00000.parquet").stat().st_mtime_ns == before
    assert answers(output) == [f"row {number}" for number in range(10)]
    left = [path.name for path in output.iterdir() if path.name.startswith("_")]
    assert sorted(left) == ["_lock", "_manifest.json"], "what was needed on the way is gone"


def test_a_job_that_is_done_is_not_done_again(rows: str, tmp_path: Path) -> None:
    first = do(rows, tmp_path / "out")
    again = do(rows, tmp_path / "out", killed_after(0, recorded=True))
    assert again.new == []
    assert again.parts == first.parts


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cut")])
def test_a_part_that_is_gone_or_cut_is_made_again(
    rows: str, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    first = do(rows, tmp_path / "out")
    damage(tmp_path / "out" / "part-00001.parquet")
    again = do(rows, tmp_path / "out")
    assert [part.number for part in again.new] == [1]
    assert [part.sha256 for part in again.parts] == [part.sha256 for part in first.parts]


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": replace(MODEL, digest="digest-2", spec=ModelSpec("models:/echo/2"))}, "echo/2"),
        ({"model": replace(MODEL, parameters={})}, r"temperature was 0.5, now it is null"),
        ({"part_rows": 5}, r"part_rows was 4, now it is 5"),
        ({"rows": ["changed"]}, r"input rows.jsonl has other rows now"),
    ],
)
def test_another_job_in_the_same_place_is_refused_with_what_differs(
    rows: str, tmp_path: Path, change: dict[str, Any], told: str, finished: bool
) -> None:
    output = tmp_path / "out"
    if finished:
        do(rows, output)
    else:
        with pytest.raises(Killed):
            do(rows, output, killed_after(1, recorded=True))
    asked = {"rows": rows, **change}
    if "rows" in change:
        asked["rows"] = write_rows(Path(rows), change["rows"])
    with pytest.raises(PredictionError, match=rf"(?s){told}.*predict\.overwrite=true"):
        do(output=output, **asked)
    assert answers(output)[:8] == [f"row {number}" for number in range(8)]


def test_overwriting_leaves_no_row_of_the_job_before_and_no_file_of_others_is_touched(
    rows: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    do(rows, output)
    (output / "notes.txt").write_text("mine")
    write_rows(Path(rows), ["new"])
    summary = do(rows, output, overwrite=True)
    assert answers(output / "part-00000.parquet") == ["new"]
    assert sorted(path.name for path in output.glob("*.parquet")) == ["part-00000.parquet"]
    assert (output / "notes.txt").read_text() == "mine"
    assert summary.rows == 1


def test_the_same_rows_under_another_name_are_the_same_job(rows: str, tmp_path: Path) -> None:
    do(rows, tmp_path / "out")
    moved = Path(rows).rename(tmp_path / "moved.jsonl")
    assert do(str(moved), tmp_path / "out").new == []


def test_tables_of_others_are_neither_mixed_with_nor_overwritten(rows: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "sales.parquet").write_text("")
    for overwrite in (False, True):
        with pytest.raises(PredictionError, match=r"holds sales\.parquet"):
            do(rows, output, overwrite=overwrite)
    with pytest.raises(PredictionError, match="is the input, too"):
        do(str(output), output)


@pytest.mark.parametrize("where", ["disk", "store"])
def test_a_second_job_at_once_is_refused_and_the_place_is_free_after_the_first(
    rows: str, tmp_path: Path, where: str
) -> None:
    output = str(tmp_path / "out") if where == "disk" else f"memory://{uuid4().hex}"
    with owned(output), pytest.raises(PredictionError, match="another job"):
        do(rows, output)
    assert do(rows, output).rows == 10


@pytest.mark.parametrize(
    ("owner", "free"),
    [
        ({"host": "another", "pid": 1, "age": 2 * BEAT_SECONDS}, False),
        ({"host": "another", "pid": 1, "age": 3600}, True),
        ({"host": socket.gethostname(), "pid": 2**22 + 1, "age": 0}, True),
    ],
)
def test_a_store_without_locks_is_free_when_its_owner_is_gone(
    rows: str, owner: dict[str, Any], free: bool
) -> None:
    output = f"memory://{uuid4().hex}"
    about = {"id": "x", "host": owner["host"], "pid": owner["pid"]}
    write_json(below(output, OWNER), {**about, "time": time.time() - owner["age"]})
    if free:
        assert do(rows, output).rows == 10
    else:
        with pytest.raises(PredictionError, match=r"process 1 on another.*gone 60 s later"):
            do(rows, output)


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("/dev/null/out", "cannot be made"),
        ("nosuch://bucket/out", "cannot be reached: .*allowed: a path, or a URL of fsspec"),
    ],
)
def test_a_place_that_cannot_be_written_is_told(rows: str, output: str, told: str) -> None:
    with pytest.raises(PredictionError, match=told):
        do(rows, output)


def test_own_columns_of_the_same_name_are_kept_beside_the_answers(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "hello", "answer": "mine", "error": 7}\n')
    summary = do(str(file), tmp_path / "out")
    (row,) = pq.read_table(tmp_path / "out").to_pylist()
    assert (row["answer"], row["error"]) == ("hello", None)
    assert (row["input_answer"], row["input_error"]) == ("mine", 7)
    assert summary.manifest["renamed"] == {"answer": "input_answer", "error": "input_error"}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Predict(part_rows=0), r"predict\.part_rows is 0; allowed: 1 or more"),
        (lambda: Engine(workers=0), r"engine\.workers is 0; allowed: 1 or more"),
        (lambda: Engine(master="spark://a:1"), "says nothing to engine=local; type engine=spark"),
        (lambda: Engine(address="auto"), "says nothing to engine=local; type engine=ray"),
    ],
)
def test_settings_that_cannot_work_say_what_is_allowed(
    make: Callable[[], object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        make()
