"""Settings of batch prediction: how rows are divided, and where they are answered."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from slmflow.secret_names import names_secret


class EngineName(StrEnum):
    local = "local"  # processes of this machine
    spark = "spark"  # executors of a Spark cluster
    ray = "ray"  # actors of a Ray cluster


OF_ONE_ENGINE = {
    "master": EngineName.spark,
    "conf": EngineName.spark,
    "address": EngineName.ray,
    "gpus": EngineName.ray,
}


@dataclass
class Engine:
    """Of the group ``engine``: where the parts are answered. Each worker holds the model once."""

    name: EngineName = EngineName.local
    workers: int = 1
    cpus: int = 1  # spark, ray: cores of each worker, all of which its model has
    gpus: int = 0  # ray: of each worker; spark has settings of its own for it
    master: str | None = None  # spark: URL of the cluster; null: as spark-submit or Spark's own set
    conf: Any = None  # spark: more settings, {name: value}; Any, as others could not be given names
    address: str | None = None  # ray: of the cluster; null: one is started here, and ended

    def __post_init__(self) -> None:
        """Raise ``ValueError`` naming the key, its value and what is allowed."""
        for name in ("workers", "cpus"):
            _at_least(f"engine.{name}", getattr(self, name), 1)
        _at_least("engine.gpus", self.gpus, 0)
        if self.conf is not None and not isinstance(self.conf, dict):
            raise ValueError(
                f"engine.conf is {self.conf}; allowed: Spark's settings, "
                "as in engine.conf={spark.executor.memoryOverhead: 8g}"
            )
        secret = next((name for name in self.conf or {} if names_secret(str(name))), None)
        if secret is not None:
            raise ValueError(
                f"engine.conf has {secret}, which would be logged with the run; put it into "
                "spark-defaults.conf of this machine's Spark (SPARK_CONF_DIR)"
            )
        if self.gpus and self.name is EngineName.spark:
            raise ValueError(
                f"engine.gpus={self.gpus} says nothing to engine=spark; type "
                f"engine.conf={{spark.executor.resource.gpu.amount: {self.gpus}, "
                f"spark.task.resource.gpu.amount: {self.gpus}}}"
            )
        for name, engine in OF_ONE_ENGINE.items():
            if getattr(self, name) and self.name is not engine:
                given = "" if name == "conf" else f"={getattr(self, name)}"
                raise ValueError(
                    f"engine.{name}{given} says nothing to engine={self.name}; "
                    f"type engine={engine}, or leave engine.{name} out"
                )


@dataclass
class Predict:
    part_rows: int = 512  # answered at once, written as one file; a killed job repeats that many
    overwrite: bool = False  # forget the job whose output is there, but an unfinished one like this

    def __post_init__(self) -> None:
        _at_least("predict.part_rows", self.part_rows, 1)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; allowed: {least} or more")
