"""Sweeps end to end: the tree, whatever runs the points; failures, kills, resumes, interrupts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, TIMEOUT, Workplace, make_workplace
from tests.tracking_server import tracking_server
from tests.trees import (
    PARENT,
    artifact,
    overrides,
    parents,
    points,
    runs,
    states,
    table,
    wait_for,
)

TEMPERATURES = "search.temperature=0.0,0.4"
HALF_WAY = ["FINISHED", "RUNNING", "RUNNING"]  # the first point, the second, the sweep


@contextmanager
def started(workplace: Workplace, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "entrypoints.custom_onnx", *arguments]
    environment = dict(workplace.environment)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that run points below it."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [one for one in below if "slmflow.point_worker" in one.cmdline()]


def nothing_runs(workplace: Workplace) -> bool:
    return all(run.info.status not in ("RUNNING", "SCHEDULED") for run in runs(workplace))


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, shared_cache: Path
) -> tuple[Workplace, "subprocess.CompletedProcess[str]"]:
    """Two points that work and two that cannot, under ``mlflow run``."""
    workplace = make_workplace(tmp_path_factory.mktemp("swept"), shared_cache)
    return workplace, workplace.mlflow_run(
        "custom_onnx", TEMPERATURES, "hardware.precision=int4,bf16"
    )


def test_a_list_of_values_makes_one_parent_and_a_child_for_each_point(swept) -> None:  # type: ignore[no-untyped-def]
    workplace, _ = swept
    (parent,) = [run for run in runs(workplace) if PARENT not in run.data.tags]
    assert parents(workplace)[0].info.run_id == parent.info.run_id
    children = points(workplace, parent)
    assert [overrides(child) for child in children] == [
        ["search.temperature=0.0", "hardware.precision=int4"],
        ["search.temperature=0.0", "hardware.precision=bf16"],
        ["search.temperature=0.4", "hardware.precision=int4"],
        ["search.temperature=0.4", "hardware.precision=bf16"],
    ]
    assert [child.data.params.get("search.temperature") for child in children] == [
        *("0.0", None, "0.4", None)
    ]


def test_points_that_fail_do_not_stop_the_others_and_are_named(swept) -> None:  # type: ignore[no-untyped-def]
    workplace, result = swept
    (parent,) = parents(workplace)
    assert states(workplace, parent) == ["FINISHED", "FAILED", "FINISHED", "FAILED"]
    message = points(workplace, parent)[1].data.tags["slmflow.error"]
    assert "hardware.precision=bf16 does not go with hardware.provider=cpu" in message
    assert result.returncode == 1
    assert parent.info.status == "FAILED"
    assert "2 of 4 points did not finish" in result.stderr
    assert "hardware.precision=bf16" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_the_parent_has_the_table_the_counts_and_the_best_point(swept) -> None:  # type: ignore[no-untyped-def]
    workplace, _ = swept
    (parent,) = parents(workplace)
    metrics = parent.data.metrics
    assert metrics["points.finished"] == 2
    assert metrics["points.failed"] == 2
    assert metrics["points.skipped"] == 0
    found = table(workplace, parent)
    best = points(workplace, parent)[found["best"]]
    assert parent.data.tags["slmflow.sweep.best"] == best.info.run_id
    assert metrics["best/size_bytes"] == best.data.metrics["size_bytes"]
    lines = artifact(workplace, parent, "sweep.csv").splitlines()
    assert len(lines) == 5
    assert "<svg" in artifact(workplace, parent, "sweep.html")


def test_the_alias_points_at_the_best_point_and_not_at_the_last(swept) -> None:  # type: ignore[no-untyped-def]
    workplace, _ = swept
    (parent,) = parents(workplace)
    best = points(workplace, parent)[table(workplace, parent)["best"]]
    version = workplace.client.get_model_version_by_alias("phi3-demo", "candidate-custom_onnx-cpu")
    assert best.data.tags["slmflow.models"] == f"models:/phi3-demo/{version.version}"


def test_who_names_no_version_gets_the_best_point_and_not_the_last(swept, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    workplace, _ = swept
    result = workplace.script("export", f"output={tmp_path / 'exported'}")
    version = workplace.client.get_model_version_by_alias("phi3-demo", "candidate-custom_onnx-cpu")
    assert result.returncode == 0, result.stdout + result.stderr
    (exported,) = (tmp_path / "exported").rglob("MLmodel")
    assert version.run_id in exported.read_text()
    versions = workplace.client.search_model_versions("name='phi3-demo'")
    assert int(version.version) < max(int(one.version) for one in versions)


def test_what_a_point_printed_is_with_its_run(swept) -> None:  # type: ignore[no-untyped-def]
    workplace, _ = swept
    (parent,) = parents(workplace)
    first, second, *_ = points(workplace, parent)
    assert "log the MLflow model" in artifact(workplace, first, "output.txt")
    assert "error: hardware.precision=bf16" in artifact(workplace, second, "output.txt")


def test_points_of_the_same_weights_take_the_room_of_one(swept) -> None:  # type: ignore[no-untyped-def]
    workplace, _ = swept
    files = list(workplace.folder.rglob("model.onnx.data"))
    assert len(files) == 2, "the two that finished"
    assert len({file.stat().st_ino for file in files}) == 1


def test_the_same_command_again_runs_only_what_has_not_finished(swept, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    workplace, _ = swept
    (parent,) = parents(workplace)
    before = points(workplace, parent)
    result = workplace.mlflow_run("custom_onnx", TEMPERATURES, "hardware.precision=int4,bf16")
    assert result.returncode == 1
    (parent,) = parents(workplace)
    after = points(workplace, parent)
    assert [run.info.run_id for run in after[::2]] == [run.info.run_id for run in before[::2]]
    assert [run.data.tags["slmflow.sweep.attempts"] for run in after] == ["1", "2", "1", "2"]
    earlier = [run for run in runs(workplace) if run.info.run_id == before[1].info.run_id]
    assert earlier[0].data.tags[PARENT] == after[1].info.run_id
    assert "goes on with run" in result.stdout


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_the_tree_is_the_same_under_other_launchers(workplace: Workplace, launcher: str) -> None:
    result = workplace.script("custom_onnx", TEMPERATURES, f"hydra/launcher={launcher}")
    assert result.returncode == 0, result.stdout + result.stderr
    (parent,) = parents(workplace)
    assert parent.info.status == "FINISHED"
    assert states(workplace, parent) == ["FINISHED", "FINISHED"]
    assert len([run for run in runs(workplace) if PARENT not in run.data.tags]) == 1
    assert table(workplace, parent)["launcher"] == launcher


def test_a_point_that_is_killed_is_recorded_and_the_next_ones_run(workplace: Workplace) -> None:
    with started(workplace, TEMPERATURES) as sweep:
        wait_for(lambda: [run for run in runs(workplace) if "slmflow.sweep.point" in run.data.tags])
        (worker,) = workers_of(sweep)
        worker.kill()
        output, _ = sweep.communicate(timeout=TIMEOUT)
    (parent,) = parents(workplace)
    assert states(workplace, parent) == ["KILLED", "FINISHED"]
    assert "was killed" in points(workplace, parent)[0].data.tags["slmflow.error"]
    assert sweep.returncode == 1
    assert "1 of 2 points did not finish" in output


def test_a_point_that_hangs_ends_at_its_time_limit(workplace: Workplace) -> None:
    with started(workplace, TEMPERATURES, "sweep.timeout=30") as sweep:
        wait_for(lambda: [run for run in runs(workplace) if "slmflow.sweep.point" in run.data.tags])
        (worker,) = workers_of(sweep)
        worker.suspend()
        sweep.communicate(timeout=TIMEOUT)
    (parent,) = parents(workplace)
    assert states(workplace, parent) == ["KILLED", "FINISHED"]
    message = points(workplace, parent)[0].data.tags["slmflow.error"]
    assert message == "took longer than sweep.timeout=30 s"
    assert sweep.returncode == 1


def test_an_interrupt_leaves_nothing_running(workplace: Workplace) -> None:
    with started(workplace, TEMPERATURES) as sweep:
        wait_for(lambda: [run for run in runs(workplace) if "slmflow.sweep.point" in run.data.tags])
        workers = workers_of(sweep)
        sweep.send_signal(signal.SIGINT)
        sweep.communicate(timeout=TIMEOUT)
    assert sweep.returncode == 130
    (parent,) = parents(workplace)
    assert parent.info.status == "KILLED"
    assert states(workplace, parent) == ["KILLED"]
    assert nothing_runs(workplace)
    assert table(workplace, parent)["points"][1]["state"] == "waiting"
    assert not any(worker.is_running() for worker in workers)


def test_a_sweep_whose_driver_was_killed_goes_on_and_two_at_once_run_no_point_twice(
    workplace: Workplace,
) -> None:
    # Its workers would outlive it, and be at the second point.
    with started(
        workplace, TEMPERATURES, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"
    ) as sweep:
        wait_for(lambda: sorted(run.info.status for run in runs(workplace)) == HALF_WAY)
        os.kill(sweep.pid, signal.SIGKILL)
        sweep.wait(TIMEOUT)
    (parent,) = parents(workplace)
    wait_for(lambda: states(workplace, parent) == ["FINISHED", "KILLED"])
    with started(workplace, TEMPERATURES) as one, started(workplace, TEMPERATURES) as other:
        told = [process.communicate(timeout=TIMEOUT)[0] for process in (one, other)]
    codes = sorted([one.returncode, other.returncode])
    (parent,) = parents(workplace)
    assert states(workplace, parent) == ["FINISHED", "FINISHED"]
    attempts = [point.data.tags["slmflow.sweep.attempts"] for point in points(workplace, parent)]
    assert attempts == ["1", "2"]
    assert codes in ([0, 0], [0, 1]), told
    if codes == [0, 1]:
        assert any("is being run by" in text for text in told)


def test_the_tracking_server_may_be_remote(workplace: Workplace, tmp_path: Path) -> None:
    with tracking_server(workplace, tmp_path) as address:
        environment = {**workplace.environment, "MLFLOW_TRACKING_URI": address}
        environment["MLFLOW_EXPERIMENT_NAME"] = "remote"
        remote = Workplace(workplace.folder, environment)
        result = remote.script("custom_onnx", TEMPERATURES, "hydra/launcher=joblib")
        assert result.returncode == 0, result.stdout + result.stderr
        (parent,) = parents(remote)
        assert states(remote, parent) == ["FINISHED", "FINISHED"]
        assert "<svg" in artifact(remote, parent, "sweep.html")
        logged = remote.client.search_logged_models([parent.info.experiment_id])
        assert sorted(model.name for model in logged) == [*["custom_onnx"] * 2, "weights"]


def test_commas_and_quotes_in_values_stay_what_they_are(workplace: Workplace) -> None:
    questions = ["What, then?", 'It\'s "so", or not']
    quoted = ",".join("'" + question.replace("'", "\\'") + "'" for question in questions)
    result = workplace.mlflow_run(
        "custom_onnx", f"model.probe.question={quoted}", "model.probe.expect=null"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (parent,) = parents(workplace)
    asked = [point.data.params["model.probe.question"] for point in points(workplace, parent)]
    assert asked == questions


def test_a_sweep_goes_on_by_its_run_id_alone_and_with_more_trials(workplace: Workplace) -> None:
    preset = ("sweep=search_optuna", "sweep.objectives=[size_bytes]")
    first = workplace.script("custom_onnx", *preset, "sweep.trials=1")
    assert first.returncode == 0, first.stdout + first.stderr
    (parent,) = parents(workplace)
    resumed = f"sweep.resume={parent.info.run_id}"
    other = workplace.script("transformers_pipeline", resumed)
    assert other.returncode == 1
    assert "is a sweep of custom_onnx, not of transformers_pipeline" in other.stderr
    changed = workplace.script("custom_onnx", resumed, "hardware.precision=int8")
    assert changed.returncode == 1
    assert "leave out hardware.precision=int8" in changed.stderr
    second = workplace.script("custom_onnx", resumed, "sweep.trials=2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert len(points(workplace, parent)) == 2
    assert len(parents(workplace)) == 1


def test_a_value_that_no_option_has_is_told_before_any_run(workplace: Workplace) -> None:
    result = workplace.script("custom_onnx", "search=greedy,gredy")
    assert result.returncode == 1
    assert "search=gredy: no such option (did you mean greedy?)" in result.stderr
    assert not runs(workplace)


def test_an_entry_point_that_cannot_be_swept_says_so(workplace: Workplace) -> None:
    result = workplace.script("serve", "serve.port=0,8000")
    assert result.returncode == 1
    assert "serve cannot be swept" in result.stderr
