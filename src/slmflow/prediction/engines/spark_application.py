"""A Spark application of this job's own: its JVM, its executors, the code that they need."""

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slmflow
from slmflow.config.prediction import Engine
from slmflow.console import prose
from slmflow.errors import ConfigError
from slmflow.prediction.engines.remote import handlers_kept
from slmflow.prediction.errors import PredictionError
from slmflow.served.cores import available_cores

CODE = "slmflow.zip"
LAST_LINES = 15
PATIENCE = 30.0  # seconds that the JVM may take to end before it is killed
DECIDED = {
    "spark.master": "which follows from engine.master; set engine.master instead",
    "spark.executor.cores": "which follows from engine.cpus; set engine.cpus instead",
    "spark.task.cpus": "which follows from engine.cpus; set engine.cpus instead",
    "spark.executor.instances": "which follows from engine.workers; set engine.workers instead",
    "spark.cores.max": "which follows from engine.workers and engine.cpus; set those instead",
    "spark.speculation": "which stays off: a part that takes long would be answered twice; "
    "leave it out",
}
"""Settings of Spark that are made of keys of this project, or that a job cannot do without."""
ALLOCATION = "spark.dynamicAllocation."

ON_THIS_MACHINE = {
    # Nothing that other machines could reach.
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
}
LOCAL = re.compile(r"local(\[(?P<cores>\d+|\*)(,\d+)?\])?")
LOCAL_CLUSTER = re.compile(r"local-cluster\[\s*(?P<executors>\d+)\s*,\s*(?P<cores>\d+)\s*,.*\]")


@dataclass
class Application:
    """``cores`` of each executor, all of which its one task has."""

    context: Any  # pyspark.SparkContext
    log: Path  # what the JVM prints
    executors: int  # at most
    cores: int

    def run(self, task: Callable[[Iterable[bytes]], Iterator[bytes]], job: bytes) -> bytes:
        """The task's result for one job, from any executor. Raises ``PredictionError``."""
        from py4j.protocol import Py4JError

        try:
            (done,) = self.context.parallelize([job], 1).mapPartitions(task).collect()
        except Py4JError as error:
            told = "\n".join(["Spark gave up:", _reason(error), *_last_errors(self.log)])
            raise PredictionError(told) from None
        return bytes(done)

    def tell_if_nobody_works(self) -> None:
        registered: int = self.context._jsc.sc().getExecutorMemoryStatus().size()
        if registered > 1 or self.context.master.startswith("local["):  # the first is the driver
            return
        prose(
            f"No executor of {self.context.master} has come yet: {self.executors} were asked for, "
            f"of {self.cores} cores each (engine.workers, engine.cpus). They may wait for others' "
            f"work to end, or no node has so many cores. Spark's messages are in {self.log}"
        )

    def close(self) -> None:
        """Ends what the executors are at."""
        self.context.stop()


@contextmanager
def application(settings: Engine) -> Iterator[Application]:
    """Ended with its JVM when this is left. Raises ``ConfigError`` and ``PredictionError``."""
    with tempfile.TemporaryDirectory(prefix="slmflow-spark-") as folder:
        log = Path(folder, "spark.log")
        with _jvm(settings, log) as gateway:
            yield _started(settings, gateway, log, Path(folder, CODE))


def _started(settings: Engine, gateway: Any, log: Path, code: Path) -> Application:
    from py4j.protocol import Py4JError
    from pyspark import SparkConf, SparkContext

    master = SparkConf(_jvm=gateway.jvm).get("spark.master", "local[*]")
    executors, cores = layout(master, settings)
    decided = spark_conf(master, executors, cores, settings)
    conf = SparkConf(_jvm=gateway.jvm).setAll(decided.items())
    try:
        with handlers_kept():
            context = SparkContext(conf=conf, gateway=gateway)
    except Py4JError as error:
        told = [f"Spark did not start on {master}:", _reason(error), *_last_errors(log)]
        raise PredictionError("\n".join(told)) from None
    # Spark's own default is python3, whichever that is.
    python = more_settings(settings).get("spark.pyspark.python") or os.environ.get("PYSPARK_PYTHON")
    context.pythonExec = python or sys.executable
    _pack(code)
    context.addArchive(str(code))
    return Application(context, log, executors, cores)


def more_settings(settings: Engine) -> dict[str, str]:
    """``engine.conf`` as Spark takes it, whose true is no True."""
    told = dict(settings.conf or {})
    return {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in told.items()
    }


def check_conf(settings: Engine) -> None:
    """Raise ``ConfigError`` for a setting that would be written over."""
    for name, value in more_settings(settings).items():
        why = DECIDED.get(name)
        if name.startswith(ALLOCATION):
            why = "but the job has engine.workers executors; set engine.workers instead"
        if why is not None:
            raise ConfigError(f"engine.conf has {name}={value}, {why}")


def layout(master: str, settings: Engine) -> tuple[int, int]:
    """How many executors, and the cores of each. Masters on this machine say it themselves."""
    if found := LOCAL_CLUSTER.fullmatch(master):
        return int(found["executors"]), int(found["cores"])
    if found := LOCAL.fullmatch(master):
        return 1, available_cores() if found["cores"] == "*" else int(found["cores"] or 1)
    return settings.workers, settings.cpus


def spark_conf(master: str, executors: int, cores: int, settings: Engine) -> dict[str, str]:
    """What is set over all else: nothing that was typed, as ``check_conf`` says."""
    conf = {
        "spark.executor.cores": str(cores),
        "spark.task.cpus": str(cores),  # so that an executor has one task, and one model
        "spark.executor.instances": str(executors),
        f"{ALLOCATION}maxExecutors": str(executors),
        "spark.cores.max": str(executors * cores),
        "spark.speculation": "false",  # a part that takes long would be answered twice
    }
    if master.startswith("local"):
        typed = more_settings(settings)
        conf |= {name: value for name, value in ON_THIS_MACHINE.items() if name not in typed}
    if LOCAL.fullmatch(master):
        conf["spark.master"] = f"local[{cores}]"
    return conf


@contextmanager
def _jvm(settings: Engine, log: Path) -> Iterator[Any]:
    """Its messages go to the log: they would run into the progress bar."""
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkRuntimeError
    from pyspark.java_gateway import launch_gateway

    conf = SparkConf(loadDefaults=False).setAppName("slmflow predict")
    conf.setAll([("spark.ui.showConsoleProgress", "false"), *more_settings(settings).items()])
    if settings.master is not None:
        conf.setMaster(settings.master)
    with log.open("w") as output:
        try:
            gateway = launch_gateway(conf, {"stdout": output, "stderr": output})
        except PySparkRuntimeError:
            raise ConfigError(
                f"engine=spark needs Java 17 or newer, and Spark did not start: {_tail(log)}\n"
                "install a JDK, or set JAVA_HOME to one"
            ) from None
    try:
        yield gateway
    finally:
        if SparkContext._active_spark_context is not None:
            SparkContext._active_spark_context.stop()
        # Else the next application of this process would be handed a JVM that is gone.
        SparkContext._gateway = SparkContext._jvm = None
        _end(gateway)


def _end(gateway: Any) -> None:
    process: subprocess.Popen[bytes] | None = gateway.proc
    with suppress(Exception):  # py4j raises whatever a connection to a JVM that died can raise
        gateway.shutdown()
    if process is None:  # spark-submit's own
        return
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _pack(target: Path) -> None:
    """This package, which the nodes have not."""
    root = Path(slmflow.__file__).parent
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.py")):
            archive.write(path, path.relative_to(root.parent))


def _reason(error: Exception) -> str:
    """The first line of what the JVM says, and the last one of Python's traceback in it."""
    told = getattr(error, "java_exception", None)
    message = str(error) if told is None else str(told.getMessage() or told.toString())
    lines = [line for line in message.splitlines() if line.strip()]
    python = [line for line in lines if not line.startswith(("\tat ", "Driver stacktrace"))]
    return lines[0] if python[-1:] == lines[:1] else f"{lines[0]}\n{python[-1]}"


def _last_errors(log: Path) -> list[str]:
    """Two that Spark printed: why a master or its executors are gone is told there alone."""
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if " ERROR " in line][-2:]


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:])
