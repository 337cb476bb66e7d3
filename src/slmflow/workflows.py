"""READ FIRST. The story of each entry point, told as steps."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow

from slmflow import console, lock_file
from slmflow.answering.model_files import fixed
from slmflow.config.doctor import DoctorConfig, Kind
from slmflow.config.export import ExportConfig
from slmflow.config.lock import LockConfig, configured_models
from slmflow.config.rerun import RerunConfig, rebuilt
from slmflow.config.schema import (
    CustomOnnxConfig,
    EvaluateConfig,
    MainConfig,
    MaterialiseConfig,
    PredictConfig,
    ServeConfig,
    TransformersPipelineConfig,
    Versions,
)
from slmflow.config.unused import UNUSED
from slmflow.doctor.precheck import precheck, precheck_places
from slmflow.errors import ConfigError
from slmflow.next_commands import show_next
from slmflow.packaging.package import package_onnx, package_transformers
from slmflow.packaging.probe import Prompts
from slmflow.packaging.target import require
from slmflow.replay.pins import Order
from slmflow.served.weights import MANIFEST
from slmflow.tracking.loggable import check_loggable
from slmflow.tracking.names import LOCKED
from slmflow.tracking.project_source import demand_lasting
from slmflow.tracking.registry import RUNTIMES, Registered, current
from slmflow.tracking.resolved import log_models
from slmflow.tracking.run import log_config, log_outcome, open_child, open_run
from slmflow.weights.materialise import materialise as materialise_model


@dataclass(frozen=True)
class Invocation:
    """What was typed, composed: the checked config, the same as plain values, group choices.

    ``aliases``: a version that is registered takes the alias of its kind. Not a point's, as a
    sweep points the aliases at its best one in the end, nor a rerun's: ``again`` is its order.
    """

    config: Any
    values: Mapping[str, Any]
    choices: Mapping[str, str]
    aliases: bool = True
    overrides: tuple[str, ...] = ()  # KEY=VALUE, as typed
    again: Order | None = None

    @property
    def builds(self) -> Path | None:
        """Where ONNX models are built anew; None: in the cache, once."""
        return None if self.again is None or self.again.builds is None else Path(self.again.builds)

    @property
    def prompts(self) -> Prompts | None:
        """By which a packaged model is known again; None: those of today."""
        if self.again is None or self.again.probe is None:
            return None
        return Prompts.recorded(self.again.probe)


def transformers_pipeline(invocation: Invocation) -> None:
    config: TransformersPipelineConfig = invocation.config
    require(config.hardware, "transformers_pipeline")
    precheck(config, Kind.transformers_pipeline)
    with open_run(f"transformers_pipeline {config.model.name}") as run:
        name = "transformers_pipeline"
        _log(invocation, name)
        registered = package_transformers(config, invocation.aliases, invocation.prompts)
        log_outcome([registered.uri], {})
    if invocation.aliases:
        show_next([registered], run.info.run_id)


def custom_onnx(invocation: Invocation) -> None:
    config: CustomOnnxConfig = invocation.config
    require(config.hardware, "custom_onnx")
    precheck(config, Kind.custom_onnx)
    with open_run(f"custom_onnx {config.model.name}") as run:
        name = "custom_onnx"
        _log(invocation, name)
        registered = package_onnx(config, invocation.aliases, invocation.prompts, invocation.builds)
        log_outcome([registered.uri], {})
    if invocation.aliases:
        show_next([registered], run.info.run_id)


def evaluate(invocation: Invocation) -> None:
    from slmflow.evaluation import start  # late: packaging needs nothing of it

    config: EvaluateConfig = invocation.config
    start.check_addresses(config.models)
    precheck(config)
    with open_run(f"evaluate {config.model.name}"):
        _log(invocation, "evaluate")
        dataset = start.open_data(config.data)
        uris = [fixed(uri) for uri in models_to_compare(config)]
        log_models({"models": uris}, uris)
        console.heading(f"evaluate: {len(dataset)} questions of {dataset.name}")
        incumbent = _incumbent(invocation.again, start.BY_ALIAS)
        evaluation = start.compare(uris, dataset, config, _overrides(config), incumbent)
        log_outcome([], start.figures(evaluation))
    start.show(evaluation)
    start.demand_one_that_passed(evaluation)


def main(invocation: Invocation) -> None:
    """Package both ways, then compare the two: three child runs of one parent."""
    from slmflow.evaluation import start

    config: MainConfig = invocation.config
    require(config.hardware, "transformers_pipeline")
    require(config.hardware, "custom_onnx")
    precheck(config, *Kind)
    dataset = start.open_data(config.data)
    with open_run(f"main {config.model.name}") as run:
        _log(invocation, "main")
        registered = []
        for name, package in (
            ("transformers_pipeline", package_transformers),
            ("custom_onnx", partial(package_onnx, builds=invocation.builds)),
        ):
            with open_child(f"{name} {config.model.name}"):
                _log(invocation, name)
                registered.append(package(config, invocation.aliases, invocation.prompts))
        with open_child(f"evaluate {config.model.name}"):
            _log(invocation, "evaluate")
            console.heading(f"evaluate: {len(dataset)} questions of {dataset.name}")
            uris = [one.uri for one in registered]
            log_models({"models": uris}, uris)
            incumbent = _incumbent(invocation.again, start.BY_ALIAS)
            evaluation = start.compare(uris, dataset, config, {}, incumbent)
        log_outcome(uris, start.figures(evaluation))
    start.show(evaluation)
    if invocation.aliases:
        show_next(registered, run.info.run_id)
    start.demand_one_that_passed(evaluation)


def serve(invocation: Invocation) -> None:
    """Put one model behind OpenAI's API until Ctrl-C."""
    from slmflow.serving.start import start  # FastAPI is for this entry point alone

    config: ServeConfig = invocation.config
    check_loggable("model_uri", config.model_uri)
    precheck(config)
    uri = fixed(config.model_uri or current_of(config)[-1].uri)
    with open_run(f"serve {uri.removeprefix('models:/')}"):
        _log(invocation, "serve")
        log_models({"model_uri": uri}, [uri])
        start(uri, config)


def predict(invocation: Invocation) -> None:
    """Answer a file or a folder of rows, part by part."""
    from slmflow.prediction import start  # late: no other entry point needs it

    config: PredictConfig = invocation.config
    check_loggable("input", config.input)
    check_loggable("output", config.output)
    check_loggable("model_uri", config.model_uri)
    demand_lasting("output", config.output)
    if invocation.again is not None:
        start.demand_no_job(config.output)
    precheck(config)
    uri = fixed(config.model_uri or current_of(config)[-1].uri)
    with open_run(f"predict {uri.removeprefix('models:/')}"):
        _log(invocation, "predict")
        log_models({"model_uri": uri}, [uri])
        start.predict(
            start.Asked(
                model_uri=uri,
                input=config.input,
                output=config.output,
                engine=config.engine,
                predict=config.predict,
                parameters={} if config.search is None else asdict(config.search),
                threads=config.hardware.threads,
            )
        )


def doctor(invocation: Invocation) -> None:
    """Look at everything, leave nothing. ``cli`` goes there without importing this module."""
    from slmflow.doctor.start import start

    config: DoctorConfig = invocation.config
    start(config)


def lock(invocation: Invocation) -> None:
    """Pin the configured models to the commits that they resolve to now."""
    from slmflow.lock_models import as_recorded, lock_models

    config: LockConfig = invocation.config
    again = invocation.again is not None  # resolved, and written nowhere
    if not again:
        demand_lasting("the lock", str(lock_file.place()), "run lock in a clone of yours")
    models = configured_models(config.models)
    precheck_places()
    with open_run(f"lock {' '.join(config.models) or 'all models'}"):
        _log(invocation, "lock")
        console.heading(f"lock: {', '.join(models)}")
        with lock_file.aside([]) if again else nullcontext():
            resolved = lock_models(models, not config.models)
            mlflow.log_artifact(str(lock_file.place()))
        mlflow.log_dict(as_recorded(resolved), LOCKED)
        if not again:
            console.note(f"written: {lock_file.place()}; commit it")


def materialise(invocation: Invocation) -> None:
    """Make a packaged model self-contained: every file in its own folder."""
    config: MaterialiseConfig = invocation.config
    check_loggable("model_uri", config.model_uri)
    precheck_places()
    with open_run(f"materialise {config.model_uri.removeprefix('models:/')}"):
        _log(invocation, "materialise")
        uri = fixed(config.model_uri)
        log_models({"model_uri": uri}, [uri])
        with console.step(f"put every file into the folder of {uri}") as told:
            made = materialise_model(uri)
            told.append(f"{made.added} added" if made.added else "it was whole already")
        if made.manifest is not None:
            mlflow.log_dict(made.manifest.as_json(), MANIFEST)


def export(invocation: Invocation) -> None:
    """Write a packaged model out, for places that the tracking server does not reach."""
    from slmflow.export import start

    config: ExportConfig = invocation.config
    check_loggable("model_uri", config.model_uri)
    demand_lasting("output", config.output)
    precheck_places()
    uri = config.model_uri or current_of(config)[-1].uri
    with open_run(f"export {uri.removeprefix('models:/')}"):
        _log(invocation, "export")
        uri = fixed(uri)
        log_models({"model_uri": uri}, [uri])
        start.export(start.Asked(uri, config.output, config.format))


def rerun(invocation: Invocation) -> None:
    """Run a recorded run again, as it was, and say what is the same."""
    from slmflow.replay import start

    config: RerunConfig = invocation.config
    precheck_places()
    record = start.recorded(config.run_id)
    with open_run(f"rerun {record.name}"):
        _log(invocation, "rerun")
        report = start.rerun(record, config, repeat, repeat_sweep)
    if config.rerun.strict:
        start.demand_the_same(report)


def repeat(order: Order) -> None:
    """Carry out what was recorded. No alias moves, nothing is promoted."""
    stories = (transformers_pipeline, custom_onnx, evaluate, main, serve, predict)
    others = (export, lock, materialise)
    story = {one.__name__: one for one in (*stories, *others)}[order.entry_point]
    built = rebuilt(order.entry_point, order.values)
    story(Invocation(built.config, built.values, order.choices, aliases=False, again=order))


def repeat_sweep(plan: Mapping[str, Any], orders: Mapping[tuple[str, ...], Order]) -> None:
    """The points of a recorded sweep, each as it was."""
    from slmflow.sweeps.again import run_again

    run_again(plan, {overrides: order.as_json() for overrides, order in orders.items()})


def models_to_compare(config: EvaluateConfig) -> list[str]:
    """The URIs that were given, else the current version of each kind; ``ConfigError`` if none."""
    return config.models or [registered.uri for registered in current_of(config)]


def current_of(config: Versions | ServeConfig) -> list[Registered]:
    """The version of each kind that its alias points at; ``ConfigError`` where there is none."""
    name, task, hardware = config.model.name, config.task.name.value, config.hardware.target.value
    found = {runtime: current(name, runtime, task, hardware) for runtime in RUNTIMES}
    versions = [registered for registered in found.values() if registered is not None]
    if not versions:
        raise ConfigError(
            f"no version of {name} for task={task} and hardware={hardware} is registered on "
            f"{mlflow.get_registry_uri()}; package one first: mlflow run . -e custom_onnx "
            "with the same -P model, task and hardware, or give the URI of another"
        )
    return versions


def _log(invocation: Invocation, entry_point: str) -> None:
    unused = UNUSED.get(entry_point, ())
    given = invocation.overrides
    log_config(invocation.values, invocation.choices, entry_point, unused, given)


def _incumbent(again: Order | None, by_alias: str) -> str | None:
    """Of a gate: the version in use, or in a rerun the one that was then."""
    return by_alias if again is None or not again.judged else again.incumbent


def _overrides(config: EvaluateConfig) -> dict[str, Any]:
    """What evaluate changes of the models' own ``model_config``: only what was chosen."""
    changes: dict[str, Any] = {}
    if config.search is not None:
        changes |= asdict(config.search)
    if config.hardware.threads != "auto":
        changes["threads"] = config.hardware.threads
    return changes
