"""A job that is cut off anywhere goes on where it was: every row once, no other job's rows."""

import json
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmflow import workflows
from slmflow.answering.reply import Reply
from slmflow.config.prediction import Engine, EngineName, Predict
from slmflow.errors import ConfigError
from slmflow.prediction.engines.ray_cluster import address_of
from slmflow.prediction.engines.remote import on_cores
from slmflow.prediction.engines.spark_application import check_conf, spark_conf
from slmflow.prediction.errors import PredictionError
from slmflow.prediction.model import ModelSpec
from slmflow.prediction.owner import BEAT_SECONDS, OWNER, owned
from slmflow.prediction.part import PartDone, PartJob, answer_part
from slmflow.prediction.pinned import Pinned
from slmflow.prediction.places import below, find, part_name, write_json
from slmflow.prediction.predict import Run, Summary, carry_out
from slmflow.tracking.loggable import check_loggable

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


class Longer(Echo):
    def replies(
        self, rows: Sequence[Mapping[str, Any]], answered: Callable[[int], None]
    ) -> list[Reply]:
        return [replace(reply, text=reply.text * 99) for reply in super().replies(rows, answered)]


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
    before = (output / "part-00000000.parquet").stat().st_mtime_ns
    (output / "_partial-part-00000001.parquet.0").write_text("what a killed process leaves")
    summary = do(rows, output)
    assert [part.number for part in summary.new] == [1, 2]
    assert (output / "part-00000000.parquet").stat().st_mtime_ns == before
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
    damage(tmp_path / "out" / "part-00000001.parquet")
    again = do(rows, tmp_path / "out")
    assert [part.number for part in again.new] == [1]
    assert [part.sha256 for part in again.parts] == [part.sha256 for part in first.parts]


def test_the_repair_of_a_finished_job_goes_on_where_it_was_killed(
    rows: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    do(rows, output)
    for number in range(3):  # of another length now, as where rows have other answers
        (output / part_name(number)).unlink()

    def longer(jobs: Iterable[PartJob], answered: Callable[[int], None]) -> Generator[PartDone]:
        job = next(iter(jobs))
        yield answer_part(job, Longer(), answered)  # type: ignore[arg-type]
        raise Killed

    with pytest.raises(Killed):
        do(rows, output, longer)
    assert [part.number for part in do(rows, output).new] == [1, 2]


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
    assert answers(output / "part-00000000.parquet") == ["new"]
    assert sorted(path.name for path in output.glob("*.parquet")) == ["part-00000000.parquet"]
    assert (output / "notes.txt").read_text() == "mine"
    assert summary.rows == 1


def test_a_job_that_overwrites_goes_on_with_itself_after_a_kill(rows: str, tmp_path: Path) -> None:
    do(rows, tmp_path / "out")
    with pytest.raises(Killed):
        do(rows, tmp_path / "out", killed_after(1, recorded=True), overwrite=True)
    assert [part.number for part in do(rows, tmp_path / "out", overwrite=True).new] == [2]
    assert len(do(rows, tmp_path / "out", overwrite=True).new) == 3, "it was done: again"


def test_an_output_within_the_input_is_refused_before_anything_is_written(
    rows: str, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    inside = f"{tmp_path}/link/x/../out"
    for place, output in [(str(tmp_path), inside), (tmp_path.as_uri(), str(tmp_path / "out"))]:
        with pytest.raises(PredictionError, match=r"lies within the input.*another folder"):
            do(place, output)
    assert not (tmp_path / "out").exists()
    assert do(rows, tmp_path / "out").rows == 10, "beside the file that is read"


@pytest.mark.parametrize(
    "place",
    [
        "https://me:hunter2@host/rows.jsonl",
        "https://hunter2@host/rows.jsonl",
        "https://host/rows.jsonl?X-Amz-Signature=hunter2",
        "sftp://me:hunter2@host/out",
        "simplecache::https://me:hunter2@host/rows.jsonl",
        "abfs://box@account.dfs.core.windows.net/rows?sig=hunter2",
    ],
)
def test_places_with_credentials_are_refused_without_showing_them(place: str) -> None:
    with pytest.raises(ConfigError, match=r"output.*credentials") as error:
        check_loggable("output", place)
    assert "hunter2" not in str(error.value)
    assert "me:" not in str(error.value)


@pytest.mark.parametrize("story", [workflows.serve, workflows.materialise, workflows.export])
def test_an_address_of_a_model_with_credentials_is_refused_before_a_run_has_it_as_its_name(
    story: Callable[[workflows.Invocation], None],
) -> None:
    config = SimpleNamespace(model_uri="https://me:hunter2@host/model")
    with pytest.raises(ConfigError, match=r"model_uri.*credentials") as error:
        story(workflows.Invocation(config, {}, {}))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket/rows",
        "abfs://box@account.dfs.core.windows.net/rows",
        "sftp://me@host/rows",
        "rows?.jsonl",
        "/data/a:b@c/rows",
    ],
)
def test_places_without_credentials_are_taken(place: str) -> None:
    check_loggable("input", place)


def test_the_tracking_servers_password_is_not_sent_to_nodes() -> None:
    uri = "https://me:hunter2@host:5000/mlflow"
    spec = on_cores(ModelSpec("m", tracking_uri=uri, registry_uri=uri), 1)
    assert spec.tracking_uri == spec.registry_uri == "https://host:5000/mlflow"
    assert on_cores(ModelSpec("m"), 1).tracking_uri is None


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


def test_an_owner_goes_on_telling_that_he_lives_whatever_the_store_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries, again = [0], threading.Event()

    def refuses(url: str, content: Any) -> None:
        tries[0] += 1
        if tries[0] == 3:
            again.set()
        if tries[0] > 1:  # the first one is before the job begins
            raise RuntimeError("as stores' own packages do")

    monkeypatch.setattr("slmflow.prediction.owner.BEAT_SECONDS", 0.01)
    monkeypatch.setattr("slmflow.prediction.owner.write_json", refuses)
    with owned(f"memory://{uuid4().hex}"):
        assert again.wait(10)


def test_an_output_whose_lock_cannot_be_had_is_told(rows: str, tmp_path: Path) -> None:
    (tmp_path / "out" / "_lock").mkdir(parents=True)
    with pytest.raises(PredictionError, match=r"out cannot be written .*give a folder"):
        do(rows, tmp_path / "out")


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("/dev/null/out", "cannot be made"),
        ("memory://out[1]", r"has one of \* \? \["),
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
        (lambda: Engine(gpus=1), "engine.gpus=1 says nothing to engine=local; type engine=ray"),
        (
            lambda: Engine(EngineName.spark, gpus=2),
            r"engine=spark; type engine\.conf=\{spark\.executor\.resource\.gpu\.amount: 2, ",
        ),
        (
            lambda: Engine(EngineName.ray, conf={"spark.ui.enabled": True}),
            "engine.conf says nothing to engine=ray; type engine=spark",
        ),
        (
            lambda: Engine(EngineName.spark, conf={"spark.hadoop.fs.s3a.secret.key": "hunter2"}),
            r"^(?!.*hunter2).*spark\.hadoop\.fs\.s3a\.secret\.key.*spark-defaults\.conf",
        ),
    ],
)
def test_settings_that_cannot_work_say_what_is_allowed(
    make: Callable[[], object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("spark.task.cpus", "set engine.cpus instead"),
        ("spark.speculation", "a part that takes long would be answered twice"),
        ("spark.dynamicAllocation.enabled", r"set engine\.workers instead"),
    ],
)
def test_what_is_decided_for_spark_is_refused_with_words(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.conf has {name}.*{told}"):
        check_conf(Engine(EngineName.spark, conf={name: "1"}))


def test_what_was_typed_for_spark_holds_over_this_projects_defaults() -> None:
    typed = Engine(EngineName.spark, conf={"spark.ui.enabled": True})
    assert "spark.ui.enabled" not in spark_conf("local[2]", 1, 2, typed)
    assert spark_conf("local[2]", 1, 2, Engine(EngineName.spark))["spark.ui.enabled"] == "false"


@pytest.mark.parametrize(
    ("engine", "environment", "address"),
    [
        (None, "", None),
        (None, "host:1", "host:1"),
        ("auto", "host:1", "auto"),
        ("local", "host:1", None),
        (None, "local", None),
    ],
)
def test_ray_starts_a_cluster_of_its_own_where_no_other_is_named(
    engine: str | None, environment: str, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", environment)
    assert address_of(Engine(EngineName.ray, address=engine)) == address
