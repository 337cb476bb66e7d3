"""``rerun``: a recorded run, run again from the tracking server alone, and what is said of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Run
from omegaconf import OmegaConf

from slmflow import lock_file, workflows
from slmflow.answering import model_files
from slmflow.answering.model_files import CONTENTS, contents
from slmflow.config.arguments import to_overrides
from slmflow.config.load import typed, without_hydra
from slmflow.config.rerun import (
    REPEATABLE,
    Rerun,
    RerunConfig,
    rebuilt,
    replaced,
    value_of,
)
from slmflow.config.store import register
from slmflow.errors import BuildError, ConfigError, SourceError, TrackingError
from slmflow.lock_file import Contents, Entry
from slmflow.packaging import onnx_build, package
from slmflow.replay import circumstances, figures, models, weights
from slmflow.replay.answers import compare_written
from slmflow.replay.builds import own_builds
from slmflow.replay.compare import compare
from slmflow.replay.find import find
from slmflow.replay.lock import commits_of_then
from slmflow.replay.pins import Order, Pinned, beside, pin
from slmflow.replay.record import PROVENANCE, Record, read
from slmflow.replay.report import render_html
from slmflow.replay.results import Finding, Report, Sameness
from slmflow.replay.start import RerunDiffers, pins_of
from slmflow.served.digests import file_sha256
from slmflow.sources import find_checkpoint
from slmflow.tracking.names import OVERRIDES, PLAN, POINT, RESUMES
from tests.conftest import ROOT, Packaged, Workplace, copy_store, make_workplace
from tests.records import a_record
from tests.reruns import again, counted, last_rerun, named, report_of, seen_here, verdicts
from tests.server import READY
from tests.trees import PARENT, runs

ONNX = "models:/phi3-demo/2"
RERUN = "e" * 32  # the run that repeats another
EXTRA = {
    "predict": ["input=rows.jsonl", "output=answers"],
    "export": ["output=exported"],
    "materialise": ["model_uri=models:/phi3-demo/2"],
}
OF, AS, BY = (f"slmflow.rerun.{name}" for name in ("of", "as", "by"))
VERDICT = "slmflow.rerun.verdict"
COMMANDS = ("  git ", "  mlflow ")  # which are not cut
TIMES = ("first_token_seconds", "decode_tokens_per_second")


def composed(entry_point: str) -> tuple[Any, dict[str, Any]]:
    """The config of an entry point as a run records it."""
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = without_hydra(compose(entry_point, EXTRA.get(entry_point, [])))
    checked = typed(config)
    values: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    return checked, values


@pytest.mark.parametrize("typed", ["--rerun.places", "rerun.places="])
def test_places_are_typed_as_the_error_says(workplace: Workplace, typed: str) -> None:
    """In either form: as ``mlflow run -P`` hands it on, and in Hydra's own syntax."""
    places = "{model.source: /data/phi3, data.path: /data/rows.jsonl}"
    arguments = [typed, places] if typed.startswith("--") else [f"{typed}{places}"]
    result = workplace.script("rerun", "run_id=nonsense", *arguments)
    assert "run_id=nonsense: there is no such run" in result.stderr


@pytest.mark.parametrize("entry_point", REPEATABLE)
def test_a_recorded_config_becomes_the_config_that_it_was(entry_point: str) -> None:
    checked, values = composed(entry_point)
    again = rebuilt(entry_point, values)
    assert again.config == checked
    assert again.values == values
    assert (again.added, again.gone) == ((), ())


def test_keys_that_are_new_have_their_defaults_and_keys_that_are_gone_are_left_out() -> None:
    _, values = composed("evaluate")
    del values["parity"], values["ask"]["concurrency"]
    values["model"]["colour"] = "red"
    values["gone"] = {"deep": 1}
    again = rebuilt("evaluate", values)
    assert again.added == ("ask.concurrency", "parity")
    assert again.gone == ("model.colour", "gone")
    assert (again.config.ask.concurrency, again.config.parity.rows) == (4, 20)


def test_a_record_that_the_schema_refuses_says_what_to_do() -> None:
    _, values = composed("custom_onnx")
    with pytest.raises(ConfigError, match="check out the commit"):
        rebuilt("custom_onnx", replaced(values, {"hardware.precision": "int3"}))
    with pytest.raises(ConfigError, match="those of transformers_pipeline"):
        rebuilt("doctor", values)


@pytest.mark.parametrize(
    "text", ["${oc.env:SECRET_OF_MINE}", "a ${ b", r"\${x} \\${y} C:\z\\", "${model.name} ${"]
)
def test_a_recorded_text_is_never_resolved_on_the_machine_of_who_runs_it_again(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "leaked")
    _, values = composed("evaluate")
    recorded = replaced(values, {"model.probe.question": text, "models": [text]})
    again = rebuilt("evaluate", recorded)
    assert (again.config.model.probe.question, again.config.models) == (text, [text])
    assert again.values == recorded


KEYS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join)
VALUES = st.recursive(
    st.integers(), lambda below: st.dictionaries(st.sampled_from("abc"), below), max_leaves=6
).filter(lambda value: isinstance(value, dict))


@given(VALUES, KEYS, st.integers())
def test_what_is_replaced_is_there_and_nothing_else_has_changed(
    values: dict[str, Any], key: str, value: int
) -> None:
    parts = key.split(".")
    for upper in range(1, len(parts)):  # only what is a group has keys below it
        if not isinstance(value_of(values, ".".join(parts[:upper])), dict | None):
            return
    before = json.dumps(values)
    after = replaced(values, {key: value})
    assert value_of(after, key) == value
    assert json.dumps(values) == before
    others = {name: one for name, one in values.items() if name != parts[0]}
    assert others == {name: one for name, one in after.items() if name != parts[0]}


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_two_figures_are_as_near_whichever_was_first(one: float, other: float) -> None:
    assert figures.sameness("correct", one, other) is figures.sameness("correct", other, one)
    assert figures.sameness("correct", one, one) is Sameness.identical


@pytest.mark.parametrize(
    ("name", "then", "now", "expected"),
    [
        ("perplexity", 12.0000041, 12.000001, Sameness.equal),
        ("perplexity", 12.1, 12.0, Sameness.different),
        ("completion_tokens", 10_000_001, 10_000_000, Sameness.different),
        ("size_bytes", 1_857_362, 1_857_455, Sameness.equal),
        ("size_bytes", 1_857_362, 1_957_455, Sameness.different),
        ("answer_seconds", 1.0, 9.0, Sameness.noise),
        ("decode_tokens_per_second", 90.0, 10.0, Sameness.noise),
        ("peak_memory_bytes", 1e9, 2e9, Sameness.noise),
    ],
)
def test_figures_are_equal_within_a_tolerance_and_times_are_never_counted(
    name: str, then: float, now: float, expected: Sameness
) -> None:
    (finding,) = figures.compare("evaluate", {name: then}, {name: now})
    assert finding.sameness is expected


PROVENANCE_THEN: dict[str, Any] = {
    "code": {"commit": "a" * 40, "branch": "main", "remote": None, "dirty": False},
    "python": "3.11.7",
    "os": "Linux",
    "packages": {"torch": "2.12.0", "rich": "14.0", "numpy": "2.3.0"},
    "hardware": {"cpu": "A", "cores": 2, "memory_bytes": 8e9, "accelerators": []},
    "environment": {"OMP_NUM_THREADS": "2"},
}


def test_nothing_differs_from_itself() -> None:
    found = circumstances.compare(PROVENANCE_THEN, PROVENANCE_THEN, "x")
    assert not found.differences and not found.others and not found.advice


def test_what_can_change_numbers_is_named_and_the_rest_is_counted() -> None:
    now = {
        **PROVENANCE_THEN,
        "code": {**PROVENANCE_THEN["code"], "commit": "b" * 40, "dirty": True, "diff_sha256": "c"},
        "packages": {"torch": "2.13.0", "rich": "15.0", "numpy": "2.3.0"},
        "hardware": {**PROVENANCE_THEN["hardware"], "cores": 4},
        "environment": {},
    }
    found = circumstances.compare(PROVENANCE_THEN, now, "x")
    told = {(one.group, one.name): (one.then, one.now) for one in found.differences}
    assert told == {
        ("code", "commit"): ("a" * 40, "b" * 40),
        ("code", "uncommitted"): ("nothing", "diff c"),
        ("libraries", "torch"): ("2.12.0", "2.13.0"),
        ("machine", "cores"): ("2", "4"),
        ("environment", "OMP_NUM_THREADS"): ("2", None),
    }
    assert [one.name for one in found.others] == ["rich"]
    assert found.advice == [f"git worktree add ../slmflow-{'a' * 12} {'a' * 40}"]
    assert all(one.group in circumstances.MEANINGS for one in found.differences)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (("a.py",), "a.py (diff c)"),
        (("a.py", "b.py", "c.py"), "a.py, b.py, c.py (diff c)"),
        (("a.py", "b.py", "c.py", "d.py"), "a.py, b.py, c.py and 4 more (diff c)"),
    ],
)
def test_what_was_not_committed_is_told_by_the_names_of_its_files(
    files: tuple[str, ...], told: str
) -> None:
    code = {**PROVENANCE_THEN["code"], "dirty": True, "diff_sha256": "c", "files": files}
    more = {"files_more": 3} if len(files) > 3 else {}
    now = {**PROVENANCE_THEN, "code": {**code, **more}}
    (found,) = circumstances.compare(PROVENANCE_THEN, now, "x").differences
    assert (found.name, found.then, found.now) == ("uncommitted", "nothing", told)


def test_rows_of_a_rerun_are_written_beside_those_of_then() -> None:
    assert beside("answers/", "3f1c0a9b2d") == "answers-rerun-3f1c0a9b"
    assert beside("s3://bucket/answers", "3f1c0a9b2d") == "s3://bucket/answers-rerun-3f1c0a9b"


def a_sweep(*points: tuple[str, bool]) -> Record:
    """Points by what varies, and whether they got as far as a config."""
    parts = [
        a_record(
            {"slmflow.entry_point": "main", POINT: str(n), OVERRIDES: json.dumps([varies])},
            {"config.yaml": {}} if config else {},
        )
        for n, (varies, config) in enumerate(points)
    ]
    return a_record({"slmflow.entry_point": "main"}, {PLAN: {}}, tuple(parts))


def test_a_point_that_is_missing_by_now_is_a_difference_where_it_could_be_repeated() -> None:
    then, now = a_sweep(("a=1", True), ("a=2", True), ("a=3", False)), a_sweep(("a=1", True))
    found = {one.part: (one.sameness, one.words) for one in compare(then, now)}
    assert found["point 1"] == (Sameness.different, "did not begin")
    assert found["point 2"][0] is Sameness.unknown
    part = a_record({"slmflow.entry_point": "evaluate"}, {})
    whole = a_record({"slmflow.entry_point": "main"}, {}, (part,))
    (finding,) = compare(whole, replace(whole, parts=()))
    assert (finding.part, finding.sameness) == ("evaluate", Sameness.different)


def test_what_was_pinned_is_told_of_every_point() -> None:
    order = Order("main", {}, {})
    orders = {
        (varies,): Pinned(order, None, {"data.digest": "d", "model.revision": revision})
        for varies, revision in (("model=a", "1"), ("model=b", "2"))
    }
    assert pins_of(orders) == {
        "data.digest": "d",
        "model=a: model.revision": "1",
        "model=b: model.revision": "2",
    }


def test_the_weights_of_each_point_are_looked_for_where_its_own_model_lies(tmp_path: Path) -> None:
    runs_then = []
    for name in ("one", "another"):
        folder = tmp_path / name
        shutil.copytree(ROOT / "demo" / "phi3_demo", folder)
        (folder / "added.json").write_text(f'"{name}"')
        model = composed("transformers_pipeline")[0].model
        model.source, model.revision = str(folder), None
        revision = find_checkpoint(str(folder), None, print).revision
        runs_then.append((a_record({"source": str(folder), "revision": revision}, {}), model))
    assert weights.changed(runs_then, print) == []
    (tmp_path / "another" / "added.json").write_text("{}")
    (told,) = weights.changed(runs_then, print)
    assert told.name == str(tmp_path / "another")


def written(folder: Path, answers: list[list[str]], compression: str) -> Record:
    """A job's record and its files."""
    folder.mkdir()
    parts = []
    for number, each in enumerate(answers):
        file = folder / f"part-{number}.parquet"
        pq.write_table(pa.table({"answer": each}), file, compression=compression)
        parts.append({"rows": len(each), "sha256": file_sha256(file)})
    identity = {"input": [], "model": {"digest": "m"}, "parameters": {}}
    manifest = {"identity": identity, "parts": parts}
    return a_record({"predict.output": str(folder)}, {"manifest.json": manifest})


def test_rows_are_compared_with_those_that_the_run_of_then_wrote_and_no_others(
    tmp_path: Path,
) -> None:
    answers = [["a", "b"], ["c"]]
    then, now = (
        written(tmp_path / name, answers, name) for name in ("none", "gzip")
    )  # other bytes
    other = written(tmp_path / "other", [["a", "b"], ["x"]], "none")

    def rows(one: Record, another: Record) -> Finding:
        return next(
            found for found in compare_written("predict", one, another) if found.what == "rows"
        )

    assert (rows(then, now).sameness, rows(then, now).words) == (Sameness.identical, "all 3")
    assert (rows(now, other).words, rows(now, other).details[0][:3]) == ("1 of 3 rows", "2: ")
    shutil.copy(tmp_path / "other" / "part-1.parquet", tmp_path / "none" / "part-1.parquet")
    assert rows(then, now).sameness is Sameness.different  # another job has written there since
    assert "the rows of then are not within reach" in rows(then, now).words


def test_builds_that_a_killed_rerun_left_are_removed_and_those_of_another_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path))
    left = tmp_path / "rerun-left"
    left.mkdir()
    (left / "model.onnx").write_text("gigabytes")
    with own_builds() as one, own_builds() as other:
        assert one.is_dir() and other.is_dir() and not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_only_who_built_a_model_says_that_the_build_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a process that carries out one point of a sweep after another."""
    monkeypatch.setenv("SLMFLOW_CACHE", str(tmp_path))
    config = composed("custom_onnx")[0]

    def build(_: Path, output: Path, *__: object) -> None:
        (output / "model.onnx").write_text("built")

    monkeypatch.setattr(onnx_build, "run_builder", build)
    origins = [onnx_build.get_onnx(config.model, config.hardware, print)[1] for _ in range(2)]
    assert origins == [onnx_build.BUILT, onnx_build.CACHE]


@pytest.mark.parametrize("given_id", ["0012", "12e7", "1234567890"])
def test_a_run_id_of_digits_stays_a_text(given_id: str) -> None:
    register()
    overrides = to_overrides([f"run_id={given_id}"])
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = typed(without_hydra(compose("rerun", overrides)))
    assert config.run_id == given_id


# From here on, with real runs.


@pytest.fixture
def store(scratch: Workplace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """The runs of ``packaged``, seen from this process."""
    yield from seen_here(scratch, monkeypatch)


@pytest.fixture(scope="module")
def elsewhere(
    tmp_path_factory: pytest.TempPathFactory, packaged: Packaged
) -> "tuple[Workplace, subprocess.CompletedProcess[str]]":
    """A registered version run again by another user: other home, cache and checkout, no git."""
    folder = tmp_path_factory.mktemp("elsewhere")
    workplace = copy_store(packaged.workplace, folder)
    checkout = folder / "checkout"
    for name in ("src", "conf", "entrypoints", "demo"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("MLproject", "conda.yaml", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, checkout / name)
    other = {"HOME": str(folder / "home"), "SLMFLOW_CACHE": str(folder / "cache")}
    workplace = replace(workplace, environment={**workplace.environment, **other})
    mlflow_command = str(Path(sys.executable).with_name("mlflow"))
    command = [mlflow_command, "run", str(checkout), "-e", "rerun", "--env-manager", "local"]
    command += ["-P", f"run_id={ONNX}", "-P", "rerun.strict=true"]
    return workplace, workplace.run(command, cwd=folder)


def test_another_user_elsewhere_gets_the_same_bytes_and_tokens(elsewhere) -> None:  # type: ignore[no-untyped-def]
    workplace, result = elsewhere
    assert result.returncode == 0, result.stdout + result.stderr
    report = report_of(workplace, last_rerun(workplace))
    assert verdicts(report)["custom_onnx: weights"] == "identical"
    assert verdicts(report)["custom_onnx: probe tokens"] == "identical"
    assert verdicts(report)["custom_onnx: code and settings"] == "identical"
    assert report["verdict"] in ("identical", "equal within tolerance")
    assert "from a build of its own" in result.stdout  # its cache was empty


def test_a_rerun_is_a_run_with_the_repeated_one_below_it_and_tags_both_ways(elsewhere) -> None:  # type: ignore[no-untyped-def]
    workplace, _ = elsewhere
    rerun = last_rerun(workplace)
    then = workplace.client.get_model_version("phi3-demo", "2").run_id
    (made,) = [run for run in runs(workplace) if run.data.tags.get(PARENT) == rerun.info.run_id]
    assert rerun.info.run_name == "rerun custom_onnx phi3-demo"
    assert made.info.run_name == "custom_onnx phi3-demo"
    assert {rerun.data.tags[OF], made.data.tags[OF]} == {then}
    assert rerun.data.tags[AS] == made.info.run_id
    assert workplace.client.get_run(then).data.tags[BY] == made.info.run_id
    assert {rerun.info.status, made.info.status} == {"FINISHED"}


def test_a_rerun_takes_no_alias_away(elsewhere) -> None:  # type: ignore[no-untyped-def]
    workplace, _ = elsewhere
    aliased = workplace.client.get_model_version_by_alias("phi3-demo", "candidate-custom_onnx-cpu")
    assert int(aliased.version) == 2
    assert not workplace.client.get_model_version("phi3-demo", "3").aliases


def test_what_differs_is_told_before_it_runs_in_lines_that_fit(elsewhere) -> None:  # type: ignore[no-untyped-def]
    _, result = elsewhere
    before, _, after = result.stdout.partition("custom_onnx: phi3-demo")
    assert "since then" in before  # this checkout has no git
    assert "Other code: prompts, search" in before
    told = [line for line in after.splitlines() if "identical: custom_onnx" in line]
    assert len(told) >= 2
    lines = [line for line in before.splitlines() if not line.startswith(COMMANDS)]
    assert all(len(line) <= 80 for line in [*lines, *told])


def test_the_page_tells_all_and_shows_what_was_recorded_as_it_is(elsewhere) -> None:  # type: ignore[no-untyped-def]
    workplace, _ = elsewhere
    rerun = last_rerun(workplace)
    place = workplace.client.download_artifacts(rerun.info.run_id, "rerun.html")
    page = Path(place).read_text()
    assert "identical" in page and rerun.data.tags[OF] in page
    nothing = circumstances.compare(PROVENANCE_THEN, PROVENANCE_THEN, "x")
    finding = Finding("<script>", "weights", Sameness.different, "1 of 2", ["<b>x</b>"])
    report = Report("1", "2", "<i>", "main", "then", {}, [], nothing, [finding])
    assert "<script>" not in render_html(report) and "<b>" not in render_html(report)


def test_a_rerun_can_itself_be_run_again(elsewhere) -> None:  # type: ignore[no-untyped-def]
    workplace, _ = elsewhere
    mlflow.set_tracking_uri(workplace.tracking_uri)
    rerun = last_rerun(workplace)
    assert find(rerun.info.run_id).info.run_id == rerun.data.tags[AS]


def test_a_run_is_found_by_how_it_begins_by_its_uri_and_by_its_version(store: Workplace) -> None:
    run = named(store, "custom_onnx phi3-demo")
    run_id = run.info.run_id
    for typed_id in (run_id, run_id[:12], f"runs:/{run_id}/model", ONNX):
        assert find(typed_id).info.run_id == run_id
    assert find("models:/phi3-demo@candidate-custom_onnx-cpu").info.run_id == run_id
    resumed = store.client.create_run(run.info.experiment_id, tags={RESUMES: run_id})
    assert find(resumed.info.run_id).info.run_id == run_id  # a session that went on with a sweep


def test_what_cannot_be_run_again_says_what_to_type(store: Workplace) -> None:
    part = named(store, "custom_onnx v2").info.run_id
    whole = named(store, "evaluate phi3-demo").info.run_id
    experiment = named(store, "main phi3-demo").info.experiment_id
    stranger = store.client.create_run(experiment, run_name="theirs").info.run_id
    empty = store.client.create_run(experiment, tags={"slmflow.entry_point": "main"})
    for typed_id, told in (
        ("f" * 32, "MLFLOW_TRACKING_URI"),
        ("zz", "a run id, or how it begins"),
        ("models:/phi3-demo/99", "no such version"),
        (part, f"type run_id={whole}"),
        (stranger, "did not begin as an entry point"),
    ):
        with pytest.raises(TrackingError, match=told):
            find(typed_id)
    with pytest.raises(TrackingError, match=r"mlflow run \. -e main"):
        pin(read(empty), RerunConfig(empty.info.run_id), RERUN)


def test_a_run_with_a_secret_in_its_config_is_not_repeated(store: Workplace) -> None:
    record = read(named(store, "custom_onnx phi3-demo"))
    values = replaced(record.values or {}, {"model.source": "https://***@hub/model"})
    hidden = replace(record, documents={**record.documents, "config.yaml": values})
    with pytest.raises(ConfigError, match="secret"):
        pin(hidden, RerunConfig(record.run_id), RERUN)


def test_a_lock_of_today_does_not_keep_a_rerun_from_the_commit_of_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, _ = composed("custom_onnx")
    checked.model.source, checked.model.revision = "org/model", "c" * 40
    lock = tmp_path / "models.lock.yaml"
    monkeypatch.setenv("SLMFLOW_LOCK", str(lock))
    for commit, notes in (("c" * 40, 0), ("d" * 40, 1)):
        others = Entry("org/other", None, Contents("e" * 40, {}))
        lock_file.write([Entry("org/model", None, Contents(commit, {})), others])
        with commits_of_then([checked]) as told:
            assert len(told) == notes
            found = lock_file.pinned("org/model", "c" * 40)
            assert (found is None) == bool(notes)  # a lock that agrees holds as ever
            assert lock_file.pinned("org/other", "e" * 40) is not None
        assert lock_file.place() == lock
    lock.write_text("format: [")
    with commits_of_then([checked]) as told, pytest.raises(SourceError, match="cannot be read"):
        assert told == []
        lock_file.pinned("org/model", "c" * 40)


def test_what_was_left_open_is_what_it_was_resolved_to(store: Workplace) -> None:
    record = read(named(store, "custom_onnx phi3-demo"))
    resolved = {"format": 1, "config": {"model.revision": "c" * 40}, "models": {}}
    of_hub = replace(record, documents={**record.documents, "resolved.json": resolved})
    assert pin(of_hub, RerunConfig("x"), RERUN).config.model.revision == "c" * 40
    moved = Rerun(places={"model.source": "demo/phi3_demo"})  # a folder, which has no commits
    of_folder = pin(of_hub, RerunConfig("x", moved), RERUN)
    assert (of_folder.config.model.revision, of_folder.pins) == (None, {})
    older = {key: value for key, value in record.documents.items() if key != "resolved.json"}
    tags = {**record.tags, "revision": "d" * 40}
    run = Run(record.run.info, record.run.data, record.run.inputs)
    run.data._tags.update(tags)
    assert pin(Record(run, older, ()), RerunConfig("x"), RERUN).config.model.revision == "d" * 40


def test_other_bytes_and_other_tokens_are_different_and_named(store: Workplace) -> None:
    then = read(named(store, "custom_onnx phi3-demo"))
    assert {one.sameness for one in compare(then, then)} == {Sameness.identical}
    other = json.loads(json.dumps(dict(then.documents)))
    other["weights.json"]["files"]["genai_config.json"]["sha256"] = "0"
    other["probe.json"]["probes"][1]["answer_ids"][4] += 1
    found = {one.what: one for one in compare(then, replace(then, documents=other))}
    assert found["weights"].sameness is found["probe tokens"].sameness is Sameness.different
    assert "genai_config.json" in found["weights"].words
    assert "from token 5 on" in found["probe tokens"].words


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_changed_byte_requirement_or_setting_of_the_packaged_model_is_told(
    store: Workplace, tmp_path: Path, version: str
) -> None:
    uri = f"models:/phi3-demo/{version}"
    then = read(find(uri))
    model = tmp_path / "model"
    shutil.copytree(mlflow.artifacts.download_artifacts(uri), model)
    assert then.documents[CONTENTS] == contents(model, model_files.about(model))

    def told() -> Finding:
        changed = contents(model, model_files.about(model))
        now = replace(then, documents={**then.documents, CONTENTS: changed})
        return next(one for one in compare(then, now) if one.what == "code and settings")

    assert told().sameness is Sameness.identical
    about = (model / "MLmodel").read_text()
    (model / "MLmodel").write_text(about.replace("temperature: 0.0", "temperature: 0.5"))
    code = model / "code" / "slmflow" / "served" / "chat.py"
    code.write_bytes(code.read_bytes() + b"\n")
    pinned = (model / "requirements.txt").read_text()
    (model / "requirements.txt").write_text(pinned.replace("numpy==", "numpy==1."))
    assert told().sameness is Sameness.different
    requirement, setting, *files = told().details
    numpy = next(line for line in pinned.splitlines() if line.startswith("numpy"))
    assert requirement == f"requirements: {numpy} -> {numpy.replace('==', '==1.')}"
    assert setting == "flavors.python_function.config.temperature: 0.0 -> 0.5"
    names = [line.partition(":")[0] for line in files]
    assert names == ["code/slmflow/served/chat.py", "requirements.txt"]
    older = {name: one for name, one in then.documents.items() if name != CONTENTS}
    found = {one.what: one for one in compare(replace(then, documents=older), then)}
    assert found["code and settings"].sameness is Sameness.unknown


def test_the_prompts_that_were_recorded_are_asked_again_whatever_is_asked_today(
    store: Workplace,
) -> None:
    then = read(named(store, "custom_onnx phi3-demo"))
    asked = [then.documents["probe.json"]["probes"][0]["question"], "Say hello.", "Name a river."]
    older = {"format": 1, "new_tokens": 5, "probes": [{"question": one} for one in asked]}
    recorded = replace(then, documents={**then.documents, "probe.json": older})
    order = pin(recorded, RerunConfig("x"), RERUN).order
    workflows.repeat(Order(**json.loads(json.dumps(order.as_json()))))  # as a point gets it
    now = read(named(store, "custom_onnx phi3-demo")).documents["probe.json"]
    assert now["new_tokens"] == 5
    assert [probe["question"] for probe in now["probes"]] == asked
    assert [len(probe["answer_ids"]) for probe in now["probes"][1:]] == [5, 5]


def test_other_answers_figures_and_decisions_are_different(store: Workplace) -> None:
    then = read(named(store, "evaluate phi3-demo"))
    other = json.loads(json.dumps(dict(then.documents)))
    figure = other["evaluation.json"]["candidates"][1]["figures"]["exact_match"]
    figure["value"] = figure["value"] / 2
    found = {f"{one.part}: {one.what}": one.sameness for one in compare(then, then)}
    assert found["evaluate, custom_onnx v2: answers"] is Sameness.identical
    assert found["evaluate: dataset"] is Sameness.identical
    assert found["evaluate, custom_onnx v2: load_seconds"] is Sameness.noise
    changed = compare(then, replace(then, documents=other))
    differing = [one for one in changed if one.sameness is Sameness.different]
    assert [(one.part, one.what) for one in differing] == [
        ("evaluate, custom_onnx v2", "exact_match")
    ]


def test_main_is_compared_part_by_part_and_each_part_can_be_run_alone(store: Workplace) -> None:
    then = read(named(store, "main phi3-demo"))
    found = {f"{one.part}: {one.what}": one.sameness for one in compare(then, then)}
    assert found["transformers_pipeline: weights"] is Sameness.identical
    assert found["custom_onnx: probe tokens"] is Sameness.identical
    assert found["evaluate, custom_onnx v2: exact_match"] is Sameness.identical
    part = pin(read(named(store, "evaluate phi3-demo")), RerunConfig("x"), RERUN)
    assert part.pins == {"models": ["models:/phi3-demo/1", ONNX]}
    assert (part.config.search, part.config.data.limit) == (None, 6)
    whole = pin(then, RerunConfig("x"), RERUN)
    assert whole.pins == {}  # its versions are packaged anew
    assert whole.config.search.temperature == 0


def test_main_is_run_again_whole_and_strict_finds_every_byte_token_and_answer(
    store: Workplace,
) -> None:
    then = named(store, "main phi3-demo")
    result = store.script("rerun", f"run_id={then.info.run_id}", "rerun.strict=true")
    assert result.returncode == 0, result.stdout + result.stderr
    told = verdicts(report_of(store, last_rerun(store)))
    for kind in ("transformers_pipeline", "custom_onnx"):
        for what in ("weights", "code and settings", "probe tokens"):
            assert told[f"{kind}: {what}"] == "identical"
    for label in ("transformers_pipeline v1", "custom_onnx v2"):
        for what in ("answers", "exact_match", "intervals"):
            assert told[f"evaluate, {label}: {what}"] == "identical"
    assert told["evaluate: dataset"] == "identical"
    assert not {"different", "not compared"} & set(told.values())
    assert store.client.get_model_version_by_alias(
        "phi3-demo", "candidate-custom_onnx-cpu"
    ).version in (2, "2")


def test_a_rerun_that_fails_says_so_on_its_run(
    store: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BuildError("the builder is away")

    monkeypatch.setattr(package, "get_onnx", refuse)
    with pytest.raises(BuildError, match="is away"):
        again(named(store, "custom_onnx phi3-demo").info.run_id)
    rerun = last_rerun(store)
    report = report_of(store, rerun)
    assert (rerun.info.status, report["error"]) == ("FAILED", "the builder is away")
    assert verdicts(report)["custom_onnx: state"] == "different"
    assert store.client.get_run(rerun.data.tags[AS]).info.status == "FAILED"


@pytest.fixture(scope="module")
def own_weights(
    tmp_path_factory: pytest.TempPathFactory, shared_cache: Path
) -> tuple[Workplace, Path, Run]:
    """A model packaged from a folder of one's own, recorded by other libraries and other code on
    another machine."""
    workplace = make_workplace(tmp_path_factory.mktemp("own"), shared_cache)
    weights = workplace.folder / "weights"
    shutil.copytree(ROOT / "demo" / "phi3_demo", weights)
    result = workplace.script("transformers_pipeline", f"model.source={weights}")
    assert result.returncode == 0, result.stderr
    run = named(workplace, "transformers_pipeline phi3-demo")
    place = workplace.client.download_artifacts(run.info.run_id, PROVENANCE)
    told = json.loads(Path(place).read_text())
    told["packages"]["torch"] = "1.0"
    told["code"] = {"commit": "a" * 40, "branch": "main", "remote": None, "dirty": False}
    told["hardware"] |= {"cpu": "Quantum 9", "cores": 512, "accelerators": ["H200, 139 GiB"]}
    workplace.client.log_text(run.info.run_id, json.dumps(told), PROVENANCE)
    return workplace, weights, run


def test_another_machine_is_told_before_with_what_it_means_and_is_no_difference(
    own_weights: tuple[Workplace, Path, Run],
) -> None:
    workplace, _, run = own_weights
    result = workplace.script("rerun", f"run_id={run.info.run_id}", "rerun.strict=true")
    assert result.returncode == 0, result.stdout + result.stderr
    before, _, _ = result.stdout.partition("transformers_pipeline: phi3-demo on cpu")
    lines = [" ".join(line.split()) for line in before.splitlines()]
    assert any(line.startswith("cpu Quantum 9 ") for line in lines)
    assert any(line.startswith("cores 512 ") for line in lines)
    assert "Another machine: its kernels and number of threads decide" in before
    assert "rates cannot be compared" in " ".join(lines)
    report = report_of(workplace, last_rerun(workplace))
    machine = [one for one in report["circumstances"]["differences"] if one["group"] == "machine"]
    assert {"cpu", "cores", "accelerators"} <= {one["name"] for one in machine}
    assert counted(report) <= {"identical", "equal within tolerance"}


def test_changed_weights_are_told_before_and_strict_exits_with_2(
    own_weights: tuple[Workplace, Path, Run],
) -> None:
    workplace, weights, run = own_weights
    template = weights / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    result = workplace.script("rerun", f"run_id={run.info.run_id}", "rerun.strict=true")
    assert result.returncode == 2, result.stdout + result.stderr
    before, _, _ = result.stdout.partition("transformers_pipeline: phi3-demo on cpu")
    assert "chat_template.jinja" in before and "Other weights" in before
    assert "torch" in before and "1.0" in before and "Other libraries" in before
    assert f"git worktree add ../slmflow-{'a' * 12} {'a' * 40}" in before
    assert "1 of 6 files: chat_template.jinja" in result.stderr
    rerun = last_rerun(workplace)
    assert (rerun.info.status, rerun.data.tags[VERDICT]) == ("FINISHED", "different")
    assert (
        verdicts(report_of(workplace, rerun))["transformers_pipeline: probe tokens"] == "identical"
    )


def test_a_folder_that_is_gone_can_be_named_anew(
    own_weights: tuple[Workplace, Path, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace, weights, run = own_weights
    mlflow.set_tracking_uri(workplace.tracking_uri)
    moved = weights.with_name("moved")
    weights.rename(moved)
    try:
        with pytest.raises(SourceError, match=r"rerun.places=\{model.source: PLACE\}"):
            pin(read(run), RerunConfig(run.info.run_id), RERUN)
        places = Rerun(places={"model.source": str(moved)})
        pinned = pin(read(run), RerunConfig(run.info.run_id, places), RERUN)
        assert pinned.config.model.source == str(moved)
    finally:
        moved.rename(weights)
    with pytest.raises(ValueError, match="changes nothing but where things lie"):
        Rerun(places={"search.temperature": "1"})


def test_an_evaluation_asks_the_versions_of_then_again(store: Workplace) -> None:
    """And judges beside the champion of then: none, though by now the model is champion itself."""
    alias = "candidate-custom_onnx-cpu"
    settings = [f"models=[models:/phi3-demo@{alias}]", "data.limit=4", "speed=none", "trace=false"]
    settings += ["gate=first", "promote=true", "gate.conditions.correct.at_least=0"]
    settings += [f"~gate.conditions.{time}" for time in TIMES]
    done = store.script("evaluate", *settings)
    assert done.returncode == 0, done.stderr
    then = named(store, "evaluate phi3-demo")
    store.client.set_registered_model_alias("phi3-demo", alias, "1")
    again(then.info.run_id)
    rerun = last_rerun(store)
    report = report_of(store, rerun)
    assert report["pinned"] == {"models": [ONNX]}
    assert counted(report) == {"identical"}
    assert verdicts(report)["evaluate, custom_onnx v2: answers"] == "identical"
    assert verdicts(report)["evaluate: gate"] == "identical"
    made = read(store.client.get_run(rerun.data.tags[AS]))
    assert made.values is not None
    assert (made.values["ask"]["reuse"], made.values["promote"]) == (False, False)
    assert len(store.client.search_model_versions("name='phi3-demo.promotions'")) == 1


def test_versions_that_are_other_models_by_now_are_told_before_they_are_asked(
    store: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The registered model was deleted and made anew, with the first model under both numbers."""
    rows = store.folder / "rows.jsonl"
    rows.write_text('{"prompt": "hello"}\n')
    settings = [f"model_uri={ONNX}", f"input={rows}", f"output={store.folder / 'answers'}"]
    done = store.script("predict", *settings)
    assert done.returncode == 0, done.stderr
    then = named(store, "predict phi3-demo/2")
    evaluated = read(named(store, "evaluate phi3-demo"))
    assert models.changed([read(then), evaluated]) == []
    first, second = (
        store.client.get_model_version("phi3-demo", number).source.removeprefix("models:/")
        for number in ("1", "2")
    )
    packaged_by = store.client.get_logged_model(first).source_run_id
    store.client.delete_registered_model("phi3-demo")
    store.client.create_registered_model("phi3-demo")
    for _ in range(2):
        store.client.create_model_version(
            "phi3-demo", f"models:/{first}", run_id=packaged_by, model_id=first
        )
    with pytest.raises(RerunDiffers):
        again(then.info.run_id, strict=True)
    told = capsys.readouterr().out
    assert told.index("look at the models") < told.index("Other models by the names of then")
    assert told.index("Other models by the names of then") < told.index("find the model")
    differences = report_of(store, last_rerun(store))["circumstances"]["differences"]
    model, of_weights = [one for one in differences if one["group"] == "models"]
    assert (model["then"], model["now"]) == (f"model {second}", f"model {first}")
    assert of_weights["name"] == ONNX and of_weights["then"] != of_weights["now"]
    assert {one.name for one in models.changed([evaluated])} == {ONNX}  # the first is what it was


def test_predict_writes_beside_the_rows_of_then(store: Workplace) -> None:
    rows, output = store.folder / "rows.jsonl", store.folder / "answers"
    rows.write_text('{"prompt": "What is the capital of Spain?"}\n{"prompt": "hello"}\n')
    settings = [f"input={rows}", f"output={output}", f"model_uri={ONNX}", "predict.overwrite=true"]
    done = store.script("predict", *settings)
    assert done.returncode == 0, done.stderr
    then = next(run for run in runs(store) if run.data.tags.get("predict.output") == str(output))
    stamp = (output / "_manifest.json").stat().st_mtime_ns
    for _ in range(2):  # each in a folder of its own, with all rows asked
        again(then.info.run_id[:16])
        rerun = last_rerun(store)
        report = report_of(store, rerun)
        assert verdicts(report)["predict: rows"] == "identical"
        assert counted(report) == {"identical"}
        place = Path(beside(str(output), rerun.info.run_id))
        assert (place / "_manifest.json").exists()
        made = store.client.get_run(rerun.data.tags[AS])
        assert made.data.metrics["parts_from_before"] == 0
    for taken in (output, place):
        with pytest.raises(ConfigError, match="give another"):
            again(then.info.run_id, output=str(taken))
    assert (output / "_manifest.json").stat().st_mtime_ns == stamp


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Workplace:
    """Two points that work, and one that cannot."""
    workplace = make_workplace(tmp_path_factory.mktemp("swept-again"), shared_cache)
    result = workplace.script(
        "custom_onnx", "search=sample", "search.temperature=0.0,0.4,-1", "search.seed=1"
    )
    assert "2 finished, 1 failed" in result.stdout, result.stdout + result.stderr
    return workplace


def sweeps(workplace: Workplace) -> list[Run]:
    found = [run for run in runs(workplace) if "slmflow.sweep.key" in run.data.tags]
    return sorted(found, key=lambda run: int(run.info.start_time))


def points(workplace: Workplace, parent: Run) -> list[Run]:
    below = [run for run in runs(workplace) if run.data.tags.get(PARENT) == parent.info.run_id]
    return sorted(below, key=lambda run: int(run.data.tags["slmflow.sweep.point"]))


def test_a_whole_sweep_is_run_again_point_by_point(
    swept: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = next(seen := seen_here(swept, monkeypatch))
    (then,) = sweeps(workplace)
    before = workplace.client.get_model_version_by_alias("phi3-demo", "candidate-custom_onnx-cpu")
    result = workplace.script("rerun", f"run_id={then.info.run_id}", "rerun.strict=true")
    assert result.returncode == 0, result.stdout + result.stderr
    _, now = sweeps(workplace)
    rerun = last_rerun(workplace)
    assert now.data.tags[PARENT] == rerun.info.run_id
    numbers = [
        [
            (run.data.tags["slmflow.sweep.point"], run.data.tags["slmflow.sweep.overrides"])
            for run in each
        ]
        for each in (points(workplace, then), points(workplace, now))
    ]
    assert numbers[1] == numbers[0][:2]  # the other had no config
    report = report_of(workplace, rerun)
    assert verdicts(report)["point 0: probe tokens"] == "identical"
    assert verdicts(report)["point 1: weights"] == "identical"
    assert verdicts(report)["point 2: state"] == "not compared"
    after = workplace.client.get_model_version_by_alias("phi3-demo", "candidate-custom_onnx-cpu")
    assert after.version == before.version
    seen.close()


def test_a_point_of_a_sweep_is_run_again_as_a_run_of_its_own(
    swept: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = next(seen := seen_here(swept, monkeypatch))
    point = points(workplace, sweeps(workplace)[0])[1]
    again(point.info.run_id, fresh=True)
    rerun = last_rerun(workplace)
    report = report_of(workplace, rerun)
    assert "from a build of its own" in json.dumps(report["findings"])
    assert verdicts(report)["custom_onnx: weights"] == "identical"  # the builder repeats itself
    made = workplace.client.get_run(rerun.data.tags[AS])
    assert made.data.params["search.temperature"] == "0.4"
    assert "slmflow.sweep.point" not in made.data.tags
    assert verdicts(report)["custom_onnx: probe tokens"] == "identical"
    seen.close()


def test_a_server_has_the_model_of_then_and_says_so_before_it_listens(
    scratch: Workplace,
) -> None:
    from tests.server import start_server

    with start_server(scratch, "model_uri=models:/phi3-demo@candidate-custom_onnx-cpu") as server:
        server.stop()
    then = next(r for r in runs(scratch) if r.data.tags.get("slmflow.entry_point") == "serve")
    command = [sys.executable, "-m", "entrypoints.rerun", f"run_id={then.info.run_id}"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(scratch.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if READY in line:
                os.kill(process.pid, signal.SIGINT)
    assert process.returncode == 0, "".join(said)
    told = "".join(said)
    assert told.index("identical: serve: model") < told.index(READY)
    rerun = last_rerun(scratch)
    report = report_of(scratch, rerun)
    assert counted(report) == {"identical"}
    assert report["run_id"] == rerun.data.tags[AS]
    assert scratch.client.get_run(rerun.data.tags[AS]).data.tags["served_model"] == ONNX
