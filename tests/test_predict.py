"""``predict`` with real models: in this process, and as it is typed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import psutil
import pyarrow.parquet as pq
import pytest
from mlflow.exceptions import MlflowException

from slmflow import workflows
from slmflow.answering.ask import AskError, Died, ModelProcess
from slmflow.answering.model_files import is_here
from slmflow.answering.reply import Reply
from slmflow.answering.worker import _each
from slmflow.config.prediction import Engine, Predict
from slmflow.errors import ConfigError
from slmflow.prediction.engines import local
from slmflow.prediction.errors import PredictionError
from slmflow.prediction.job import jobs
from slmflow.prediction.model import DEATHS, ModelSpec, RestartingModel
from slmflow.prediction.part import ANSWER_FIELDS
from slmflow.prediction.pinned import pin
from slmflow.prediction.places import absolute
from slmflow.prediction.predict import Asked, Summary, predict
from slmflow.prediction.reading.files import find_files
from slmflow.prediction.record import log_job
from slmflow.prediction.staging import stage
from tests.conftest import ROOT, TIMEOUT, Packaged, Workplace
from tests.foreign import save_text_model

ONNX = "models:/phi3-demo/2"
CITIES = ("Spain", "Italy", "France", "Japan", "Peru")
TOO_LONG = "x" * 5_000


@pytest.fixture(scope="module")
def store(packaged: Packaged) -> Iterator[Workplace]:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(packaged.workplace.tracking_uri)
    yield packaged.workplace
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """It answers in capitals, and its process dies of DIE."""
    return save_text_model(tmp_path_factory.mktemp("text") / "model")


def questions(count: int) -> list[str]:
    return [f"What is the capital of {CITIES[n % 5]}?" + " Please." * (n % 7) for n in range(count)]


def write_rows(path: Path, prompts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return str(path)


def do(uri: str, rows: str, output: Path, **settings: Any) -> Summary:
    engine = Engine(workers=settings.pop("workers", 1))
    parameters = settings.pop("parameters", {})
    return predict(Asked(uri, rows, str(output), engine, Predict(**settings), parameters))


def rows_of(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return rows


@pytest.mark.parametrize("version", ["1", "2"])
def test_every_row_has_the_models_own_answer_and_usage(
    store: Workplace, tmp_path: Path, version: str
) -> None:
    prompts = [*questions(9), TOO_LONG]
    uri = f"models:/phi3-demo/{version}"
    summary = do(uri, write_rows(tmp_path / "rows.jsonl", prompts), tmp_path / "out")
    with ModelProcess(uri) as model:
        replies = model.answers([{"prompt": prompt} for prompt in prompts])
    found = rows_of(tmp_path / "out")
    for row, reply in zip(found[:-1], replies[:-1], strict=True):
        assert (row["answer"], row["finish_reason"]) == (reply.text, reply.finish_reason)
        assert row["prompt_tokens"] == reply.prompt_tokens
        assert row["completion_tokens"] == reply.completion_tokens
        assert row["error"] is None
    assert found[0]["answer"] == "Madrid"
    assert found[-1]["answer"] is None
    assert "allows 1024" in found[-1]["error"]
    assert (summary.rows, summary.failed) == (10, 1)
    assert summary.first_error == found[-1]["error"]
    names = [column.name for column in ANSWER_FIELDS]
    assert list(found[0]) == ["row", "prompt", *names]


def test_workers_and_a_restart_give_the_same_files_as_one_worker_at_once(
    store: Workplace, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", questions(40))
    one = do(ONNX, rows, tmp_path / "one", part_rows=16)
    many = do(ONNX, rows, tmp_path / "many", part_rows=16, workers=2)
    (tmp_path / "many" / "part-00000001.parquet").unlink()
    again = do(ONNX, rows, tmp_path / "many", part_rows=16)
    digests = [[part.sha256 for part in each.parts] for each in (one, many, again)]
    assert digests[0] == digests[1] == digests[2]
    assert len(again.new) == 1


def test_search_options_hold_for_every_row_and_make_another_job(
    store: Workplace, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", questions(3))
    do(ONNX, rows, tmp_path / "out", parameters={"max_new_tokens": 1})
    assert {row["completion_tokens"] for row in rows_of(tmp_path / "out")} == {1}
    with pytest.raises(PredictionError, match=r"search\.max_new_tokens was 1, now it is 64"):
        do(ONNX, rows, tmp_path / "out")
    as_packaged = do(ONNX, rows, tmp_path / "other")
    assert as_packaged.manifest["identity"]["parameters"]["max_new_tokens"] == 64
    assert do(ONNX, rows, tmp_path / "other", parameters={"max_new_tokens": 64}).new == []


def test_an_alias_is_one_version_from_begin_to_end(store: Workplace, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", questions(2))
    alias = "models:/phi3-demo@candidate-custom_onnx-cpu"
    summary = do(alias, rows, tmp_path / "out")
    assert summary.manifest["identity"]["model"]["uri"] == ONNX
    assert len(do(ONNX, rows, tmp_path / "out").new) == 0, "the version is the same model"
    assert pin("models:/phi3-demo/latest", {}, "auto", tmp_path).spec.uri == ONNX
    for uri in ("models:/nope/latest", "models:/phi3-demo/Production", "models:/phi3-demo@nope"):
        with pytest.raises(AskError, match=f"{uri} is no model that can be loaded"):
            pin(uri, {}, "auto", tmp_path)
    with pytest.raises(PredictionError, match=r"(?s)phi3-demo/2, now it is models:/phi3-demo/1"):
        do("models:/phi3-demo/1", rows, tmp_path / "out")


def test_a_row_that_the_model_dies_of_has_its_error_and_the_others_their_answers(
    text_model: str, tmp_path: Path
) -> None:
    prompts = [f"row {number}" for number in range(60)]
    prompts[17] = "DIE"
    summary = do(text_model, write_rows(tmp_path / "rows.jsonl", prompts), tmp_path / "out")
    found = rows_of(tmp_path / "out")
    for number, row in enumerate(found):
        if number == 17:
            assert "exit code 7" in row["error"]
        else:
            assert (row["answer"], row["error"]) == (f"ROW {number}", None)
    assert (summary.failed, summary.tokens_per_second) == (1, None), "it counts no tokens"


def test_a_model_that_dies_of_everything_ends_the_job_and_keeps_what_was_done(
    text_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmflow.prediction.model.DEATHS", 2)
    assert DEATHS > 2, "the real one is patient"
    rows = write_rows(tmp_path / "rows.jsonl", ["fine", "fine", *["DIE"] * 4])
    with pytest.raises(AskError, match=r"died 2 times.*the same command goes on"):
        do(text_model, rows, tmp_path / "out", part_rows=2)
    (done,) = (tmp_path / "out").glob("*.parquet")
    assert [row["answer"] for row in rows_of(done)] == ["FINE", "FINE"]


def test_a_model_that_does_not_load_ends_the_job_before_a_row_is_blamed(tmp_path: Path) -> None:
    uri = save_text_model(tmp_path / "model")
    (tmp_path / "model" / "foreign_text.py").write_text("raise RuntimeError('no such luck')")
    rows = write_rows(tmp_path / "rows.jsonl", ["hello"])
    with pytest.raises(AskError, match="no such luck"):
        do(uri, rows, tmp_path / "out")
    assert list((tmp_path / "out").glob("*.parquet")) == []


def test_closing_an_engine_ends_its_models_and_nothing_is_half_written(
    store: Workplace, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    rows = find_files(write_rows(tmp_path / "rows.jsonl", questions(64)))
    from slmflow.prediction.job import Identity, Plan

    plan = Plan(Identity([], {}, {}, 4), stage(rows, output, 4).part_rows, {})
    others = model_processes(psutil.Process())  # of servers that other tests share
    run = local.run(jobs(output, plan, {}), ModelSpec(ONNX), Engine(workers=2))
    next(run)
    assert len(model_processes(psutil.Process())) == len(others) + 2
    run.close()
    assert model_processes(psutil.Process()) == others
    files = [path for path in Path(output).rglob("*") if path.is_file()]
    assert all(pq.read_table(path).num_rows == 4 for path in files if path.suffix == ".parquet")
    assert not [path for path in files if path.name.startswith("_")]


def test_a_model_that_was_left_is_not_started_again(text_model: str) -> None:
    with RestartingModel(ModelSpec(text_model)) as model:
        assert model.replies([{"prompt": "hey"}])[0].text == "HEY"
    with pytest.raises(AskError, match="was stopped"):
        model.replies([{"prompt": "hey"}])


def test_a_row_that_breaks_the_process_without_ending_it_is_the_only_one_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slmflow.prediction.model.ModelProcess", Breaking)
    prompts = [f"row {number}" for number in range(40)]
    prompts[7] = prompts[8] = "BREAK"
    with RestartingModel(ModelSpec("m")) as model:
        replies = model.replies([{"prompt": prompt} for prompt in prompts])
    for prompt, reply in zip(prompts, replies, strict=True):
        broke = prompt == "BREAK"
        assert (reply.text, reply.error) == (("", "device assert") if broke else (prompt, None))


def test_only_a_refusal_is_the_error_of_the_one_row_that_was_asked() -> None:
    class Model:
        def predict(self, requests: object) -> list[object]:
            raise error

    error: Exception = MlflowException("too long")
    assert _each(Model(), [{"prompt": "a"}]) == [{"error": {"message": "too long"}}]
    error = RuntimeError("CUDA error: device-side assert triggered")
    with pytest.raises(RuntimeError, match="device-side"):
        _each(Model(), [{"prompt": "a"}])


def test_a_row_is_not_blamed_for_the_end_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Left(Breaking):
        def answers(self, rows: Sequence[Mapping[str, Any]]) -> list[Reply]:
            model.__exit__()
            raise Died("was killed")

    monkeypatch.setattr("slmflow.prediction.model.ModelProcess", Left)
    with RestartingModel(ModelSpec("m")) as model, pytest.raises(AskError, match="was stopped"):
        model.replies([{"prompt": "BREAK"}])


class Breaking:
    """As a process whose GPU stopped at a row: every later one has the same error."""

    load_seconds = 0.0

    def __init__(self, uri: str, model_config: Mapping[str, Any]) -> None:
        self._broken = False

    def __enter__(self) -> "Breaking":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def finish(self) -> Iterator[tuple[int, Reply]]:
        for place, row in enumerate(self._rows):
            self._broken |= row["prompt"] == "BREAK"
            if self._broken:
                raise AskError("device assert")
            yield place, Reply(row["prompt"])

    def answers(self, rows: Sequence[Mapping[str, Any]]) -> list[Reply]:
        self.begin(rows)
        return [reply for _, reply in self.finish()]


def test_a_job_with_a_model_of_another_server_is_recorded(store: Workplace, tmp_path: Path) -> None:
    summary = do(ONNX, write_rows(tmp_path / "rows.jsonl", questions(2)), tmp_path / "out")
    elsewhere = replace(summary.model, model_id=f"m-{'0' * 32}")
    with mlflow.start_run() as run:
        log_job(replace(summary, model=elsewhere), str(tmp_path / "rows.jsonl"))
    assert mlflow.get_run(run.info.run_id).data.metrics["rows"] == 2


def test_copies_of_a_model_of_a_remote_store_lie_where_they_are_removed(
    store: Workplace, text_model: str
) -> None:
    assert is_here(ONNX)
    assert is_here(text_model)
    assert is_here(Path(text_model).as_uri())
    assert not is_here("s3://bucket/model")


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("models:/nope/1", "no model that can be loaded"),
        ("openai:/http://localhost:1/v1", "is an endpoint; predict loads models itself"),
    ],
)
def test_what_is_no_model_is_told_before_the_output_is_touched(
    store: Workplace, tmp_path: Path, uri: str, told: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", questions(1))
    with pytest.raises((AskError, ConfigError), match=told):
        do(uri, rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["input", "output"])
def test_places_with_credentials_are_refused_before_a_run_is_opened(
    store: Workplace, key: str
) -> None:
    places = {"input": "rows.jsonl", "output": "out", key: "https://me:hunter2@host/rows"}
    config = SimpleNamespace(model_uri=ONNX, **places)
    runs = len(store.client.search_runs(["0"]))
    with pytest.raises(ConfigError, match=f"{key} has credentials"):
        workflows.predict(workflows.Invocation(config, {}, {}))
    assert len(store.client.search_runs(["0"])) == runs


def test_relative_places_begin_at_the_repositorys_root() -> None:
    assert absolute("demo/heldout.jsonl") == str(ROOT / "demo" / "heldout.jsonl")
    assert absolute("s3://bucket/rows") == "s3://bucket/rows"


def test_mlflow_run_goes_on_after_a_kill_and_has_every_row_once(
    scratch: Workplace, tmp_path: Path
) -> None:
    prompts = [*questions(600), TOO_LONG]
    rows = write_rows(tmp_path / "rows.jsonl", prompts)
    output = tmp_path / "out"
    asked = [f"model_uri={ONNX}", f"input={rows}", f"output={output}", "predict.part_rows=8"]
    kill_in_mid_job(scratch, output, asked)
    done = {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    recorded = len(list((output / "_job" / "done").glob("[0-9]*.json")))
    assert 0 < recorded < 76
    result = scratch.mlflow_run("predict", *asked)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{8 * recorded} of the rows were done before" in result.stdout
    assert "1 row has an error" in result.stdout
    kept = [name for name, at in done.items() if (output / name).stat().st_mtime_ns == at]
    assert len(kept) == recorded, "only unfinished parts are repeated"
    assert [row["row"] for row in rows_of(output)] == list(range(601))
    assert [row["prompt"] for row in rows_of(output)] == prompts
    (run,) = scratch.client.search_runs(
        [scratch.client.get_experiment_by_name("tests").experiment_id],
        "attributes.run_name = 'predict phi3-demo/2' and attributes.status = 'FINISHED'",
    )
    assert run.data.metrics["rows"] == 601
    assert run.data.metrics["failed_rows"] == 1
    assert run.data.metrics["parts_from_before"] == recorded
    assert run.data.tags["predict.output"] == str(output)
    assert run.inputs.dataset_inputs[0].dataset.name == "rows"
    assert [a.path for a in scratch.client.list_artifacts(run.info.run_id, "manifest.json")] or any(
        a.path == "manifest.json" for a in scratch.client.list_artifacts(run.info.run_id)
    )


def kill_in_mid_job(workplace: Workplace, output: Path, asked: list[str]) -> None:
    """As a machine that loses power: nothing of the command is left, nothing was said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "entrypoints.predict", *asked],
        cwd=ROOT,
        env=dict(workplace.environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + TIMEOUT
    try:
        while len(list(output.glob("_job/done/[0-9]*.json"))) < 3:
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_job_of_which_every_row_fails_exits_with_its_first_error(
    scratch: Workplace, text_model: str, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ["DIE", " "])
    asked = [f"model_uri={text_model}", f"input={rows}", f"output={tmp_path / 'out'}"]
    result = scratch.script("predict", *asked)
    assert result.returncode == 1
    assert "all 2 rows failed; the first: " in result.stderr
    assert "exit code 7" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(rows_of(tmp_path / "out")) == 2


def model_processes(process: psutil.Process) -> list[int]:
    return [
        child.pid
        for child in process.children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
        and any(part.endswith("worker.py") for part in child.cmdline())
    ]
