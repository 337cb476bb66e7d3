"""engine=ray on a real cluster of two nodes: two raylets of this machine.

Needs requirements-ray.txt; without it, only what is said then is tested.
"""

import importlib.util
import secrets
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from tenacity import Retrying, stop_after_delay, wait_fixed

from slmflow.answering.ask import AskError
from slmflow.config.prediction import Engine, EngineName
from slmflow.errors import ConfigError
from slmflow.prediction.engines import find_engine, ray
from slmflow.prediction.engines.remote import on_cores
from slmflow.prediction.errors import PredictionError
from slmflow.prediction.model import ModelSpec
from slmflow.prediction.part import PartDone
from tests.conftest import Packaged
from tests.parts import (
    ROWS,
    answered_here,
    gone,
    held,
    missing_model,
    model_spec,
    outputs,
    stage_parts,
    started_here,
)

MISSING = importlib.util.find_spec("ray") is None
needs_ray = pytest.mark.skipif(
    MISSING, reason="Ray is not installed: pip install -r requirements-ray.txt"
)
PARTS = 10
PATIENCE = 60  # seconds; a guard against hanging, no promise of speed


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Two nodes of one CPU: each has room for one actor, and the third one waits."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            nodes.add_node(num_cpus=1)
            yield Engine(EngineName.ray, workers=3, address=nodes.address)
        finally:
            nodes.shutdown()


@dataclass
class Ran:
    done: list[PartDone]
    here: list[pa.Table]  # engine=local on the same parts
    there: list[pa.Table]
    nodes: set[int]  # that an actor was on
    killed: set[int]  # actors
    others: set[int]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, packaged: Packaged, cluster: Engine) -> Ran:
    """Both actors are killed when the first part is done."""
    folder = tmp_path_factory.mktemp("ray")
    spec = model_spec(packaged)
    answered_here(stage_parts(folder / "here", PARTS), spec)
    jobs = stage_parts(folder / "there", PARTS)
    done: list[PartDone] = []
    nodes: set[int] = set()
    killed: set[int] = set()
    others: set[int] = set()
    with closing(ray.run(jobs, spec, cluster)) as parts:
        for part in parts:
            done.append(part)
            others |= {actor.pid for _, actor in held(by="ray::Answerer")} - killed
            if not killed:
                actors = _two_actors()
                nodes = {node.pid for actor in actors for node in actor.parents()[:1]}
                killed = {actor.pid for actor in actors}
                others.clear()
                for actor in actors:
                    actor.kill()
    assert gone(model for model, _ in held(by="raylet"))
    here = outputs(stage_parts(folder / "here", PARTS))
    return Ran(done, here, outputs(jobs), nodes, killed, others)


@needs_ray
def test_answers_are_those_of_the_local_engine_in_every_column(ran: Ran) -> None:
    assert ran.there == ran.here
    first = ran.there[0]
    assert first["answer"].null_count == first["error"].to_pylist().count("it has no prompt") == 2


@needs_ray
def test_actors_that_die_are_replaced_and_their_parts_are_answered_once(ran: Ran) -> None:
    assert len(ran.killed) == 2 and ran.others
    assert sorted(part.number for part in ran.done) == list(range(PARTS))
    assert {part.rows for part in ran.done} == {ROWS}


@needs_ray
def test_actors_are_where_the_cluster_has_room_and_the_cluster_stays(ran: Ran) -> None:
    assert len(ran.nodes) == 2
    assert all(psutil.pid_exists(node) for node in ran.nodes)


@needs_ray
def test_a_model_that_does_not_load_ends_the_job_with_its_message(
    tmp_path: Path, packaged: Packaged, cluster: Engine
) -> None:
    with pytest.raises(AskError, match="99"):
        list(ray.run(stage_parts(tmp_path, 3), missing_model(packaged), cluster))
    assert gone(model for model, _ in held(by="raylet"))


@needs_ray
def test_a_part_that_fails_wherever_it_is_begun_ends_the_job(
    tmp_path: Path, packaged: Packaged, cluster: Engine
) -> None:
    jobs = stage_parts(tmp_path / "job", 1)
    Path(jobs[0].done).parent.touch()  # where the folder of the part's record has to be
    with pytest.raises(PredictionError, match="part 0 failed 4 times"):
        list(ray.run(jobs, model_spec(packaged), cluster))


@needs_ray
def test_leaving_in_the_middle_ends_the_cluster_that_was_started(
    tmp_path: Path, packaged: Packaged, cluster: Engine
) -> None:
    before = set(started_here())
    told: list[int] = []
    own = Engine(EngineName.ray)
    parts = ray.run(stage_parts(tmp_path, 40), model_spec(packaged), own, told.append)
    first = next(parts)
    started = set(started_here()) - before
    assert held(by="raylet")
    parts.close()
    assert gone(started)
    assert told == [first.rows]


@pytest.mark.skipif(not MISSING, reason="Ray is installed")
def test_where_ray_is_missing_it_is_said_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install -r requirements-ray\.txt"):
        find_engine(Engine(EngineName.ray))


def test_a_model_takes_the_cores_of_its_worker_unless_it_was_told_how_many() -> None:
    assert on_cores(ModelSpec("m", model_config={"threads": "auto"}), 3).model_config == {
        "threads": 3
    }
    assert on_cores(ModelSpec("m", model_config={"threads": 2}), 3).model_config == {"threads": 2}
    assert on_cores(ModelSpec("m"), 3).model_config == {}


def _two_actors() -> list[psutil.Process]:
    """The one on the other node may take longer to come."""
    for attempt in Retrying(stop=stop_after_delay(PATIENCE), wait=wait_fixed(0.1)):
        with attempt:
            actors = [one for one in started_here() if one.name().startswith("ray::Answerer")]
            assert len(actors) == 2
    return actors
