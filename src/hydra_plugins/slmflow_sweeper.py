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
from sys import modules
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from slmflow.config.sweep import Sweep
    from slmflow.sweeps.plan import Plan, Strategy
    from slmflow.sweeps.point import Task
    from slmflow.sweeps.space import Space

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

        sources = self._config.hydra.runtime.config_sources
        if any(source.provider == "command-line" for source in sources):
            raise ConfigError(
                "--config-dir does not reach the processes that run points, which may be on other "
                "machines; put the files into conf/"
            )
        hydra_free = without_hydra(self._config)
        if "sweep" not in hydra_free:
            raise ConfigError(
                f"{self._config.hydra.job.name} cannot be swept; "
                "give every key one value (a text with a comma: KEY=\"'a, b'\")"
            )
        resume = str(hydra_free.sweep.resume)
        if resume not in ("auto", "never"):
            _demand_no_others(arguments, resume)
            arguments = [
                *recorded_overrides(resume, str(self._config.hydra.job.name)),
                *(a for a in arguments if a.startswith("sweep.")),
            ]
            hydra_free = without_hydra(self._composed(arguments))
        settings: Sweep = typed(hydra_free.sweep)
        plan, strategy = self._plan(arguments, hydra_free, settings)
        os.environ["PYTHONPATH"] = _python_path()  # for the launcher's own processes
        try:
            run_sweep(plan, strategy, self._launch)
        finally:
            _stop_all()

    def _plan(
        self, arguments: Sequence[str], config: DictConfig, settings: "Sweep"
    ) -> tuple["Plan", "Strategy"]:
        from slmflow.config.sweep import Strategy as Kind
        from slmflow.sweeps.plan import Plan, common
        from slmflow.sweeps.strategy import Grid, Tpe

        overrides = self._parsed(arguments, settings)
        varying = [override for override in overrides if override.is_sweep_override()]
        self._fixed = [o.input_line for o in overrides if not o.is_sweep_override()]
        composed = self._check(varying)
        strategy: Strategy
        points: tuple[tuple[str, ...], ...] = ()
        if settings.strategy is Kind.tpe:
            strategy = Tpe({o.get_key_element(): _space_of(o) for o in varying}, settings)
        else:
            points = tuple(dict.fromkeys(product(*(_texts(override) for override in varying))))
            strategy = Grid(points)
        entry_point = str(self._config.hydra.job.name)
        plan = Plan(
            entry_point=entry_point,
            name=_name(entry_point, config, varying),
            launcher=_launcher_name(self._config),
            overrides=tuple(arguments),
            key=_key(entry_point, config, points or [o.input_line for o in varying]),
            points=points,
            settings=settings,
            config=_shared_config(composed, varying),
            choices=common([_choices(one) for one in composed]),
        )
        return plan, strategy

    def _parsed(self, arguments: Sequence[str], settings: "Sweep") -> list[Override]:
        parser = OverridesParser.create(config_loader=self._context.config_loader)
        typed: list[Override] = parser.parse_overrides(list(arguments))
        keys = {override.get_key_element() for override in typed}
        preset = [f"{key}={values}" for key, values in settings.over.items() if key not in keys]
        return [*typed, *parser.parse_overrides(preset)]

    def _check(self, varying: Sequence[Override]) -> list[DictConfig]:
        """A misspelt key or option is told before the first point runs: each value is composed
        alone. What all have in common, the points have."""
        from slmflow.errors import ConfigError
        from slmflow.redaction import redacted_override

        composed = [self._composed(self._fixed)]
        for override in varying:
            if (shown := redacted_override(override.input_line)) != override.input_line:
                raise ConfigError(
                    f"{shown} would have a secret tell the points of a sweep apart, and no secret "
                    "is recorded; sweep over something else, and give secrets as variables"
                )
            texts = _texts(override) if override.is_discrete_sweep() else ()
            composed += [self._composed([*self._fixed, text]) for text in texts]
        return composed

    def _composed(self, arguments: Sequence[str]) -> DictConfig:
        overrides = [*self._config.hydra.overrides.hydra, *arguments]
        name = self._config.hydra.job.config_name
        loader = self._context.config_loader
        return loader.load_configuration(name, overrides, run_mode=RunMode.MULTIRUN)

    def _launch(self, task: "Task") -> Mapping[int, str]:
        """One launch, of the task's points. Processes are kept for the next one; where it raises,
        every process that it started has ended."""
        carried = PointTask(task)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=carried, config=self._config
        )
        overrides = [[*self._fixed, *one.overrides] for one in task.points]
        try:
            returns: Sequence[JobReturn] = launcher.launch(overrides, initial_job_idx=0)
        except BaseException:
            _stop_all()
            raise
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


def _demand_no_others(arguments: Sequence[str], resume: str) -> None:
    from slmflow.errors import ConfigError

    # models=[] is what MLproject hands on where nobody chose any.
    others = [line for line in arguments if not line.startswith("sweep.") and line != "models=[]"]
    if others:
        raise ConfigError(
            f"sweep.resume={resume} goes on with what was typed then; leave out "
            f"{' '.join(others)}, or begin another sweep with sweep.resume=never"
        )


def _key(entry_point: str, config: DictConfig, points: Sequence[Any]) -> str:
    """Equal where the same points would run under the same config, presets and files included."""
    own = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    assert isinstance(own, dict)
    over = own.pop("sweep")["over"]  # the rest of it says how points run, not which
    text = json.dumps([entry_point, own, over, points], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:24]


def _shared_config(composed: Sequence[DictConfig], varying: Sequence[Override]) -> dict[str, Any]:
    """Without what varies, and what follows from that."""
    from slmflow.config.load import without_hydra
    from slmflow.sweeps.plan import common

    own = [without_hydra(config) for config in composed]
    values: list[Any] = [OmegaConf.to_container(o, resolve=True, enum_to_str=True) for o in own]
    shared = common(values)
    for override in varying:
        if not override.is_discrete_sweep():  # an interval: none of its values was composed
            _drop(shared, override.get_key_element())
    return shared


def _drop(values: dict[str, Any], key: str) -> None:
    first, _, rest = key.lstrip("+").partition(".")
    if not rest:
        values.pop(first, None)
    elif first in values:
        _drop(values[first], rest)


def _choices(config: DictConfig) -> dict[str, str]:
    from slmflow.cli import GROUPS

    chosen = config.hydra.runtime.choices
    return {group: chosen[group] for group in GROUPS if chosen.get(group) is not None}


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


def _stop_all() -> None:
    """What runs points in this process, and in joblib's workers, which are kept for minutes."""
    from slmflow.sweeps.point import stop_kept

    stop_kept()
    if (loky := modules.get("joblib.externals.loky.reusable_executor")) is None:
        return
    if (executor := loky._executor) is not None:
        _let_points_end()
        executor.shutdown(wait=True, kill_workers=True)


def _let_points_end() -> None:
    """joblib kills its workers with all below them: first the points may end their runs."""
    import psutil

    from slmflow.sweeps.point_process import PATIENCE

    points = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "slmflow.point_worker" in one.cmdline():
                one.terminate()
                points.append(one)
    psutil.wait_procs(points, PATIENCE)


def _python_path() -> str:
    from slmflow.sweeps.point_process import python_path

    return python_path()
