"""engine=spark on real executors: processes of this machine, as a cluster would start them.

Needs requirements-spark.txt and Java 17; without them, only what is said then is tested.
"""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from slmflow.answering.ask import AskError
from slmflow.config.prediction import Engine, EngineName
from slmflow.errors import ConfigError
from slmflow.prediction.engines import find_engine, spark
from slmflow.prediction.engines.spark_application import layout
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

MISSING = importlib.util.find_spec("pyspark") is None
needs_spark = pytest.mark.skipif(
    MISSING, reason="PySpark is not installed: pip install -r requirements-spark.txt"
)
PARTS = 10
HERE = Engine(EngineName.spark, master="local[2]")


@dataclass
class Ran:
    done: list[PartDone]
    here: list[pa.Table]  # engine=local on the same parts
    there: list[pa.Table]
    models: dict[int, set[int]]  # each executor's models
    killed: int  # an executor


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, packaged: Packaged) -> Iterator[Ran]:
    """Two executors of two cores, one of which is killed when the first part is done."""
    folder = tmp_path_factory.mktemp("spark")
    spec = model_spec(packaged)
    answered_here(stage_parts(folder / "here", PARTS), spec)
    jobs = stage_parts(folder / "there", PARTS)
    settings = Engine(EngineName.spark, master="local-cluster[2,2,1024]")
    done: list[PartDone] = []
    models: dict[int, set[int]] = {}
    killed = 0
    with closing(spark.run(jobs, spec, settings)) as parts:
        for part in parts:
            done.append(part)
            found = held(by="java")
            for model, executor in found:
                models.setdefault(executor.pid, set()).add(model.pid)
            if not killed:
                killed = found[0][1].pid
                found[0][1].kill()
    there = outputs(jobs)
    yield Ran(done, outputs(stage_parts(folder / "here", PARTS)), there, models, killed)
    _remove_what_executors_left()


@needs_spark
def test_answers_are_those_of_the_local_engine_in_every_column(ran: Ran) -> None:
    assert ran.there == ran.here
    first = ran.there[0]
    assert first["answer"].null_count == first["error"].to_pylist().count("it has no prompt") == 2


@needs_spark
def test_parts_of_an_executor_that_was_killed_are_answered_once(ran: Ran) -> None:
    assert sorted(part.number for part in ran.done) == list(range(PARTS))
    assert {part.rows for part in ran.done} == {ROWS}


@needs_spark
def test_an_executor_of_several_cores_holds_one_model(ran: Ran) -> None:
    assert ran.killed in ran.models and len(ran.models) >= 2
    assert {len(pids) for pids in ran.models.values()} == {1}


@needs_spark
def test_leaving_in_the_middle_leaves_nothing_running(tmp_path: Path, packaged: Packaged) -> None:
    told: list[int] = []
    parts = spark.run(stage_parts(tmp_path, 40), model_spec(packaged), HERE, told.append)
    first = next(parts)
    started = started_here()
    assert held(by="java")
    parts.close()
    assert gone(started)
    assert told == [first.rows]


@needs_spark
def test_a_model_that_does_not_load_ends_the_job_with_its_message(
    tmp_path: Path, packaged: Packaged
) -> None:
    with pytest.raises(AskError, match="99"):
        list(spark.run(stage_parts(tmp_path, 3), missing_model(packaged), HERE))
    assert not started_here()


@needs_spark
def test_settings_that_follow_from_keys_of_this_project_are_refused_in_conf() -> None:
    settings = Engine(EngineName.spark, conf={"spark.task.cpus": "1"})
    with pytest.raises(ConfigError, match=r"spark\.task\.cpus=1.*engine\.cpus"):
        find_engine(settings)


@pytest.mark.skipif(not MISSING, reason="PySpark is installed")
def test_where_pyspark_is_missing_it_is_said_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install -r requirements-spark\.txt"):
        find_engine(HERE)


@pytest.mark.parametrize(
    ("master", "executors", "cores"),
    [
        ("local", 1, 1),
        ("local[3]", 1, 3),
        ("local[3,2]", 1, 3),
        ("local-cluster[2, 4, 1024]", 2, 4),
        ("spark://host:7077", 5, 6),
        ("yarn", 5, 6),
    ],
)
def test_masters_on_one_machine_say_how_many_executors_and_cores_there_are(
    master: str, executors: int, cores: int
) -> None:
    settings = Engine(EngineName.spark, workers=5, cpus=6)
    assert layout(master, settings) == (executors, cores)


def _remove_what_executors_left() -> None:
    import pyspark

    shutil.rmtree(Path(pyspark.__file__).parent / "work", ignore_errors=True)
