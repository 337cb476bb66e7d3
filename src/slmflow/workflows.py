"""READ FIRST. The story of each entry point, told as steps."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlflow

from slmflow import __version__, console
from slmflow.config.schema import (
    CustomOnnxConfig,
    EvaluateConfig,
    MainConfig,
    PackagingConfig,
    PredictConfig,
    ServeConfig,
    TransformersPipelineConfig,
)
from slmflow.errors import ConfigError
from slmflow.next_commands import show_next
from slmflow.packaging.check import check_answer
from slmflow.packaging.log_model import Packaging, log_onnx, log_transformers
from slmflow.packaging.onnx_build import describe_quantisation, get_onnx
from slmflow.packaging.target import require
from slmflow.sources import PROJECT_ROOT, LocalModel, find_checkpoint
from slmflow.tracking.provenance import git_commit
from slmflow.tracking.registry import (
    RUNTIMES,
    Registered,
    alias_of,
    newest,
    register,
)
from slmflow.tracking.run import log_config, log_outcome, open_child, open_run

EVALUATION = ("data", "ask", "score", "speed", "parity", "gate", "promote", "trace", "lm_eval")
SWEEP = ("sweep",)  # which is on the sweep's own run
UNUSED = {
    "main": SWEEP,
    "evaluate": SWEEP,
    "transformers_pipeline": (
        *SWEEP,
        *EVALUATION,
        *("model.onnx", "hardware.provider", "hardware.precision", "hardware.package"),
        *("hardware.block_size", "hardware.accuracy_level", "hardware.symmetric"),
    ),
    "custom_onnx": (*SWEEP, *EVALUATION, "hardware.device", "hardware.dtype"),
    "serve": (
        *("model.source", "model.revision", "model.onnx", "hardware.device", "hardware.dtype"),
        *("hardware.provider", "hardware.precision", "hardware.package", "hardware.block_size"),
        *("hardware.accuracy_level", "hardware.symmetric"),
    ),
}
UNUSED["predict"] = UNUSED["serve"]
"""Keys of the config that say nothing about what an entry point makes."""


@dataclass(frozen=True)
class Invocation:
    """What was typed, composed: the checked config, the same as plain values, group choices."""

    config: Any
    values: Mapping[str, Any]
    choices: Mapping[str, str]
    point: bool = False  # of a sweep, which points the aliases at its best point in the end


def transformers_pipeline(invocation: Invocation) -> None:
    config: TransformersPipelineConfig = invocation.config
    require(config.hardware, "transformers_pipeline")
    with open_run(f"transformers_pipeline {config.model.name}"):
        name = "transformers_pipeline"
        log_config(invocation.values, invocation.choices, name, UNUSED[name])
        registered = package_transformers(config, invocation.point)
        log_outcome([registered.uri], {})
    show_next([registered], config)


def custom_onnx(invocation: Invocation) -> None:
    config: CustomOnnxConfig = invocation.config
    require(config.hardware, "custom_onnx")
    with open_run(f"custom_onnx {config.model.name}"):
        name = "custom_onnx"
        log_config(invocation.values, invocation.choices, name, UNUSED[name])
        registered = package_onnx(config, invocation.point)
        log_outcome([registered.uri], {})
    show_next([registered], config)


def evaluate(invocation: Invocation) -> None:
    from slmflow.evaluation import start  # late: packaging needs nothing of it

    config: EvaluateConfig = invocation.config
    start.check_addresses(config.models)
    with open_run(f"evaluate {config.model.name}"):
        log_config(invocation.values, invocation.choices, "evaluate", UNUSED["evaluate"])
        dataset = start.open_data(config.data)
        uris = models_to_compare(config)
        console.heading(f"evaluate: {len(dataset)} questions of {dataset.name}")
        evaluation = start.compare(uris, dataset, config, _overrides(config))
        log_outcome([], start.figures(evaluation))
    start.show(evaluation)
    start.demand_one_that_passed(evaluation)


def main(invocation: Invocation) -> None:
    """Package both ways, then compare the two: three child runs of one parent."""
    from slmflow.evaluation import start

    config: MainConfig = invocation.config
    require(config.hardware, "transformers_pipeline")
    require(config.hardware, "custom_onnx")
    dataset = start.open_data(config.data)
    with open_run(f"main {config.model.name}"):
        log_config(invocation.values, invocation.choices, "main", UNUSED["main"])
        registered = []
        for name, package in (
            ("transformers_pipeline", package_transformers),
            ("custom_onnx", package_onnx),
        ):
            with open_child(f"{name} {config.model.name}"):
                log_config(invocation.values, invocation.choices, name, UNUSED[name])
                registered.append(package(config, invocation.point))
        with open_child(f"evaluate {config.model.name}"):
            log_config(invocation.values, invocation.choices, "evaluate", UNUSED["evaluate"])
            console.heading(f"evaluate: {len(dataset)} questions of {dataset.name}")
            uris = [one.uri for one in registered]
            evaluation = start.compare(uris, dataset, config, {})
        log_outcome(uris, start.figures(evaluation))
    start.show(evaluation)
    show_next(registered, config)
    start.demand_one_that_passed(evaluation)


def serve(invocation: Invocation) -> None:
    """Put one model behind OpenAI's API until Ctrl-C."""
    from slmflow.serving.start import start  # FastAPI is for this entry point alone

    config: ServeConfig = invocation.config
    uri = config.model_uri or newest_of(config)[-1].uri
    with open_run(f"serve {uri.removeprefix('models:/')}"):
        log_config(invocation.values, invocation.choices, "serve", UNUSED["serve"])
        start(uri, config)


def predict(invocation: Invocation) -> None:
    """Answer a file or a folder of rows, part by part."""
    from slmflow.prediction import start  # late: no other entry point needs it

    config: PredictConfig = invocation.config
    start.check_loggable("input", config.input)
    start.check_loggable("output", config.output)
    uri = config.model_uri or newest_of(config)[-1].uri
    with open_run(f"predict {uri.removeprefix('models:/')}"):
        log_config(invocation.values, invocation.choices, "predict", UNUSED["predict"])
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


def package_transformers(config: PackagingConfig, point: bool = False) -> Registered:
    """Find the checkpoint, log it, check one answer of the logged model, register it."""
    model, hardware = config.model, config.hardware
    console.heading(f"transformers_pipeline: {model.name} on {hardware.target}")
    with console.step("find the checkpoint") as told:
        weights = find_checkpoint(model.source, model.revision, console.note)
        told += [weights.source, _short(weights.revision)]
    settings = _settings(config) | {
        "device": hardware.device.value,
        "dtype": hardware.dtype.value,
    }
    with console.step("log the MLflow model") as told:
        packaging = Packaging(weights, settings, model.probe.question, "transformers_pipeline")
        info = log_transformers(packaging, hardware.dtype.value)
        told.append(info.model_uri)
    tags = {"dtype": hardware.dtype.value}
    made = Made(info.model_uri, weights, "transformers_pipeline", tags)
    return _check_and_register(made, config, point)


def package_onnx(config: PackagingConfig, point: bool = False) -> Registered:
    """Get or build the ONNX model, log it, check one answer of the logged model, register it."""
    model, hardware, task = config.model, config.hardware, config.task
    console.heading(f"custom_onnx: {model.name}, {hardware.precision} on {hardware.target}")
    with console.step("get the ONNX model") as told:
        weights = get_onnx(model, hardware, console.note)
        told += [weights.source, _short(weights.revision)]
    settings = _settings(config) | {"provider": hardware.provider.value}
    with console.step("log the MLflow model") as told:
        packaging = Packaging(weights, settings, model.probe.question, "custom_onnx")
        info = log_onnx(packaging, task.name.value, hardware.package)
        told.append(info.model_uri)
    tags = {"precision": hardware.precision.value, "provider": hardware.provider.value}
    if hardware.quantised:
        tags["quantisation"] = describe_quantisation(model, hardware)
    made = Made(info.model_uri, weights, "custom_onnx", tags)
    return _check_and_register(made, config, point)


def models_to_compare(config: EvaluateConfig) -> list[str]:
    """The URIs that were given, else the newest version of each kind; ``ConfigError`` if none."""
    return config.models or [registered.uri for registered in newest_of(config)]


def newest_of(config: EvaluateConfig | ServeConfig | PredictConfig) -> list[Registered]:
    """The newest version of each kind of the model; ``ConfigError`` where there is none."""
    name, task, hardware = config.model.name, config.task.name.value, config.hardware.target.value
    found = {runtime: newest(name, runtime, task, hardware) for runtime in RUNTIMES}
    versions = [registered for registered in found.values() if registered is not None]
    if not versions:
        raise ConfigError(
            f"no version of {name} for task={task} and hardware={hardware} is registered on "
            f"{mlflow.get_registry_uri()}; package one first: mlflow run . -e custom_onnx "
            "with the same -P model, task and hardware, or give the URI of another"
        )
    return versions


def _settings(config: PackagingConfig) -> dict[str, Any]:
    """The ``model_config`` that both kinds share."""
    return {
        "task": config.task.name.value,
        "model": config.model.name,
        **asdict(config.search),
        "threads": config.hardware.threads,
    }


def _overrides(config: EvaluateConfig) -> dict[str, Any]:
    """What evaluate changes of the models' own ``model_config``: only what was chosen."""
    changes: dict[str, Any] = {}
    if config.search is not None:
        changes |= asdict(config.search)
    if config.hardware.threads != "auto":
        changes["threads"] = config.hardware.threads
    return changes


@dataclass(frozen=True)
class Made:
    """A logged model, not checked yet. ``tags``: what only its kind has."""

    uri: str
    weights: LocalModel
    runtime: str
    tags: Mapping[str, str]


def _check_and_register(made: Made, config: PackagingConfig, point: bool) -> Registered:
    probe = config.model.probe
    with console.step("check it in a fresh process") as told:
        reply = check_answer(made.uri, probe)
        told.append(f"{probe.question!r} -> {reply.text!r}")
    hardware = config.hardware.target.value
    about = {
        "slmflow": __version__,
        "runtime": made.runtime,
        "task": config.task.name.value,
        "hardware": hardware,
        "source": made.weights.source,
        "revision": made.weights.revision,
        "git_commit": git_commit(PROJECT_ROOT) or "unknown",
        **made.tags,
    }
    mlflow.set_tags(about)
    with console.step("register it") as told:
        alias = None if point else alias_of(made.runtime, hardware, about["task"])
        registered = register(made.uri, config.model.name, about, alias)
        told += [registered.uri] if alias is None else [registered.uri, f"alias {alias}"]
    return registered


def _short(revision: str) -> str:
    kind, separator, digest = revision.partition(":")
    return f"{kind}:{digest[:12]}" if separator else revision[:12]
