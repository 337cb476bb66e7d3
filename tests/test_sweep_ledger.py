"""The tree and the driver of a sweep, on a real tracking store, without running any point."""

import os
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from slmflow.config.sweep import Strategy, Sweep
from slmflow.errors import TrackingError
from slmflow.replay.record import Record
from slmflow.sweeps import session as sessions
from slmflow.sweeps.ledger import ERROR, PARENT, Ledger, Point
from slmflow.sweeps.plan import Plan, common
from slmflow.sweeps.record import log_result, result_of
from slmflow.sweeps.results import PointResult, State
from slmflow.sweeps.run_points import _Follower, run_points
from slmflow.sweeps.session import SESSION, driver_of, session
from slmflow.sweeps.strategy import Grid
from slmflow.tracking import follow
from slmflow.tracking.parameters import whole_tag
from tests.conftest import _empty_store

POINTS = (("a=1",), ("a=2",), ("a=3",))


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> MlflowClient:
    shutil.copyfile(_empty_store(), tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    before = mlflow.get_tracking_uri()  # that other tests of this process have set
    mlflow.set_tracking_uri(uri)
    request.addfinalizer(lambda: mlflow.set_tracking_uri(before))
    client = MlflowClient(uri)
    client.create_experiment("sweeps", artifact_location=(tmp_path / "artifacts").as_uri())
    return client


@pytest.fixture
def ledger(store: MlflowClient) -> Ledger:
    experiment = store.get_experiment_by_name("sweeps")
    parent = store.create_run(experiment.experiment_id)
    return Ledger(parent.info.run_id, store.tracking_uri)


def plan_of(**settings: object) -> Plan:
    return Plan("custom_onnx", "custom_onnx demo", "basic", (), "key", POINTS, Sweep(**settings))  # type: ignore[arg-type]


def test_a_point_that_is_begun_again_keeps_its_earlier_attempt_below_it(
    store: MlflowClient, ledger: Ledger
) -> None:
    point = Point(0, ("a=1",))
    first = ledger.begin(point)
    second = ledger.begin(point)
    assert first is not None and second is not None
    (found,) = ledger.results()
    assert (found.run_id, found.attempts, found.state) == (second, 2, State.running)
    earlier = store.get_run(first)
    assert earlier.info.status == "KILLED"
    assert earlier.data.tags[PARENT] == second


def test_between_a_new_attempt_and_the_move_of_the_earlier_one_only_the_new_one_counts(
    store: MlflowClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others look at any moment, and a driver may be killed at any."""
    point = Point(0, ("a=1",))
    first = ledger.begin(point)
    store.set_terminated(first, "KILLED")
    with monkeypatch.context() as cut, pytest.raises(ConnectionError):
        cut.setattr("slmflow.sweeps.ledger.end_tree", _cut_off)
        ledger.begin(point)
    (found,) = ledger.results()
    assert (found.attempts, found.state) == (2, State.running)
    third = ledger.begin(point)
    assert [(one.run_id, one.attempts) for one in ledger.results()] == [(third, 3)]
    earlier = store.get_run(found.run_id), store.get_run(first)
    assert {run.data.tags[PARENT] for run in earlier} == {third}
    assert {run.info.status for run in earlier} == {"KILLED"}


def _cut_off(*_: object) -> None:
    raise ConnectionError


def test_a_point_that_has_finished_is_not_begun_again(store: MlflowClient, ledger: Ledger) -> None:
    point = Point(0, ("a=1",))
    store.set_terminated(ledger.begin(point), "FINISHED")
    assert ledger.begin(point) is None


def test_to_end_a_point_ends_all_that_runs_below_it_and_nothing_that_ended(
    store: MlflowClient, ledger: Ledger
) -> None:
    point = Point(1, ("a=2",))
    run_id = ledger.begin(point)
    below = store.create_run(ledger.experiment, tags={PARENT: run_id}).info.run_id
    deeper = store.create_run(ledger.experiment, tags={PARENT: below}).info.run_id
    done = store.create_run(ledger.experiment, tags={PARENT: run_id}).info.run_id
    store.set_terminated(done, "FINISHED")
    ledger.end(point, State.killed, "out of memory")
    assert [store.get_run(one).info.status for one in (run_id, below, deeper)] == ["KILLED"] * 3
    assert store.get_run(done).info.status == "FINISHED"
    assert store.get_run(run_id).data.tags[ERROR] == "out of memory"


def test_a_point_that_never_began_gets_a_run_that_says_why(ledger: Ledger) -> None:
    ledger.end(Point(2, ("a=3",)), State.failed, "its job was refused")
    (found,) = ledger.results()
    assert (found.number, found.state, found.message) == (2, State.failed, "its job was refused")


def test_what_varies_is_whole_however_long_it_is(store: MlflowClient, ledger: Ledger) -> None:
    """A tag of 8000 characters is the most that MLflow takes, and it cuts longer ones."""
    long = (f"search.stop=[{'x' * 9000}]", "a=1")
    run_id = ledger.begin(Point(0, long))
    assert run_id is not None
    tags = store.get_run(run_id).data.tags
    assert max(len(value) for value in tags.values()) <= 5000
    assert ledger.results()[0].overrides == dict(one.split("=", 1) for one in long)
    assert Record(store.get_run(run_id), {}, ()).varies == long
    store.log_metric(run_id, "correct", 0.5)
    store.set_terminated(run_id, "FINISHED")
    plan = replace(plan_of(), points=(long,))
    log_result(result_of(plan, ledger, 1.0), store)
    parent = store.get_run(ledger.parent)
    assert max(len(value) for value in parent.data.tags.values()) <= 5000
    assert whole_tag(parent, "slmflow.sweep.best.overrides", store) == " ".join(long)


def test_what_configs_have_in_common_is_what_is_alike_in_all_of_them() -> None:
    one = {"a": {"b": 1, "c": [1]}, "d": None, "e": 1, "f": {"g": 1}, "only": 1}
    other = {"a": {"b": 2, "c": [1]}, "d": None, "e": {"x": 1}, "f": {"g": 1}}
    assert common([one]) == one
    assert (
        common([one, other])
        == common([other, one])
        == {**{"a": {"c": [1]}, "d": None, "f": {"g": 1}}}
    )


def test_of_drivers_that_claim_a_sweep_at_once_one_has_it(
    store: MlflowClient, ledger: Ledger
) -> None:
    at_once, done = threading.Barrier(6), threading.Barrier(6)

    def claim(_: int) -> bool:
        at_once.wait()
        try:
            with session(ledger.parent, MlflowClient(store.tracking_uri)):
                done.wait()
            return True
        except TrackingError as error:
            assert "is being run by" in str(error)
            done.wait()
            return False

    with ThreadPoolExecutor(6) as threads:
        assert sorted(threads.map(claim, range(6))) == [False] * 5 + [True]


def test_a_sweep_that_was_let_go_can_be_driven_again(store: MlflowClient, ledger: Ledger) -> None:
    for _ in range(2):
        with session(ledger.parent, store):
            pass
    params = store.get_run(ledger.parent).data.params
    assert {f"{SESSION}1", f"{SESSION}2"} <= set(params)


def foreign_driver(store: MlflowClient, ledger: Ledger, host: str, pid: int) -> None:
    store.log_param(ledger.parent, f"{SESSION}1", f"ann@{host}:{pid}:1.0:abcd")


def test_a_driver_that_died_on_this_machine_is_replaced_at_once(
    store: MlflowClient, ledger: Ledger
) -> None:
    foreign_driver(store, ledger, socket.gethostname(), os.getpid())  # of another start time
    with session(ledger.parent, store):
        driver = driver_of(store.get_run(ledger.parent))
    assert driver is not None and f":{os.getpid()}:" in driver


@pytest.mark.parametrize("beats", [True, False])
def test_a_driver_elsewhere_counts_as_dead_when_it_is_silent(
    store: MlflowClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    monkeypatch.setattr(sessions, "BEAT", 1.0)
    foreign_driver(store, ledger, "elsewhere", 1)
    stop = threading.Event()
    if beats:
        thread = threading.Thread(target=sessions._beat, args=(ledger.parent, store, stop))
        thread.start()
        with pytest.raises(TrackingError, match="is being run by ann@elsewhere"):
            sessions._claim(ledger.parent, store)
        stop.set()
        thread.join()
    else:
        with session(ledger.parent, store):
            pass


def test_a_launcher_that_loses_its_workers_is_asked_for_what_is_left(
    store: MlflowClient, ledger: Ledger
) -> None:
    launched = []

    def launch(task):  # type: ignore[no-untyped-def]
        launched.append([point.number for point in task.points])
        store.set_terminated(ledger.begin(task.points[0]), "FINISHED")
        raise RuntimeError("a worker was lost")

    run_points(plan_of(), Grid(POINTS), launch, ledger)
    assert launched == [[0, 1, 2], [1, 2], [2]]
    assert [one.state for one in ledger.results()] == [State.finished] * 3


def test_a_launcher_that_begins_nothing_is_not_asked_again(ledger: Ledger) -> None:
    def launch(task):  # type: ignore[no-untyped-def]
        raise RuntimeError("no such partition")

    run_points(plan_of(), Grid(POINTS), launch, ledger)
    found = ledger.results()
    assert [one.state for one in found] == [State.failed] * 3
    assert all("no such partition" in (one.message or "") for one in found)


def test_a_point_whose_job_went_away_says_what_the_scheduler_says(ledger: Ledger) -> None:
    def launch(task):  # type: ignore[no-untyped-def]
        ledger.begin(task.points[0])
        return {0: "Slurm: TIMEOUT", 1: "Slurm: CANCELLED before it began", 2: "Slurm: NODE_FAIL"}

    run_points(plan_of(), Grid(POINTS), launch, ledger)
    found = ledger.results()
    assert [one.state for one in found] == [State.killed, State.failed, State.failed]
    assert found[0].message == "Slurm: TIMEOUT"


def test_an_interrupt_ends_what_runs_and_passes_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmflow.sweeps.run_points.LEAVE", 0.1)

    def launch(task):  # type: ignore[no-untyped-def]
        ledger.begin(task.points[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_points(plan_of(), Grid(POINTS), launch, ledger)
    (found,) = ledger.results()
    assert (found.state, found.message) == (State.killed, "the sweep was interrupted")


def test_a_point_that_ended_itself_on_an_interrupt_says_why(
    store: MlflowClient, ledger: Ledger
) -> None:
    def launch(task):  # type: ignore[no-untyped-def]
        store.set_terminated(ledger.begin(task.points[0]), "KILLED")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_points(plan_of(), Grid(POINTS), launch, ledger)
    (found,) = ledger.results()
    assert found.message == "the sweep was interrupted"


class StopsBelowHalf(Grid):
    def should_stop(self, number: int, step: int, value: float) -> bool:
        return value < 0.5


def test_a_point_that_falls_behind_is_stopped_when_it_next_reports(
    store: MlflowClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = ledger.begin(Point(0, ("a=1",)))
    assert run_id is not None
    monkeypatch.setenv(follow.FOLLOWED, run_id)
    settings = {"prune": True, "strategy": Strategy.tpe, "objectives": ["correct"]}
    follower = _Follower(plan_of(**settings), StopsBelowHalf(POINTS), ledger)
    follow.report("correct", 0.9, 20)
    follower(ledger.results()[0])
    follow.report("correct", 0.2, 40)  # told, and heard after it
    follower(ledger.results()[0])
    with pytest.raises(follow.Pruned, match="after 40 rows"):
        follow.report("correct", 0.2, 60)
    store.set_terminated(run_id, "KILLED")
    (found,) = ledger.results()
    assert found.state is State.pruned
    assert found.message == "correct 0.2 after 40 rows: below the median so far"


def test_nothing_is_reported_where_no_sweep_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(follow.FOLLOWED, raising=False)
    monkeypatch.setattr("slmflow.tracking.follow.MlflowClient", None)  # which cannot be called
    follow.report("correct", 0.5, 10)


def test_jobs_are_remembered_by_point_and_the_last_one_counts(ledger: Ledger) -> None:
    assert ledger.jobs() == {}
    ledger.note_jobs({0: "slurm:7_0", 1: "slurm:7_1"})
    ledger.note_jobs({1: "slurm:9"})
    assert ledger.jobs() == {0: "slurm:7_0", 1: "slurm:9"}


def test_a_parameter_that_is_written_once_stays_what_it_was(
    store: MlflowClient, ledger: Ledger
) -> None:
    """What claims rest on."""
    store.log_param(ledger.parent, "once", "mine")
    with pytest.raises(MlflowException):
        store.log_param(ledger.parent, "once", "yours")
    assert store.get_run(ledger.parent).data.params["once"] == "mine"


def test_a_result_knows_what_it_was_asked(ledger: Ledger) -> None:
    ledger.begin(Point(0, ("model.probe.question='a=b, c'", "search.top_k=1")))
    (found,) = ledger.results()
    assert isinstance(found, PointResult)
    assert found.overrides == {"model.probe.question": "'a=b, c'", "search.top_k": "1"}


def test_the_best_point_is_found_by_its_number_where_numbers_have_gaps(ledger: Ledger) -> None:
    plan = replace(plan_of(strategy=Strategy.tpe), points=())
    client = MlflowClient(ledger.tracking_uri)
    for number, correct in ((0, 0.1), (2, 0.9), (5, 0.2)):
        run_id = ledger.begin(Point(number, (f"a={number}",)))
        client.log_metric(run_id, "correct", correct)
        client.set_terminated(run_id)
    result = result_of(plan, ledger, 1.0)
    assert result.best == 2
    log_result(result, client)
    tags = client.get_run(ledger.parent).data.tags
    assert tags["slmflow.sweep.best"] == result.point(2).run_id


def test_what_an_earlier_driver_left_running_is_ended_in_the_end(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slmflow.sweeps.run_points.ORPHANS", 0.1)
    ledger.begin(Point(7, ("gone=1",)))  # of a search space that is no more

    def launch(task):  # type: ignore[no-untyped-def]
        for point in task.points:
            MlflowClient(ledger.tracking_uri).set_terminated(ledger.begin(point))
        return {}

    run_points(plan_of(), Grid(POINTS), launch, ledger)
    assert [one.state for one in ledger.results()] == [State.finished] * 3 + [State.killed]
