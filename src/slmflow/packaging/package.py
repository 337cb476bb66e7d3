"""One kind of a model, packaged: found or built, logged, checked, registered."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow

from slmflow import __version__, console
from slmflow.checkout import PROJECT_ROOT
from slmflow.config.schema import PackagingConfig, WeightsPlace
from slmflow.errors import ConfigError
from slmflow.packaging.anew import build_anew
from slmflow.packaging.check import check_answer
from slmflow.packaging.checkpoint import get_checkpoint
from slmflow.packaging.log_model import Packaging, log_onnx, log_transformers
from slmflow.packaging.onnx_build import describe_quantisation, find_prebuilt, get_onnx
from slmflow.packaging.probe import Prompts, log_probes
from slmflow.redaction import holds_secret, redacted, without_secrets
from slmflow.sources import LocalModel
from slmflow.tracking.code import git_commit
from slmflow.tracking.registry import Registered, alias_of, register
from slmflow.tracking.resolved import log_resolved


@dataclass(frozen=True)
class Made:
    """A logged model, not checked yet. ``tags``: what only its kind has."""

    uri: str
    weights: LocalModel
    runtime: str
    tags: Mapping[str, str]


def package_transformers(
    config: PackagingConfig, aliases: bool = True, prompts: Prompts | None = None
) -> Registered:
    """Find the checkpoint, log it, check one answer of the logged model, register it.

    ``prompts``: by which it is known again; None: those of today.
    """
    model, hardware = config.model, config.hardware
    console.heading(f"transformers_pipeline: {model.name} on {hardware.target}")
    with console.step("find the checkpoint") as told:
        weights = get_checkpoint(model, config.trust, console.note)
        told += [weights.source, _short(weights.revision)]
    settings = _settings(config) | {
        "device": hardware.device.value,
        "dtype": hardware.dtype.value,
        **({"trust_remote_code": True} if weights.code else {}),
    }
    with console.step("log the MLflow model") as told:
        question, own = model.probe.question, config.weights is WeightsPlace.own
        packaging = Packaging(weights, settings, question, "transformers_pipeline", own)
        logged = log_transformers(packaging, hardware.dtype.value)
        told.append(logged.uri)
    tags = {"dtype": hardware.dtype.value}
    log_resolved(_commit("model", weights))
    made = Made(logged.uri, weights, "transformers_pipeline", tags)
    return _check_and_register(made, config, aliases, prompts)


def package_onnx(
    config: PackagingConfig,
    aliases: bool = True,
    prompts: Prompts | None = None,
    builds: Path | None = None,
) -> Registered:
    """Get or build the ONNX model, log it, check one answer of the logged model, register it.

    ``prompts``: as of ``package_transformers``. ``builds``: where it is built, past the cache.
    """
    model, hardware, task = config.model, config.hardware, config.task
    console.heading(f"custom_onnx: {model.name}, {hardware.precision} on {hardware.target}")
    with console.step("get the ONNX model") as told:
        if builds is None:
            weights, origin = get_onnx(model, hardware, console.note, config.trust)
        else:
            weights, origin = build_anew(model, hardware, builds, console.note, config.trust)
        told += [weights.source, _short(weights.revision)]
    settings = _settings(config) | {"provider": hardware.provider.value}
    with console.step("log the MLflow model") as told:
        question, own = model.probe.question, config.weights is WeightsPlace.own
        packaging = Packaging(weights, settings, question, "custom_onnx", own)
        logged = log_onnx(packaging, task.name.value, hardware.package)
        told.append(logged.uri)
    tags = {"precision": hardware.precision.value, "provider": hardware.provider.value}
    if hardware.quantised:
        tags["quantisation"] = describe_quantisation(model, hardware)
    prebuilt = find_prebuilt(model, hardware) is not None
    log_resolved(_commit("model.onnx" if prebuilt else "model", weights))
    mlflow.set_tag("slmflow.onnx", origin)
    made = Made(logged.uri, weights, "custom_onnx", tags)
    return _check_and_register(made, config, aliases, prompts)


def _commit(key: str, weights: LocalModel) -> dict[str, str]:
    """The key of the revision, and the hub's commit that it meant; empty for a folder."""
    folder = weights.revision.startswith("sha256:")
    return {} if folder else {f"{key}.revision": weights.revision}


def _settings(config: PackagingConfig) -> dict[str, Any]:
    """The ``model_config`` that both kinds share. Raises ``ConfigError`` for a secret in what
    travels inside the model."""
    asked = {f"search.{name}": value for name, value in asdict(config.search).items()}
    for key, value in {**asked, "model.probe.question": config.model.probe.question}.items():
        if holds_secret(str(value)):
            raise ConfigError(
                f"{key}={redacted(str(value))} holds a secret, and would be a part of the packaged "
                "model, which others load; leave it out"
            )
    return {
        "task": config.task.name.value,
        "model": config.model.name,
        **asdict(config.search),
        "threads": config.hardware.threads,
    }


def _check_and_register(
    made: Made, config: PackagingConfig, aliases: bool, prompts: Prompts | None
) -> Registered:
    probe = config.model.probe
    prompts = prompts or Prompts(probe.question)
    with console.step("check it in a fresh process") as told:
        reply, probes = check_answer(made.uri, probe, prompts)
        told.append(f"{probe.question!r} -> {reply.text!r}")
    log_probes(probes, prompts.new_tokens)
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
    about = without_secrets(about)
    mlflow.set_tags(about)
    with console.step("register it") as told:
        alias = alias_of(made.runtime, hardware, about["task"]) if aliases else None
        registered = register(made.uri, config.model.name, about, alias)
        told += [registered.uri] if alias is None else [registered.uri, f"alias {alias}"]
    return registered


def _short(revision: str) -> str:
    kind, separator, digest = revision.partition(":")
    return f"{kind}:{digest[:12]}" if separator else revision[:12]
