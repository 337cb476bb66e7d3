"""Hydra's sweeper interface: expands what was typed and hands it to ``slmflow.sweeps``.

Points run through whatever launcher is configured, Hydra's own ones as well as others.
Nothing heavy is imported above: Hydra imports every plug-in at every start.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import product
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from slmflow.config.sweep import Sweep
    from slmflow.sweeps.plan import Plan, Strategy
    from slmflow.sweeps.point import Task
    from slmflow.sweeps.space import Space

NOT_OF_THE_KEY = (
    *("sweep.resume", "sweep.timeout", "sweep.trials", "sweep.batch", "sweep.objectives"),
    "sweep.prune",
)
"""What may be typed otherwise when a sweep is gone on with."""

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="slmflow",
    node={"_target_": "hydra_plugins.slmflow_sweeper.SlmflowSweeper"},
    provider="slmflow",
)


class SlmflowSweeper(Sweeper):  # type: ignore[misc]
    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._context = hydra_context
        self._config = config

    def sweep(self, arguments: list[str]) -> None:
        from slmflow.config.load import typed, without_hydra
        from slmflow.errors import ConfigError
        from slmflow.sweeps.drive import recorded_overrides, run_sweep

        hydra_free = without_hydra(self._config)
        if "sweep" not in hydra_free:
            raise ConfigError(
                f"{self._config.hydra.job.name} cannot be swept; "
                "give every key one value (a text with a comma: KEY=\"'a, b'\")"
            )
        resume = str(hydra_free.sweep.resume)
        if resume not in ("auto", "never"):
            arguments = [
                *recorded_overrides(resume),
                *(a for a in arguments if a.startswith("sweep.")),
            ]
            hydra_free = without_hydra(self._composed(arguments))
        settings: Sweep = typed(hydra_free.sweep)
        plan, strategy = self._plan(arguments, hydra_free, settings)
        os.environ["PYTHONPATH"] = _python_path()  # for the launcher's own processes
        self._arguments = arguments
        run_sweep(plan, strategy, self._launch)

    def _plan(
        self, arguments: Sequence[str], config: DictConfig, settings: "Sweep"
    ) -> tuple["Plan", "Strategy"]:
        from slmflow.config.sweep import Strategy as Kind
        from slmflow.sweeps.plan import Plan
        from slmflow.sweeps.strategy import Grid, Tpe

        overrides = self._parsed(arguments, settings)
        varying = [override for override in overrides if override.is_sweep_override()]
        self._fixed = [o.input_line for o in overrides if not o.is_sweep_override()]
        self._check(varying)
        strategy: Strategy
        points: tuple[tuple[str, ...], ...] = ()
        if settings.strategy is Kind.tpe:
            strategy = Tpe({o.get_key_element(): _space_of(o) for o in varying}, settings)
        else:
            points = tuple(dict.fromkeys(product(*(_texts(override) for override in varying))))
            strategy = Grid(points)
        entry_point = str(self._config.hydra.job.name)
        told = sorted(line for line in arguments if not line.startswith(NOT_OF_THE_KEY))
        plan = Plan(
            entry_point=entry_point,
            name=_name(entry_point, config, varying),
            launcher=_launcher_name(self._config),
            overrides=tuple(arguments),
            key=sha256(json.dumps([entry_point, told, points]).encode()).hexdigest()[:24],
            points=points,
            settings=settings,
        )
        return plan, strategy

    def _parsed(self, arguments: Sequence[str], settings: "Sweep") -> list[Override]:
        parser = OverridesParser.create(config_loader=self._context.config_loader)
        typed: list[Override] = parser.parse_overrides(list(arguments))
        keys = {override.get_key_element() for override in typed}
        preset = [f"{key}={values}" for key, values in settings.over.items() if key not in keys]
        return [*typed, *parser.parse_overrides(preset)]

    def _check(self, varying: Sequence[Override]) -> None:
        """A misspelt key or option is told before the first point runs: each value alone."""
        for override in varying:
            texts = _texts(override) if override.is_discrete_sweep() else ()
            for text in texts:
                self._composed([*self._fixed, text])

    def _composed(self, arguments: Sequence[str]) -> DictConfig:
        overrides = [*self._config.hydra.overrides.hydra, *arguments]
        name = self._config.hydra.job.config_name
        loader = self._context.config_loader
        return loader.load_configuration(name, overrides, run_mode=RunMode.MULTIRUN)

    def _launch(self, task: "Task") -> Mapping[int, str]:
        """One launch, of the task's points. Every process that it started has ended after it."""
        from slmflow.sweeps import point

        carried = PointTask(task)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=carried, config=self._config
        )
        overrides = [[*self._fixed, *one.overrides] for one in task.points]
        try:
            returns: Sequence[JobReturn] = launcher.launch(overrides, initial_job_idx=0)
        finally:
            point.stop_kept()
            _stop_loky()
        return {
            one.number: _first_line(returned)
            for one, returned in zip(task.points, returns, strict=True)
            if returned.status is not JobStatus.COMPLETED
        }


class PointTask:
    """What a launcher calls, in a process of its own or not, once a point."""

    def __init__(self, task: "Task") -> None:
        self._task = task

    def __call__(self, config: DictConfig) -> None:
        hydra = HydraConfig.get()
        overrides = [*hydra.overrides.hydra, *hydra.overrides.task]
        self._task.run(int(hydra.job.num), str(hydra.job.config_name), overrides)

    def submitted(self, jobs: Mapping[int, str]) -> None:
        """By a launcher that hands points to a scheduler: the job of each, by its place."""
        from slmflow.sweeps.ledger import Ledger

        ledger = Ledger(self._task.parent, self._task.tracking_uri)
        ledger.note_jobs({self._task.points[at].number: job for at, job in jobs.items()})


def _name(entry_point: str, config: DictConfig, varying: Sequence[Override]) -> str:
    if any(override.get_key_element().startswith("model") for override in varying):
        return entry_point  # of more than one model
    return f"{entry_point} {config.model.name}"


def _texts(override: Override) -> list[str]:
    """``KEY=VALUE`` for every value, as Hydra reads it back."""
    from slmflow.errors import ConfigError

    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line} has no single points; use range(...) or a list, or let Optuna "
            "choose: sweep.strategy=tpe"
        )
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _space_of(override: Override) -> "Space":
    from slmflow.errors import ConfigError

    try:
        return _space(override)
    except ValueError as error:
        raise ConfigError(f"{override.get_key_element()}: {error}") from None


def _space(override: Override) -> "Space":
    from slmflow.sweeps.space import Choices, Interval

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        whole = override.value().start, override.value().end
        integer = all(isinstance(end, int) for end in whole)
        return Interval(float(value.start), float(value.end), integer, "log" in value.tags)
    if isinstance(value, RangeSweep) and not value.shuffle and (numbers := list(value.range())):
        integer = all(isinstance(number, int) for number in numbers)
        step = float(value.step)
        if step > 0:
            return Interval(float(numbers[0]), float(numbers[-1]), integer, step=step)
    return Choices(tuple(text.partition("=")[2] for text in _texts(override)))


def _launcher_name(config: DictConfig) -> str:
    return str(config.hydra.runtime.choices.get("hydra/launcher", "basic"))


def _first_line(returned: JobReturn) -> str:
    with suppress(BaseException):
        returned.return_value  # noqa: B018  raises what the job raised
        return "ended without a result"
    error = returned._return_value
    return f"{type(error).__name__}: {error}" if not str(error) else str(error)


def _stop_loky() -> None:
    """joblib keeps its workers for minutes; a point that runs in one of them ends with it."""
    from sys import modules

    if "joblib.externals.loky.reusable_executor" in modules:
        from joblib.externals.loky import reusable_executor

        if (executor := reusable_executor._executor) is not None:
            executor.shutdown(wait=True, kill_workers=True)


def _python_path() -> str:
    from slmflow.sweeps.point_process import python_path

    return python_path()
