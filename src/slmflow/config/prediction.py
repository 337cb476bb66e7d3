"""Settings of batch prediction: how rows are divided, and where they are answered."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class EngineName(StrEnum):
    local = "local"  # processes of this machine
    spark = "spark"  # executors of a Spark cluster
    ray = "ray"  # actors of a Ray cluster


@dataclass
class Engine:
    """Of the group ``engine``: where the parts are answered. Each worker holds the model once."""

    name: EngineName = EngineName.local
    workers: int = 1
    cpus: int = 1  # spark, ray: cores of each worker, all of which its model has
    gpus: int = 0  # ray: of each worker
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
        for name, engine in (("master", EngineName.spark), ("address", EngineName.ray)):
            value = getattr(self, name)
            if value is not None and self.name is not engine:
                raise ValueError(
                    f"engine.{name}={value} says nothing to engine={self.name}; "
                    f"type engine={engine}, or leave engine.{name} out"
                )


@dataclass
class Predict:
    part_rows: int = 512  # answered at once, written as one file; a killed job repeats that many
    overwrite: bool = False  # an output that holds another job: forget that one

    def __post_init__(self) -> None:
        _at_least("predict.part_rows", self.part_rows, 1)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; allowed: {least} or more")
