"""Who moves an alias, when several want to: against a real ``mlflow server`` and a SQLite file."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Barrier
from typing import Any

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from slmflow.errors import TrackingError
from slmflow.tracking.promotion import TAG_LENGTH, incumbent, promote, record
from slmflow.tracking.tickets import Ticket, last_winner, winner_beside
from tests.conftest import ROOT, make_workplace
from tests.tracking_server import tracking_server

PATIENCE = 120  # seconds; a guard against hanging, no promise of speed
SPAWN = multiprocessing.get_context("spawn")
ALIAS = "champion-cpu"


@pytest.fixture(autouse=True)
def this_slmflow_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that other tests loaded in this process have put theirs first, also for processes
    that are spawned."""
    monkeypatch.syspath_prepend(str(ROOT / "src"))


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sqlite")
    return make_workplace(folder, folder).tracking_uri


@pytest.fixture(scope="module")
def server_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    workplace = make_workplace(folder, folder)
    with tracking_server(workplace, folder, workers=2) as address:
        yield address


@pytest.fixture(params=["server", "sqlite"])
def uri(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways to a registry, in this process too."""
    address: str = request.getfixturevalue(f"{request.param}_uri")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(address)
    yield address
    mlflow.set_tracking_uri(before)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A registered model for each test."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


def make_versions(name: str, count: int) -> None:
    """Without weights: what is promoted is never loaded here."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("tests")
    model = client.create_logged_model(experiment.experiment_id)
    client.create_registered_model(name)
    for _ in range(count):
        client.create_model_version(name, f"models:/{model.model_id}", model_id=model.model_id)


def uri_of(name: str, version: int) -> str:
    return f"models:/{name}/{version}"


def tags_of(name: str, version: int) -> dict[str, str]:
    return dict(MlflowClient().get_model_version(name, str(version)).tags)


def pass_gate(name: str, version: int, expected: int | None, alias: str = ALIAS) -> None:
    before = uri_of(name, expected) if expected is not None else None
    promote(name, str(version), alias, before, {"decision": f"promoted {version}"})


def test_the_alias_moves_to_what_passed_and_its_version_says_why(uri: str, name: str) -> None:
    make_versions(name, 2)
    assert incumbent(name, ALIAS) is None
    pass_gate(name, 1, expected=None)
    pass_gate(name, 2, expected=1)
    assert incumbent(name, ALIAS) == uri_of(name, 2)
    assert tags_of(name, 2)["decision"] == "promoted 2"


def test_of_a_model_that_is_not_registered_nothing_is_champion(uri: str) -> None:
    assert incumbent("never-registered", ALIAS) is None


@pytest.mark.parametrize("expected", [None, 2])
def test_who_was_judged_against_another_champion_is_refused(
    uri: str, name: str, expected: int | None
) -> None:
    make_versions(name, 3)
    pass_gate(name, 1, expected=None)
    with pytest.raises(TrackingError) as refusal:
        pass_gate(name, 3, expected)
    then = uri_of(name, expected) if expected else "no version"
    assert f"changed from {then} to {uri_of(name, 1)}" in str(refusal.value)
    assert "repeat the command" in str(refusal.value)
    assert incumbent(name, ALIAS) == uri_of(name, 1)
    assert "decision" not in tags_of(name, 3)


def test_to_promote_what_is_champion_already_is_done(uri: str, name: str) -> None:
    make_versions(name, 1)
    pass_gate(name, 1, expected=None)
    pass_gate(name, 1, expected=None)
    assert incumbent(name, ALIAS) == uri_of(name, 1)


def test_an_alias_that_was_moved_by_hand_is_where_promotions_go_on(uri: str, name: str) -> None:
    make_versions(name, 4)
    pass_gate(name, 1, expected=None)
    pass_gate(name, 2, expected=1)
    MlflowClient().set_registered_model_alias(name, ALIAS, "1")  # a roll-back
    with pytest.raises(TrackingError, match=r"from \S+/2 to \S+/1 "):
        pass_gate(name, 3, expected=2)
    assert incumbent(name, ALIAS) == uri_of(name, 1)
    pass_gate(name, 3, expected=1)
    MlflowClient().delete_registered_model_alias(name, ALIAS)
    with pytest.raises(TrackingError, match=r"from \S+/3 to no version"):
        pass_gate(name, 4, expected=3)
    pass_gate(name, 4, expected=None)
    assert incumbent(name, ALIAS) == uri_of(name, 4)


def test_a_version_that_is_not_there_is_told_and_leaves_no_trace(uri: str, name: str) -> None:
    make_versions(name, 1)
    with pytest.raises(TrackingError, match="99"):
        pass_gate(name, 99, expected=None)
    pass_gate(name, 1, expected=None)
    assert incumbent(name, ALIAS) == uri_of(name, 1)


def test_a_refusal_is_written_on_the_version_and_moves_nothing(uri: str, name: str) -> None:
    make_versions(name, 1)
    record(name, "1", {"decision": "refused", "numbers": "9" * (TAG_LENGTH + 1), "note": ""})
    tags = tags_of(name, 1)
    assert tags["decision"] == "refused"
    assert len(tags["numbers"]) == TAG_LENGTH
    assert tags["numbers"].endswith("(cut: too long for a tag)")
    assert incumbent(name, ALIAS) is None
    with pytest.raises(TrackingError, match="the decision is not on"):
        record(name, "99", {"decision": "refused"})


def test_a_registry_that_is_gone_is_told_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    try:
        with pytest.raises(TrackingError, match="Connection refused"):
            incumbent("anything", ALIAS)
        with pytest.raises(TrackingError, match="repeat the command"):
            pass_gate("anything", 1, expected=None)
    finally:
        mlflow.set_tracking_uri(before)


# Several at once, as processes of their own


Result = tuple[int, str | None, str]  # a version, what it was judged against, how it was refused
_meetings: dict[int, Barrier] = {}  # in each of the processes, by how many people meet


@pytest.fixture(scope="module")
def crew() -> Iterator[ProcessPoolExecutor]:
    """Eight people, who stay: each imports MLflow once."""
    meetings = {people: SPAWN.Barrier(people) for people in (2, 4, 8)}
    with ProcessPoolExecutor(8, SPAWN, _may_meet, (meetings,)) as pool:
        yield pool


def _may_meet(meetings: dict[int, Barrier]) -> None:
    _meetings.update(meetings)


def race(uri: str, name: str, versions: list[int], people: int) -> list[Result]:
    """Promote each version against what is champion when all are ready."""
    mlflow.set_tracking_uri(uri)
    results = []
    for version in versions:
        _meetings[people].wait(PATIENCE)
        expected = incumbent(name, ALIAS)
        _meetings[people].wait(PATIENCE)
        results.append((version, expected, promoted(name, version, expected)))
    return results


def crowd(uri: str, name: str, versions: list[int], people: int) -> list[Result]:
    """Promote each version against what is champion just then."""
    mlflow.set_tracking_uri(uri)
    _meetings[people].wait(PATIENCE)
    results = []
    for version in versions:
        expected = incumbent(name, ALIAS)
        results.append((version, expected, promoted(name, version, expected)))
    return results


def promoted(name: str, version: int, expected: str | None) -> str:
    try:
        promote(name, str(version), ALIAS, expected, {"decision": f"promoted {version}"})
    except TrackingError as error:
        return str(error)
    return ""


def run_all(
    crew: ProcessPoolExecutor, work: Any, uri: str, name: str, people: int, rounds: int
) -> list[Result]:
    """Of each person's versions. Who waits for the others keeps a process for himself."""
    own = [[1 + person + people * number for number in range(rounds)] for person in range(people)]
    running = [crew.submit(work, uri, name, versions, people) for versions in own]
    return [result for one in running for result in one.result(PATIENCE)]


@pytest.mark.parametrize("people", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_of_several_who_promote_at_once_against_one_champion_one_succeeds(
    uri: str, name: str, people: int, crew: ProcessPoolExecutor
) -> None:
    rounds = 3
    make_versions(name, people * rounds)
    results = run_all(crew, race, uri, name, people, rounds)
    champion: str | None = None
    for number in range(rounds):
        of_round = [result for result in results if (result[0] - 1) // people == number]
        assert {expected for _, expected, _ in of_round} == {champion}
        winners = [version for version, _, refusal in of_round if not refusal]
        assert len(winners) == 1
        champion = uri_of(name, winners[0])
        for _, _, refusal in of_round:
            assert not refusal or f"to {champion} while" in refusal
    assert incumbent(name, ALIAS) == champion
    decided = {version for version, _, refusal in results if not refusal}
    assert {v for v in range(1, people * rounds + 1) if "decision" in tags_of(name, v)} == decided


def test_promotions_in_a_crowd_make_one_chain_that_ends_at_the_alias(
    uri: str, name: str, crew: ProcessPoolExecutor
) -> None:
    make_versions(name, 12)
    results = run_all(crew, crowd, uri, name, people=4, rounds=3)
    after = [(expected, uri_of(name, version)) for version, expected, told in results if not told]
    assert after
    steps = dict(after)
    assert len(steps) == len(after), "two were promoted against the same champion"
    champion = steps.pop(None)
    while champion in steps:
        champion = steps.pop(champion)
    assert not steps
    assert incumbent(name, ALIAS) == champion


@dataclass
class Paused:
    """A promoter that stands still just before a request."""

    process: SpawnProcess
    go_on: Any
    outcome: Connection

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(PATIENCE)

    def resume(self) -> str:
        """What it was told; empty: it promoted."""
        self.go_on.set()
        assert self.outcome.poll(PATIENCE)
        told: str = self.outcome.recv()
        self.process.join(PATIENCE)
        return told


def promote_with_a_pause(
    uri: str, name: str, version: int, expected: str | None, before: str, here: Any, go_on: Any,
    outcome: Connection,
) -> None:  # runs in a process of its own  # fmt: skip
    mlflow.set_tracking_uri(uri)
    request = getattr(MlflowClient, before)

    def paused(*arguments: Any, **named: Any) -> Any:
        here.set()
        go_on.wait()
        return request(*arguments, **named)

    setattr(MlflowClient, before, paused)
    outcome.send(promoted(name, version, expected))


@contextmanager
def paused(
    uri: str, name: str, version: int, expected: int | None, before: str
) -> Iterator[Paused]:
    here, go_on = SPAWN.Event(), SPAWN.Event()
    receive, send = SPAWN.Pipe(duplex=False)
    champion = uri_of(name, expected) if expected is not None else None
    process = SPAWN.Process(
        target=promote_with_a_pause,
        args=(uri, name, version, champion, before, here, go_on, send),
    )
    process.start()
    try:
        assert here.wait(PATIENCE)
        yield Paused(process, go_on, receive)
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def test_who_is_killed_before_the_ticket_has_changed_nothing(uri: str, name: str) -> None:
    make_versions(name, 3)
    pass_gate(name, 1, expected=None)
    with paused(uri, name, 2, 1, before="create_model_version") as promoter:
        promoter.kill()
    pass_gate(name, 3, expected=1)
    assert incumbent(name, ALIAS) == uri_of(name, 3)
    assert "decision" not in tags_of(name, 2)


@pytest.mark.parametrize("before", ["set_model_version_tag", "set_registered_model_alias"])
def test_who_is_killed_with_the_ticket_in_hand_blocks_nobody_and_the_promotion_stands(
    uri: str, name: str, before: str
) -> None:
    make_versions(name, 3)
    pass_gate(name, 1, expected=None)
    with paused(uri, name, 2, 1, before) as promoter:
        promoter.kill()
    assert incumbent(name, ALIAS) == uri_of(name, 1)
    with pytest.raises(TrackingError, match=r"from \S+/1 to \S+/2 "):
        pass_gate(name, 3, expected=1)
    assert incumbent(name, ALIAS) == uri_of(name, 2)
    assert tags_of(name, 2)["decision"] == "promoted 2"
    pass_gate(name, 3, expected=2)
    assert incumbent(name, ALIAS) == uri_of(name, 3)


def test_a_killed_promotion_of_a_version_that_is_deleted_since_is_void(uri: str, name: str) -> None:
    make_versions(name, 3)
    pass_gate(name, 1, expected=None)
    with paused(uri, name, 2, 1, before="set_registered_model_alias") as promoter:
        promoter.kill()
    MlflowClient().delete_model_version(name, "2")
    pass_gate(name, 3, expected=1)
    assert incumbent(name, ALIAS) == uri_of(name, 3)


def test_who_was_paused_and_overtaken_does_not_take_the_alias_back(uri: str, name: str) -> None:
    make_versions(name, 4)
    pass_gate(name, 1, expected=None)
    with paused(uri, name, 2, 1, before="set_registered_model_alias") as late:
        with pytest.raises(TrackingError, match=r"to \S+/2 "):
            pass_gate(name, 3, expected=1)
        pass_gate(name, 3, expected=2)
        pass_gate(name, 4, expected=3)
        assert late.resume() == ""  # it was champion for a while
    assert incumbent(name, ALIAS) == uri_of(name, 4)


def test_who_was_paused_before_the_ticket_and_overtaken_is_refused(uri: str, name: str) -> None:
    make_versions(name, 3)
    pass_gate(name, 1, expected=None)
    with paused(uri, name, 2, 1, before="create_model_version") as late:
        pass_gate(name, 3, expected=1)
        assert f"to {uri_of(name, 3)} while" in late.resume()
    assert incumbent(name, ALIAS) == uri_of(name, 3)
    assert "decision" not in tags_of(name, 2)


def test_who_moves_another_alias_waits_for_nobody(uri: str, name: str) -> None:
    make_versions(name, 3)
    pass_gate(name, 1, expected=None)
    with paused(uri, name, 2, 1, before="set_registered_model_alias") as slow:
        pass_gate(name, 3, expected=None, alias="champion-cuda")
        assert incumbent(name, "champion-cuda") == uri_of(name, 3)
        assert incumbent(name, ALIAS) == uri_of(name, 1)
        assert slow.resume() == ""
    assert incumbent(name, ALIAS) == uri_of(name, 2)


# The order of tickets


def ticket(number: int, follows: int) -> Ticket:
    return Ticket(number, follows, ALIAS, str(number), None, False, {})


@st.composite
def histories(draw: st.DrawFn) -> list[Ticket]:
    """Tickets as they can be taken: each follows one that was the last winner at some time."""
    taken: list[Ticket] = []
    winners = [0]
    for number in range(1, draw(st.integers(0, 12)) + 1):
        taken.append(ticket(number, draw(st.sampled_from(winners))))
        last = last_winner(taken)
        if last is not None and last.number not in winners:
            winners.append(last.number)
    return taken


@given(histories(), st.integers(0, 12), st.randoms())
def test_later_tickets_never_change_who_has_won(
    history: list[Ticket], seen: int, order: Any
) -> None:
    chain = {0}
    last = last_winner(history)
    while last is not None:
        chain.add(last.number)
        last = {one.number: one for one in history}.get(last.follows)
    before = last_winner(history[:seen])
    assert before is None or before.number in chain
    shuffled = order.sample(history, len(history))
    assert last_winner(shuffled) == last_winner(history)


@given(histories())
def test_each_finds_beside_his_own_ticket_the_winner_that_all_find(history: list[Ticket]) -> None:
    numbers = {0}
    for one in history:
        last = last_winner(one_ for one_ in history if one_.number <= one.number)
        assert last is not None
        numbers.add(last.number)
    for one in history:
        assert winner_beside(history[: one.number], one.number).number in numbers
        assert winner_beside(history, one.number) == winner_beside(
            history[: one.number], one.number
        )


def test_a_registry_that_does_not_show_ones_own_ticket_is_told() -> None:
    with pytest.raises(TrackingError, match="read replica"):
        winner_beside([ticket(1, 0)], 2)
