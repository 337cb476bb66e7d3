"""Parts on a Spark cluster: one process with the model for each executor, kept over its parts.

An executor of several cores runs as many Python workers, and each would load the model. This
Spark application is the job's own, so a task asks for all cores of its executor: there is one
worker then, and its model has the cores.
"""

import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import cache
from itertools import islice

from slmflow.config.prediction import Engine
from slmflow.prediction.engines.remote import (
    PATIENCE,
    check_installed,
    on_cores,
    outcome,
    result,
)
from slmflow.prediction.engines.spark_application import (
    CODE,
    Application,
    application,
    check_conf,
)
from slmflow.prediction.model import ModelSpec, RestartingModel
from slmflow.prediction.part import PartDone, PartJob

AHEAD = 2  # parts an executor, so that none waits for the next one to be handed out


def check(settings: Engine) -> None:
    """Raise ``ConfigError`` where this engine cannot work: before anything is loaded."""
    check_installed("spark", "pyspark", "PySpark")
    check_conf(settings)


def run(
    jobs: Iterable[PartJob],
    spec: ModelSpec,
    settings: Engine,
    answered: Callable[[int], None] = lambda count: None,
) -> Generator[PartDone, None, None]:
    """The parts as they are done, in no order. Closing it ends the Spark application.

    ``answered`` is told of a part's rows when it is done. A task that fails is repeated by Spark.
    Raises ``AskError`` where the model does not load or gives up, ``PredictionError`` where Spark
    gives up.
    """
    check(settings)
    with application(settings) as spark:
        at_once = AHEAD * spark.executors
        # Of the two contexts the second ends first: that frees the threads of the other.
        with ThreadPoolExecutor(at_once) as pool, closing(spark):
            task = _task(pickle.dumps(on_cores(spec, spark.cores)))
            rest = iter(jobs)
            begun: set[Future[PartDone]] = set()
            while True:
                for job in islice(rest, at_once - len(begun)):
                    begun.add(pool.submit(_answer, spark, task, job))
                if not begun:
                    return
                ended, begun = _wait(begun, spark)
                for future in ended:
                    done = future.result()
                    answered(done.rows)
                    yield done


def answer_one(job: bytes, spec: bytes) -> bytes:
    """In an executor's Python worker."""
    return pickle.dumps(outcome(pickle.loads(job), lambda: _kept_model(spec)))


@cache
def _kept_model(spec: bytes) -> RestartingModel:
    """As long as this Python worker lives, whose end is the end of the model's process."""
    return RestartingModel(pickle.loads(spec)).__enter__()


Task = Callable[[Iterable[bytes]], Iterator[bytes]]


def _task(spec: bytes) -> Task:
    name = CODE

    def task(jobs: Iterable[bytes]) -> Iterator[bytes]:
        # Spark sends this function by value, as slmflow is not installed on the nodes.
        import sys

        from pyspark import SparkFiles

        code = SparkFiles.get(name)
        if code not in sys.path:
            sys.path.insert(0, code)
        from slmflow.prediction.engines.spark import answer_one

        for job in jobs:
            yield answer_one(job, spec)

    return task


def _answer(spark: Application, task: Task, job: PartJob) -> PartDone:
    """By a Spark job of its own, so that its record comes when it is done, not when all are."""
    return result(pickle.loads(spark.run(task, pickle.dumps(job))))


def _wait(
    begun: set[Future[PartDone]], spark: Application
) -> tuple[set[Future[PartDone]], set[Future[PartDone]]]:
    """The parts that ended, one at least, and the others. Tells the person if nobody works."""
    ended, others = wait(begun, PATIENCE, FIRST_COMPLETED)
    if not ended:
        spark.tell_if_nobody_works()
        ended, others = wait(begun, return_when=FIRST_COMPLETED)
    return ended, others
