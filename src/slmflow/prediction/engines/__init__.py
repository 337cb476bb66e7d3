"""Where the parts of a job are answered: a module each.

``check(settings)`` raises ``ConfigError`` where its packages are missing, before anything is done.
``run(jobs, spec, settings, answered)`` yields the parts as they are done, in any order, and tells
``answered`` of how many more rows are done; closing it ends all that it started.
"""

from collections.abc import Callable, Generator, Iterable
from importlib import import_module
from typing import Protocol, cast

from slmflow.config.prediction import Engine
from slmflow.prediction.model import ModelSpec
from slmflow.prediction.part import PartDone, PartJob


class EngineModule(Protocol):
    def check(self, settings: Engine) -> None: ...

    def run(
        self,
        jobs: Iterable[PartJob],
        spec: ModelSpec,
        settings: Engine,
        answered: Callable[[int], None],
    ) -> Generator[PartDone, None, None]: ...


def find_engine(settings: Engine) -> EngineModule:
    """The engine of that name. Raises ``ConfigError`` where it cannot be used here."""
    module = cast(EngineModule, import_module(f"{__name__}.{settings.name}"))
    module.check(settings)
    return module
